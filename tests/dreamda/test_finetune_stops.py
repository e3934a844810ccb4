"""Fine-tuning that cannot go well: broken images, losses that are no number, one folder twice."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from dreamda.finetune import __main__ as finetune
from dreamda.finetune import report as finetune_report
from dreamda.finetune.config import FinetuneConfig, FromScratchConfig
from dreamda.finetune.trainer import DiffusionTrainer, loss_weights
from expansion.common.errors import InputError
from expansion.data.batches import SeededImages
from expansion.images.records import ImageRecord
from expansion.training.run_lock import only_training
from tests.conftest import TINY_MODEL

pytestmark = pytest.mark.slow  # whole trainings


@pytest.fixture(autouse=True)
def no_samples(monkeypatch):
    blank = Image.new("RGB", (8, 8))
    monkeypatch.setattr(finetune_report, "_samples", lambda *_: [blank])


@pytest.fixture
def dataset(make_folder) -> Path:
    tree = {name: [f"{i}.png" for i in range(3)] for name in ("ant", "bee")}
    return make_folder("set", {"train": tree})


def tune(dataset: Path, output: Path, *options: object) -> Path:
    line = f"-d {dataset} --output_dir {output} --max_train_steps 6 --train_batch_size 2"
    line += " --checkpointing_steps 2"
    if "--from_scratch" in options:
        line += " --resolution 32 --vae_train_steps 2 --vae_batch_size 2"
        line += " --vae_block_out_channels 16 16 --unet_block_out_channels 16 16"
    else:
        line += f" --pretrained_model_name_or_path {TINY_MODEL}"
    finetune.main([*line.split(), *map(str, options)])
    return output


def break_image(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("start", [(), ("--from_scratch",)])
def test_a_broken_image_is_named_before_training_begins_and_can_be_left_out(
    dataset, tmp_path, start
):
    break_image(dataset / "train/bee/1.png")
    with pytest.raises(InputError, match="cannot read the image .*bee/1.png .*--on_error skip"):
        tune(dataset, tmp_path / "out", *start)
    assert not (tmp_path / "out").exists()
    out = tune(dataset, tmp_path / "out", *start, "--on_error", "skip")
    assert "trained" in (out / "README.md").read_text() and (out / "model_index.json").is_file()
    assert "on 5 images of the train split" in (out / "README.md").read_text()


def test_without_any_readable_image_there_is_nothing_to_train_on(dataset, tmp_path):
    for path in dataset.rglob("*.png"):
        break_image(path)
    with pytest.raises(InputError, match="no image of its train split is left"):
        tune(dataset, tmp_path / "out", "--on_error", "skip")


def test_an_image_that_breaks_later_is_one_short_line_with_loading_processes_too(
    dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(finetune, "readable_records", lambda records, on_error: (records, []))
    break_image(dataset / "train/bee/1.png")
    texts = []
    for workers in (0, 2):
        with pytest.raises(InputError) as error:
            tune(dataset, tmp_path / str(workers), "--dataloader_num_workers", workers)
        texts.append(str(error.value))
    assert texts[0] == texts[1] and texts[0].startswith("cannot read the image")
    assert len(texts[0]) < 400 and "Traceback" not in texts[0]


def test_errors_of_loading_processes_are_their_own_lines_whatever_they_say(tmp_path):
    for text in ("plain", "two\nlines", "an InputError: within", "x" * 3000, "\u202e\udcff"):
        record = ImageRecord(tmp_path / "x", "x", 0, "c")
        error = InputError(text)
        images = SeededImages([record], Raising(error))
        loader = torch.utils.data.DataLoader(
            images, batch_sampler=[[(0, 0)]], num_workers=1, collate_fn=list
        )
        Image.new("RGB", (4, 4)).save(tmp_path / "x", "PNG")
        with pytest.raises(InputError) as raised:
            list(loader)
        assert str(raised.value) == str(error)


class Raising:
    """A transform that raises."""

    def __init__(self, error: InputError):
        self.error = error

    def __call__(self, image: Image.Image) -> None:
        raise self.error


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_fine_tune_stops_at_such_a_loss_and_goes_on_from_before(
    dataset, tmp_path, monkeypatch, value
):
    step = DiffusionTrainer._step

    def failing(self, number, *images):
        return step(self, number, *images) * (value if number == 4 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionTrainer, "_step", failing)
        with pytest.raises(InputError, match=f"the loss of step 5 is {value}; .*--learning_rate"):
            tune(dataset, tmp_path / "out")
    out = tmp_path / "out"
    assert json.loads((out / "training_state/step.json").read_text()) == {"step": 4}
    assert "NaN" not in (out / "training_log.jsonl").read_text()
    assert not (out / "model_index.json").exists() and not (out / ".lock").exists()
    tune(dataset, out)
    assert (out / "model_index.json").is_file()


@pytest.mark.parametrize("steps, saved", [(2, {"step": 2}), (0, None)])
def test_weights_that_are_nan_are_saved_neither_to_go_on_from_nor_as_a_result(
    dataset, tmp_path, monkeypatch, steps, saved
):
    """The loss of a step is that of the weights before it."""
    step = DiffusionTrainer._step

    def poisoning(self, number, *images):
        loss = step(self, number, *images)
        if number == (3 if steps else 5):
            self.trained[0].data.view(-1)[0] = math.nan
        return loss

    monkeypatch.setattr(DiffusionTrainer, "_step", poisoning)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"the weights after step [46] hold NaN"):
        tune(dataset, out, "--checkpointing_steps", steps)
    state = out / "training_state/step.json"
    assert (json.loads(state.read_text()) if state.exists() else None) == saved
    assert not (out / "model_index.json").exists()


def test_an_autoencoder_stops_at_such_a_loss(dataset, tmp_path):
    options = ("--from_scratch", "--vae_learning_rate", 1e30, "--vae_train_steps", 40)
    words = r"autoencoder's training has stopped: the loss of step \d+ is (nan|inf); give a smaller"
    with pytest.raises(InputError, match=words):
        tune(dataset, tmp_path / "out", *options)
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_weights_beyond_float16_are_not_saved_as_infinity(dataset, tmp_path, monkeypatch):
    train = DiffusionTrainer.train

    def growing(self, *arguments):
        train(self, *arguments)
        self.trained[0].data.view(-1)[0] = 1e6

    monkeypatch.setattr(DiffusionTrainer, "train", growing)
    with pytest.raises(InputError, match="too large for float16; give --save_dtype float32"):
        tune(dataset, tmp_path / "out")
    assert not (tmp_path / "out" / "model_index.json").exists()
    assert tune(dataset, tmp_path / "other", "--save_dtype", "float32").is_dir()


def test_a_folder_that_is_being_tuned_is_left_alone(dataset, tmp_path):
    (tmp_path / "out").mkdir()
    with only_training(tmp_path / "out"):
        with pytest.raises(InputError, match="out is being trained by process"):
            tune(dataset, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_begun_folder_does_not_go_on_with_other_images(dataset, tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DiffusionTrainer, "train", stop)
        tune(dataset, tmp_path / "out")
    shutil.copy(dataset / "train/ant/0.png", dataset / "train/ant/9.png")
    with pytest.raises(InputError, match="training_images"):
        tune(dataset, tmp_path / "out")


def tuning(**options: object) -> FinetuneConfig:
    start = {"pretrained_model_name_or_path": "m", "output_dir": "o", "captions": ("a {}",)}
    return FinetuneConfig(**{**start, **options})


@pytest.mark.parametrize(
    ("options", "weights"),
    [  # a = 0.5, 0: SNR = 1, 0
        ({"p2_gamma": 0.0, "snr_gamma": 5.0}, [1, 1]),
        ({"p2_gamma": 0.0, "snr_gamma": 0.25}, [0.25, 1]),
        ({"p2_gamma": 1.0, "p2_k": 2.0}, [1 / 3, 1 / 2]),
        ({"p2_gamma": 0.0, "p2_k": 0.0}, [1, 1]),
    ],
)
def test_loss_weights_have_their_limits_at_zero_snr(options, weights):
    a = torch.tensor([0.5, 0.0])
    expected = torch.tensor(weights).float()
    torch.testing.assert_close(loss_weights(a, tuning(**options), "epsilon"), expected)
    torch.testing.assert_close(loss_weights(a, tuning(**options), "v_prediction"), expected * a)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_an_infinite_loss_weight_is_refused(prediction_type):
    with pytest.raises(InputError, match="p2_k 0 and p2_gamma 1 give .* give --p2_k 1"):
        loss_weights(torch.tensor([0.5, 0.0]), tuning(p2_k=0.0), prediction_type)


def test_a_checkpoint_of_zero_snr_is_tuned_with_min_snr_weights(dataset, tmp_path):
    model = shutil.copytree(TINY_MODEL, tmp_path / "zero")
    path = model / "scheduler/scheduler_config.json"
    values = json.loads(path.read_text())
    values |= {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    path.write_text(json.dumps(values))
    options = ("--snr_gamma", 5, "--p2_gamma", 0, "--train_batch_size", 6)
    options += ("--pretrained_model_name_or_path", model)
    out = tune(dataset, tmp_path / "out", *options)
    rows = [json.loads(line) for line in (out / "training_log.jsonl").open()]
    assert len(rows) == 6 and all(math.isfinite(row["loss"]) for row in rows)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--snr_gamma 0 --p2_gamma 0", "snr_gamma 0.0: give a positive number"),
        ("--adam_beta2 1", "adam_beta2 1.0: give 0 to below 1"),
        ("--adam_weight_decay -1", "adam_weight_decay -1.0"),
        ("--affine_translate 1", "affine_translate 1.0: give 0 to below 1"),
        ("--affine_scale -0.1", "affine_scale -0.1: give 0 to below 1"),
        ("--affine_degrees -3", "affine_degrees -3.0"),
        ("--learning_rate nan", "learning_rate: expected float, got nan"),
        ("--vae_train_steps 0", "vae_train_steps 0: give positive numbers"),
        ("--vae_block_out_channels 16 24", "vae_block_out_channels 16 24: give multiples of"),
        ("--unet_block_out_channels 0", "unet_block_out_channels 0: give positive numbers"),
        ("--text_hidden_size 30", "text_hidden_size 30: give a multiple of"),
        ("--vae_kl_weight -1", "vae_kl_weight -1.0: give 0 or"),
    ],
)
def test_settings_that_cannot_work_are_refused(dataset, tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        tune(dataset, tmp_path / "out", *options.split())
    assert not (tmp_path / "out").exists()


def test_an_autoencoder_needs_no_warm_up(dataset, tmp_path):
    assert dataclasses.replace(FromScratchConfig(), vae_warmup_steps=0).vae_warmup_steps == 0
    out = tune(dataset, tmp_path / "out", "--from_scratch", "--vae_warmup_steps", 0)
    assert (out / "model_index.json").is_file()
