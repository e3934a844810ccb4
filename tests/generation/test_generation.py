"""expand.py from end to end on the digits: shards, crashes, resumption, use of the set."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import expand
import train_expand
from distdiff.config import DistDiffConfig
from distdiff.prototypes import build_prototypes
from distdiff.sampler import DistDiffSampler
from expansion.classifier.backbones import load_classifier
from expansion.common.config import load_yaml
from expansion.common.errors import InputError
from expansion.data.datasets import few_shot, load_dataset
from expansion.diffusion import stable_diffusion
from expansion.diffusion.img2img import Img2ImgSampler
from expansion.diffusion.samples import Batch
from expansion.diffusion.variants import Drawing, make_batch
from expansion.images.variants import Variant
from expansion.store.writer import ExpansionWriter
from tests.conftest import ROOT, TINY_MODEL


@pytest.fixture
def arguments(digits_dir):
    """Function from an output folder and options to a command line: 20 images in 5 units."""

    def line(output: Path, *options: object) -> list[str]:
        fixed = {
            "dataset": "digits",
            "data_dir": digits_dir,
            "method": "img2img",
            "shots": 1,
            "num_images_per_prompt": 2,
            "num_inference_steps": 4,
            "batch_size": 4,
            "device": "cpu",
            "output_dir": output,
        }
        given = [text for key, value in fixed.items() for text in (f"--{key}", str(value))]
        return [*given, *map(str, options)]

    return line


@pytest.fixture(scope="module")
def undisturbed(digits_dir, tmp_path_factory) -> Path:
    """The set that one process makes in one go; read only."""
    output = tmp_path_factory.mktemp("undisturbed")
    line = f"-d digits --data_dir {digits_dir} --method img2img --shots 1 --num_images_per_prompt 2"
    line += f" --num_inference_steps 4 --batch_size 4 --device cpu --output_dir {output}"
    assert expand.main(line.split()) == 0
    return output


def content(folder: Path) -> dict[str, bytes]:
    """Everything that must not depend on how the work was done."""
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*.png")]
    return {
        name: (folder / name).read_bytes() for name in (*names, "metadata.jsonl", "classes.json")
    }


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {p.name: np.asarray(Image.open(p)).astype(int) for p in folder.glob("*/*.png")}


def times(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("*/*.png")}


def assert_nearly_equal(first: Path, second: Path) -> None:
    """At most one pixel value in a thousand differs, by 1."""
    ones, others = pixels(first), pixels(second)
    assert sorted(ones) == sorted(others)
    differences = np.concatenate([np.abs(ones[name] - others[name]).ravel() for name in ones])
    assert differences.max() <= 1 and differences.mean() < 1e-3


def test_one_run_writes_every_variant_of_every_image(undisturbed):
    images = pixels(undisturbed)
    assert len(images) == 20 and {image.shape for image in images.values()} == {(32, 32, 3)}
    rows = [json.loads(line) for line in (undisturbed / "metadata.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == [label for label in range(10) for _ in range(2)]
    assert all((undisturbed / row["file_name"]).is_file() for row in rows)
    with Image.open(undisturbed / rows[0]["file_name"]) as image:
        assert image.text["synthetic"] == "true" and image.text["prompt"] == rows[0]["prompt"]
    assert rows[0]["prompt"] == "a photo of the digit zero"
    assert len({image.tobytes() for image in images.values()}) == 20


@pytest.mark.slow
@pytest.mark.parametrize("total", [2, 3, 7])
def test_any_number_of_shards_gives_the_same_bytes(tmp_path, arguments, undisturbed, total):
    for split in reversed(range(total)):
        assert expand.main(arguments(tmp_path, "--split", split, "--total_split", total)) == 0
    assert content(tmp_path) == content(undisturbed)


@pytest.mark.slow
def test_batches_of_one_and_of_four_give_the_same_images(tmp_path, arguments, undisturbed):
    expand.main(arguments(tmp_path, "--batch_size", 1))
    assert_nearly_equal(tmp_path, undisturbed)


@pytest.mark.slow
def test_the_measured_batch_size_is_kept_and_shared_by_all_shards(
    tmp_path, arguments, capsys, caplog
):
    caplog.set_level(logging.INFO)
    line = arguments(tmp_path / "auto", "--batch_size", "auto")
    expand.main([*line, "--dry_run"])
    assert "once the batch size is measured" in capsys.readouterr().out
    assert expand.main([*line, "--split", "1", "--total_split", "2"]) == 0
    assert "batch size 16" in caplog.text  # the largest power of two, of 20 images
    expand.main([*line, "--dry_run"])
    assert "20 images in 2 units of up to 16" in capsys.readouterr().out
    assert expand.main([*line, "--split", "0", "--total_split", "2"]) == 0
    assert caplog.text.count("batch size 16") == 1
    expand.main(arguments(tmp_path / "fixed", "--batch_size", 16))
    assert content(tmp_path / "auto") == content(tmp_path / "fixed")
    (tmp_path / "auto" / ".batch_size.json").write_text('{"batch_size": -1}')
    with pytest.raises(InputError, match="batch_size.json: expected batch_size, a positive number"):
        expand.main(line)
    with pytest.raises(SystemExit):
        expand.main(arguments(tmp_path / "no", "--batch_size", "automatic"))
    assert "invalid int or auto value: 'automatic'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_set_is_completed_when_memory_runs_short(
    tmp_path, arguments, undisturbed, monkeypatch, caplog
):
    sample = Img2ImgSampler.sample

    def sample_few(self, batch, drawn):
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sample(self, batch, drawn)

    monkeypatch.setattr(Img2ImgSampler, "sample", sample_few)
    assert expand.main(arguments(tmp_path)) == 0
    assert caplog.text.count("going on with 2 at a time") == 1
    assert_nearly_equal(tmp_path, undisturbed)


# Dies when the seventh image is half written under its temporary name.
KILLED = """
import itertools, os, signal, sys
import expand
replace, numbers = os.replace, itertools.count(1)
def replace_or_die(partial, path):
    if str(path).endswith(".png") and next(numbers) == 7:
        os.truncate(partial, 100)
        os.kill(os.getpid(), signal.SIGKILL)
    replace(partial, path)
