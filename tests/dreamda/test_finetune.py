"""`python -m dreamda.finetune` from end to end: interruption, adapters, refusals, what is left."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from dreamda.finetune import __main__ as finetune
from dreamda.finetune import report as finetune_report
from dreamda.finetune.report import TrainingLog, read_log
from dreamda.finetune.trainer import DiffusionTrainer
from expansion.common.errors import InputError
from expansion.diffusion.stable_diffusion import load_pipeline
from tests.conftest import TINY_MODEL

pytestmark = pytest.mark.slow  # whole trainings


def tune(digits_dir: Path, output: Path, *options: object) -> Path:
    line = f"-d digits --data_dir {digits_dir} --shots 2 --output_dir {output}"
    line += f" --pretrained_model_name_or_path {TINY_MODEL} --max_train_steps 6"
    line += " --train_batch_size 2 --checkpointing_steps 3 --learning_rate 1e-3"
    finetune.main([*line.split(), *map(str, options)])
    return output


def weights(folder: Path) -> list[bytes]:
    """Text encoder, U-Net, autoencoder."""
    return [path.read_bytes() for path in sorted(folder.glob("*/*.safetensors"))]


@pytest.fixture
def no_samples(monkeypatch):
    blank = Image.new("RGB", (8, 8))
    monkeypatch.setattr(finetune_report, "_samples", lambda *_: [blank])


def interrupt(monkeypatch, at: int) -> None:
    """Ctrl-C in place of step `at`, counted from 0."""
    step = DiffusionTrainer._step

    def interrupted(self, number, *images):
        if number == at:
            raise KeyboardInterrupt
        return step(self, number, *images)

    monkeypatch.setattr(DiffusionTrainer, "_step", interrupted)


EVERYTHING = ("--train_text_encoder", "--use_ema", "--gradient_accumulation_steps", 2)


def half_tuned(monkeypatch, digits_dir: Path, output: Path, *options: object) -> Path:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, at=4)
        tune(digits_dir, output, *options)
    return output


def test_an_interrupted_fine_tune_equals_an_undisturbed_one_and_anyone_can_load_it(
    digits_dir, tmp_path, monkeypatch, no_samples
):
    once = tune(digits_dir, tmp_path / "once", *EVERYTHING, "--validation_steps", 2)
    half = half_tuned(monkeypatch, digits_dir, tmp_path / "half", *EVERYTHING)
    steps = [row["step"] for row in read_log(half / "training_log.jsonl")]
    assert steps == [1, 2, 3, 4] and not (half / "samples.png").exists()
    done = []
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLog, "add", note_steps(TrainingLog.add, done))
        tune(digits_dir, half, *EVERYTHING)
    assert done == [4, 5, 6]
    assert weights(once) == weights(half)  # also: validation changes nothing
    changed = [a != b for a, b in zip(weights(half), weights(TINY_MODEL), strict=True)]
    assert changed == [True, True, False]  # text encoder, U-Net; not the autoencoder
    logs = [read_log(folder / "training_log.jsonl") for folder in (once, half)]
    losses, resumed = ([(r["step"], r["loss"], r["learning_rate"]) for r in log] for log in logs)
    assert losses == resumed and [step for step, *_ in losses] == [1, 2, 3, 4, 5, 6]
    both = {"samples_before.png", "samples.png", "loss.png"}
    assert {path.name for path in half.glob("*.png")} == both
    steps = {"samples_step2.png", "samples_step4.png"}  # samples.png is the one after step 6
    assert {path.name for path in once.glob("*.png")} == both | steps
    assert not list(half.glob("training_state*"))
    loaded = StableDiffusionPipeline.from_pretrained(half, safety_checker=None)
    images = loaded("a photo of a one", num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 32, 32, 3) and images.std() > 0.01


def note_steps(add, done: list[int]):
    def noted(self, step, *values):
        done.append(step)
        add(self, step, *values)

    return noted


def test_only_the_unet_is_tuned_unless_told_otherwise(digits_dir, tmp_path, no_samples):
    out = tune(digits_dir, tmp_path / "out", "--max_train_steps", 2)
    changed = [a != b for a, b in zip(weights(out), weights(TINY_MODEL), strict=True)]
    assert changed == [False, True, False]
    scheduler = "scheduler/scheduler_config.json"
    written, given = (json.loads((f / scheduler).read_text()) for f in (out, TINY_MODEL))
    assert written | {"_diffusers_version": ""} == given | {"_diffusers_version": ""}
    text = (out / "README.md").read_text()
    assert "20 images of the train split of digits: 2 steps, batch 2, seed 0" in text
    pictures = [word.split(")")[0] for word in text.split("](")[1:]]
    assert pictures == ["samples.png", "samples_before.png", "loss.png"]


def test_a_half_finished_fine_tune_does_not_go_on_with_other_settings(
    digits_dir, tmp_path, monkeypatch, no_samples
):
    half = half_tuned(monkeypatch, digits_dir, tmp_path / "half")
    for options in (["--learning_rate", 0.01], ["--shots", 3], ["--subset_seed", 1]):
        with pytest.raises(InputError, match=options[0].removeprefix("--")):
            tune(digits_dir, half, *options)
    tune(digits_dir, half, "--gradient_accumulation_steps", 2, "--validation_steps", 5)
    assert (half / "samples_step5.png").exists()  # what changes no result may change


LORA = ("--lora_rank", 2, "--lora_alpha", 6, "--use_ema", "--save_dtype", "float32")


def test_adapters_are_fused_and_loading_them_alone_gives_the_same_network(
    digits_dir, tmp_path, no_samples
):
    pytest.importorskip("peft")
    out = tune(digits_dir, tmp_path / "out", *LORA)
    fused, start = load_pipeline(str(out)).unet, load_pipeline(str(TINY_MODEL))
    assert list(fused.state_dict()) == list(start.unet.state_dict())
    inputs = torch.ones(1, 4, 8, 8), 7, torch.ones(1, 77, fused.config.cross_attention_dim)
    with torch.no_grad():
        expected, plain = fused(*inputs).sample, start.unet(*inputs).sample
        start.load_lora_weights(str(out))
        with_adapters = start.unet(*inputs).sample
    torch.testing.assert_close(with_adapters, expected, rtol=1e-4, atol=1e-5)
    assert (with_adapters - plain).abs().max() > 1e-3
    layers = load_file(out / "pytorch_lora_weights.safetensors")
    name = next(key for key in layers if key.endswith("to_q.lora.down.weight"))
    down, up = layers[name], layers[name.replace("lora.down", "lora.up")]
    name = name.removeprefix("unet.").replace("lora.down.", "")
    start.unload_lora_weights()
    change = fused.state_dict()[name] - start.unet.state_dict()[name]
    torch.testing.assert_close(change, 6 / 2 * up @ down, rtol=1e-3, atol=1e-5)
    assert "rank 2" in (out / "README.md").read_text()


def test_interrupted_training_of_adapters_equals_undisturbed_one(
    digits_dir, tmp_path, monkeypatch, no_samples
):
    pytest.importorskip("peft")
    once = tune(digits_dir, tmp_path / "once", *LORA)
    half = half_tuned(monkeypatch, digits_dir, tmp_path / "half", *LORA)
    tune(digits_dir, half, *LORA)
    assert weights(once) == weights(half)
    files = [folder / "pytorch_lora_weights.safetensors" for folder in (once, half)]
    ours, theirs = map(load_file, files)
    assert ours and all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_adapters_without_peft_are_refused_before_anything_is_written(
    digits_dir, tmp_path, monkeypatch
):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "peft" else find(n))
    with pytest.raises(InputError, match="pip install peft"):
        tune(digits_dir, tmp_path / "out", "--lora_rank", 2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--gradient_accumulation_steps 0", "gradient_accumulation_steps 0"),
        ("--gradient_accumulation_steps 3", "3: a process has only 2 images per step"),
        ("--lora_rank -1", "lora_rank -1"),
        ("--lora_alpha 4", "--lora_alpha needs --lora_rank"),
        ("--lora_rank 2 --lora_alpha 0", "lora_alpha 0"),
        ("--lora_rank 2 --train_text_encoder", "excludes --train_text_encoder"),
        ("--lora_rank 2 --from_scratch --resolution 32", "excludes --from_scratch"),
        ("--validation_steps -1", "validation_steps -1"),
        ("--max_train_steps 0", "max_train_steps 0"),
        ("--learning_rate 0", "learning_rate 0"),
        ("--p2_k -1", "p2_k -1"),
        ("--ema_decay 1.5", "ema_decay 1.5"),
        ("--shots 0", "--shots 0"),
        ("--shots 5000", "has only"),
        ("--snr_gamma 5", "two weights of one loss"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(
    digits_dir, tmp_path, options, words
):
    with pytest.raises(InputError, match=words):
        tune(digits_dir, tmp_path / "out", *options.split())
    assert not (tmp_path / "out").exists()


def test_processes_on_cpus_know_of_each_other(digits_dir, tmp_path, monkeypatch):
    """Accelerate must be told of CPUs; else torchrun starts lone processes that overwrite a run."""
    asked = {}

    def note(**named):
        asked.update(named)
        raise InputError("asked")

    monkeypatch.setattr("accelerate.Accelerator", note)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(InputError, match="asked"):
        tune(digits_dir, tmp_path / "out")
    assert asked["cpu"]


def test_every_process_needs_an_image_per_part(digits_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(InputError, match="2: a process has only 1 images per step"):
        tune(digits_dir, tmp_path / "out", "--gradient_accumulation_steps", 2)


def test_a_new_checkpoint_has_no_samples_from_before(digits_dir, tmp_path, no_samples):
    line = f"-d digits --data_dir {digits_dir} --shots 1 --output_dir {tmp_path / 'new'}"
    line += " --from_scratch --resolution 32 --max_train_steps 2 --train_batch_size 2"
    line += " --vae_train_steps 2 --vae_batch_size 2 --vae_block_out_channels 16 16"
    finetune.main([*line.split(), "--unet_block_out_channels", "16", "16"])
    pictures = {path.name for path in (tmp_path / "new").glob("*.png")}
    assert pictures == {"samples.png", "loss.png"}
    assert not (tmp_path / "new" / "start").exists()
    assert "samples_before" not in (tmp_path / "new" / "README.md").read_text()
