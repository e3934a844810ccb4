"""What comes out on a GPU, beside what the CPU makes of the same; skipped where there is none."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import expand
import train_expand
import train_original

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs a GPU"),
]
METHODS = ("img2img", "text2img", "distdiff", "dreamda")


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch):
    """Convolutions in float32, not in the shorter TF32, so that differences show faults."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def expanded(tmp_path, digits_dir, guide_path):
    """Makes 20 images of digits by a method, with options, and returns their folder."""

    def make(name: str, method: str, *options: object) -> Path:
        fixed = {
            "dataset": "digits",
            "data_dir": digits_dir,
            "method": method,
            "shots": 1,
            "num_images_per_prompt": 2,
            "num_inference_steps": 50,
            "batch_size": 20,
            "dtype": "float32",
            "output_dir": tmp_path / name,
        }
        line = [text for key, value in fixed.items() for text in (f"--{key}", str(value))]
        if method == "distdiff":
            line += ["--encoder_weight_path", str(guide_path)]
        assert expand.main([*line, *map(str, options)]) == 0
        return tmp_path / name

    return make


def differences(first: Path, second: Path) -> dict[str, float]:
    """Mean absolute difference of the pixels of each of 20 images, 0 to 255, in two sets."""
    names = sorted(str(path.relative_to(first)) for path in first.glob("*/*.png"))
    assert len(names) == 20
    pixels = (
        [np.asarray(Image.open(folder / name), np.float64) for folder in (first, second)]
        for name in names
    )
    return {name: float(np.abs(a - b).mean()) for name, (a, b) in zip(names, pixels, strict=True)}


def assert_alike(first: Path, second: Path) -> None:
    """Two sets differ by less than a grey level on average; else the images' own are shown."""
    found = differences(first, second)
    assert np.mean([*found.values()]) < 1, {name: round(value, 2) for name, value in found.items()}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_makes_the_images_that_the_cpu_makes(expanded, method):
    on_gpu, on_cpu = expanded("gpu", method), expanded("cpu", method, "--device", "cpu")
    assert_alike(on_gpu, on_cpu)


@pytest.mark.parametrize("method", METHODS)
def test_batches_of_one_group_and_of_all_give_the_same_images(expanded, method):
    assert_alike(expanded("all", method), expanded("two", method, "--batch_size", 2))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_formats_make_nearly_the_same_images(expanded, dtype):
    whole, half = expanded("whole", "img2img"), expanded("half", "img2img", "--dtype", dtype)
    assert 0 < np.mean([*differences(whole, half).values()]) < 6


def test_compiled_blocks_make_the_same_images(expanded):
    plain, compiled = expanded("plain", "img2img"), expanded("compiled", "img2img", "--compile")
    assert_alike(plain, compiled)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_shortage_of_memory_makes_batches_smaller_and_loses_no_image(expanded, caplog):
    caplog.set_level(logging.WARNING)
    whole = expanded("whole", "img2img", "--resolution", 256)
    torch.cuda.empty_cache()
    free = torch.cuda.memory_allocated() + 600 * 2**20
    torch.cuda.set_per_process_memory_fraction(free / torch.cuda.mem_get_info()[1])
    try:
        scarce = expanded("scarce", "img2img", "--resolution", 256)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert "out of memory" in caplog.text
    assert_alike(whole, scarce)


def test_trainings_reach_what_they_reach_on_the_cpu(tmp_path, digits_dir, expanded):
    """Three trainings: real images; real and generated images; and AMST."""
    made = expanded("set", "img2img")
    line = f"-d digits --data_dir {digits_dir} --seeds 1 --budget steps --max_train_steps 60"
    line += f" --eval_steps 60 --checkpoint_dir {tmp_path / 'runs'}"
    train_original.main([*line.split(), "--shots", "10"])
    both = f"{line} --shots 1 --expanded_dir {made}"
    train_expand.main([*both.split(), "--exp", "seed"])
    train_expand.main([*both.split(), "--exp", "amst", "--labels", "amst"])
    results = [
        yaml.safe_load(path.read_text()) for path in (tmp_path / "runs").rglob("results.yaml")
    ]
    accuracies = sorted(result["last_accuracy"] for result in results)
    assert len(accuracies) == 3 and accuracies[0] > 25 and accuracies[-1] > 60