os.replace = replace_or_die
expand.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, arguments, undisturbed):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", KILLED, *arguments(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    before = times(tmp_path)
    assert 5 <= len(before) <= 7
    expand.main(arguments(tmp_path))
    assert content(tmp_path) == content(undisturbed)
    lines = [json.loads(line) for line in _first_manifest(tmp_path)]
    complete = {line["file_name"] for line in lines if "event" not in line}
    assert len(complete) >= 5  # finished before the kill, so not made again
    assert all(times(tmp_path)[Path(name).name] == before[Path(name).name] for name in complete)


def _first_manifest(folder: Path) -> list[str]:
    return (
        min(folder.glob("manifest.*.jsonl"), key=lambda p: p.stat().st_mtime_ns)
        .read_text()
        .splitlines()
    )


@pytest.mark.slow
@pytest.mark.parametrize("failing", [1, 6])
def test_a_full_disk_loses_only_the_images_in_flight(
    tmp_path, arguments, undisturbed, monkeypatch, failing
):
    write, calls = ExpansionWriter._write, []

    def full(self, image, row):
        calls.append(row["file_name"])
        if len(calls) >= failing:
            raise OSError(28, "No space left on device")
        write(self, image, row)

    monkeypatch.setattr(ExpansionWriter, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        expand.main(arguments(tmp_path))
    assert len(pixels(tmp_path)) == failing - 1
    monkeypatch.setattr(ExpansionWriter, "_write", write)
    expand.main(arguments(tmp_path))
    assert content(tmp_path) == content(undisturbed)


@pytest.mark.slow
def test_more_variants_extend_a_set_without_touching_it(tmp_path, arguments):
    more, at_once = tmp_path / "more", tmp_path / "at_once"
    expand.main(arguments(more, "--num_images_per_prompt", 1))
    first, first_times = content(more), times(more)
    expand.main(arguments(more, "--num_images_per_prompt", 2))
    assert {name: times(more)[name] for name in first_times} == first_times
    assert all(content(more)[name] == data for name, data in first.items() if "_expand_" in name)
    expand.main(arguments(at_once, "--num_images_per_prompt", 2))
    assert len(pixels(more)) == 20
    assert_nearly_equal(more, at_once)  # a unit's other images decide rounding only


@pytest.mark.slow
def test_a_truncated_image_is_made_again_within_its_whole_unit(
    tmp_path, arguments, undisturbed, monkeypatch
):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    before = times(tmp_path)
    broken = sorted(tmp_path.glob("*/*.png"))[5]
    broken.write_bytes(broken.read_bytes()[:-20])
    sample, computed = Img2ImgSampler.sample, []
    monkeypatch.setattr(
        Img2ImgSampler, "sample", lambda *a: computed.append(len(a[1].prompts)) or sample(*a)
    )
    expand.main(arguments(tmp_path))
    assert computed == [4]  # so that it is rounded as before
    assert content(tmp_path) == content(undisturbed)
    assert {name for name, time in times(tmp_path).items() if time != before[name]} == {broken.name}


def test_a_complete_set_is_left_alone_and_no_weights_load(
    undisturbed, arguments, monkeypatch, caplog
):
    before, first = times(undisturbed), content(undisturbed)
    monkeypatch.setattr(stable_diffusion, "load_pipeline", None)
    with caplog.at_level(logging.INFO):
        assert expand.main(arguments(undisturbed)) == 0
    assert times(undisturbed) == before and content(undisturbed) == first
    assert "0 images written, 20 already there" in caplog.text


@pytest.mark.parametrize(
    "options, shown",
    [
        (("--seed", 7), "seed: 42 there, 7 now"),
        (("--strength", 0.75), "strength: 0.5 there, 0.75 now"),
        (("--prompt_template", "a {}"), "prompts: "),
        (("--guidance_scale", 2), "guidance_scale: 3.0 there, 2.0 now"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_and_shown(
    undisturbed, arguments, options, shown
):
    before = content(undisturbed)
    with pytest.raises(InputError, match="other settings") as error:
        expand.main(arguments(undisturbed, *options))
    assert shown in str(error.value) and "\n" not in str(error.value)
    assert content(undisturbed) == before


@pytest.fixture
def wide_set(tmp_path) -> Path:
    """Two 60x40 images; the left third is white, the rest a gradient."""
    for name in ("a", "b"):
        ramp = np.linspace(0, 120 if name == "a" else 200, 60).astype(np.uint8)
        image = np.repeat(np.tile(ramp, (40, 1))[..., None], 3, axis=2)
        image[:, :20] = 255
        path = tmp_path / "wide" / "train" / "thing" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "wide"


def test_an_unreadable_image_is_fatal_or_skipped_and_counted(tmp_path, wide_set, arguments, caplog):
    (wide_set / "train" / "thing" / "c.png").write_bytes(b"not an image")
    model = ("--pretrained_model_name_or_path", TINY_MODEL, "--guidance_scale", 2)
    line = [*arguments(tmp_path / "out", *model), "--dataset", str(wide_set)]
    line[line.index("--shots") + 1] = "3"
    with pytest.raises(InputError, match="c.png"):
        expand.main(line)
    with caplog.at_level(logging.INFO):
        assert expand.main([*line, "--on_error", "skip"]) == 0
    assert "1 unreadable real images skipped" in caplog.text and "c.png" in caplog.text
    assert sorted(pixels(tmp_path / "out")) == [
        f"{n}_expand_{k}.png" for n in "ab" for k in range(2)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["center_crop", "random_crop", "squash"])
def test_real_images_become_square_as_the_mode_says(tmp_path, wide_set, arguments, mode):
    """Resized to 48x32, the left third (16 columns) is white: a centre crop keeps 8 of them."""
    dataset = load_dataset(str(wide_set))
    records = dataset.records("train")
    variants = [Variant(record, k, "", "a thing") for record in records for k in range(6)]
    batch = make_batch(variants, Drawing(seed=1, resolution=32, resize_mode=mode))
    rows = batch.images[batch.source_index][:, 0, 16]  # middle line, (12, 32)
    white = [int((row > 0.97).sum()) for row in rows]
    if mode == "random_crop":
        assert (
            len(batch.sources) == 12 and len(set(white)) > 3 and 0 <= min(white) <= max(white) <= 16
        )
    else:
        assert len(batch.sources) == 2
        expected = 8 if mode == "center_crop" else 32 / 3
        assert all(abs(count - expected) <= 1 for count in white)
    model = ("--pretrained_model_name_or_path", TINY_MODEL, "--guidance_scale", 2)
    for size in (1, 4):
        line = arguments(
            tmp_path / f"batch{size}", *model, "--resize_mode", mode, "--batch_size", size
        )
        expand.main([*line, "--dataset", str(wide_set)])
    assert_nearly_equal(tmp_path / "batch1", tmp_path / "batch4")


@pytest.mark.slow
def test_distdiff_gives_the_same_bytes_for_one_and_two_shards(tmp_path, arguments, guide_path):
    options = ("--method", "distdiff", "--guidance_step", 2, "--encoder_weight_path", guide_path)
    options = (*options, "--num_images_per_prompt", 1, "--log_energy")
    expand.main(arguments(tmp_path / "one", *options))
    for split in range(2):
        expand.main(arguments(tmp_path / "two", *options, "--split", split, "--total_split", 2))
    assert content(tmp_path / "one") == content(tmp_path / "two")
    rows = [
        json.loads(line) for line in (tmp_path / "one" / "metadata.jsonl").read_text().splitlines()
    ]
    figures = rows[0]["details"]
    assert {"energy_unguided", "energy_start", "energy_end", "update_skipped"} <= set(figures)
    with pytest.raises(InputError, match="images: "):  # other images, other prototypes
        expand.main(arguments(tmp_path / "one", *options, "--subset_seed", 1))


@pytest.mark.slow
def test_distdiff_works_as_a_library_without_files(pipeline, digits_dir, guide_path):
    dataset = load_dataset("digits", digits_dir)
    records = few_shot(dataset.records("train"), 1)
    images = torch.stack(
        [torch.from_numpy(np.array(r.load())).permute(2, 0, 1) / 255 for r in records]
    )
    prompts = [f"a photo of the digit {name}" for name in dataset.prompt_names]
    batch = Batch(images[:2], ("a", "b"), torch.arange(2), prompts[:2], torch.arange(2), (7, 8))
    guide = load_classifier(guide_path)
    config = DistDiffConfig(num_inference_steps=4, guidance_scale=3.0, guidance_step=2)
    prepared, placed = (DistDiffSampler(pipeline, config, guide) for _ in range(2))
    prepared.prepare(records)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    placed.use_prototypes(
        build_prototypes(guide.features((images - mean) / std), torch.arange(10), 10, 3)
    )
    samples, again = (
        sampler.sample(batch, [torch.Generator().manual_seed(i) for i in range(2)])
        for sampler in (prepared, placed)
    )
    assert samples.images.shape == (2, 3, 32, 32)
    assert {values.shape for values in samples.details.values()} == {(2,)}
    assert samples.images.min() >= 0 and samples.images.max() <= 1
    torch.testing.assert_close(samples.images, again.images, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_generated_set_trains_a_classifier(tmp_path, digits_dir, undisturbed):
    line = f"-d digits --data_dir {digits_dir} --shots 1 --expanded_dir {undisturbed} --seeds 1"
    line += f" --checkpoint_dir {tmp_path} --budget steps --max_train_steps 2 --batch_size 8"
    train_expand.main(line.split())
    (results,) = tmp_path.rglob("results.yaml")
    values = load_yaml(results).values
    assert (values["num_real"], values["num_generated"], values["steps"]) == (10, 20, 2)
