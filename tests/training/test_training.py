"""Training of classifiers: equations by hand, interruption, what runs leave on disk."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import train_expand
import train_original
from expansion.classifier import transforms
from expansion.classifier.backbones import load_classifier
from expansion.classifier.recipe import Recipe
from expansion.classifier.transforms import squash
from expansion.common.config import load_yaml
from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from expansion.images import pixel_cache
from expansion.images.pixel_cache import PixelCache
from expansion.images.variants import Variant, variant_name
from expansion.store.manifest import MadeWith
from expansion.store.writer import ExpansionWriter
from expansion.training.objectives import Supervised
from expansion.training.trainer import Trainer

STEPS = ("--budget", "steps", "--max_train_steps", 6, "--eval_steps", 2)
EPOCHS = ("--epochs", 2)


@pytest.fixture(scope="module")
def small_set(tmp_path_factory) -> Path:
    """Three classes of coloured noise: 6 training and 5 test images each."""
    root = tmp_path_factory.mktemp("small") / "noise"
    rng = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee", "cat")):
        for i in range(11):
            noise = rng.integers(0, 200, (36, 36, 3), dtype=np.uint8)
            noise[..., label] //= 2
            folder = root / ("train" if i < 6 else "test") / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).save(folder / f"{i}.png")
    return root


def train(small_set: Path, checkpoints: Path, *options: object) -> Path:
    line = (
        f"-d {small_set} --checkpoint_dir {checkpoints} -a resnet10_tiny --lr 0.05 --image_size 32"
    )
    line += " --resize_size 36 --workers 0 --seeds 1 --batch_size 4"
    train_original.main([*line.split(), *map(str, options)])
    return checkpoints / "noise" / "resnet10_tiny_unpretrained_lr0.05" / "seed1"


@pytest.fixture(scope="module")
def finished(small_set, tmp_path_factory) -> Path:
    return train(small_set, tmp_path_factory.mktemp("finished"), *STEPS)


def checkpoint(run_dir: Path, name: str = "checkpoint.pth.tar") -> dict:
    return torch.load(run_dir / name, weights_only=True)


def assert_same_run(first: Path, second: Path) -> None:
    ours, theirs = checkpoint(first), checkpoint(second)
    assert ours["history"] == theirs["history"]
    assert all(
        torch.equal(value, theirs["state_dict"][key]) for key, value in ours["state_dict"].items()
    )
    momenta = [state["optimizer"]["state"][0]["momentum_buffer"] for state in (ours, theirs)]
    assert torch.equal(*momenta)
    results = [load_yaml(folder / "results.yaml").values for folder in (first, second)]
    for values in results:
        values.pop("seconds")
    assert results[0] == results[1]


@pytest.mark.slow
def test_adamw_trains_and_goes_on_where_it_stopped(small_set, tmp_path, monkeypatch):
    options = (*STEPS, "--optimizer", "adamw", "--lr", 0.01, "--lr_warmup", 0.5)
    folders = [tmp_path / "whole", tmp_path / "stopped"]
    train(small_set, folders[0], *options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, Trainer, 3)
        train(small_set, folders[1], *options)
    train(small_set, folders[1], *options)
    ours, theirs = (checkpoint(next(folder.rglob("seed1"))) for folder in folders)
    assert ours["history"] == theirs["history"]
    averages = [state["optimizer"]["state"][0]["exp_avg_sq"] for state in (ours, theirs)]
    assert torch.equal(*averages) and averages[0].abs().max() > 0
    assert [row["lr"] for row in ours["history"]] == pytest.approx(
        [0.00622, 0.005, 0.00067], abs=1e-5
    )


@pytest.mark.parametrize(
    "options, words",
    [
        ("--momentum 0", "momentum 0 leaves nothing to Nesterov; add --no-nesterov"),
        ("--label_smoothing 1", "label_smoothing 1.0: give 0 to below 1"),
        ("--lr_warmup 1", "lr_warmup 1.0: give 0 to below 1"),
        ("--optimizer adamw --lr 0.1", "lr 0.1 is far too much for AdamW"),
    ],
)
def test_a_wrong_optimiser_is_refused_before_anything_is_written(
    small_set, tmp_path, options, words
):
    with pytest.raises(InputError, match=words):
        train(small_set, tmp_path, *options.split())
    assert not list(tmp_path.iterdir())


def interrupt(monkeypatch, trainer_class: type, after: int) -> None:
    """Ctrl-C in `trainer_class` after this many steps."""
    step, done = trainer_class._step, []

    def interrupted(self, *arguments):
        done.append(1)
        if len(done) > after:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(trainer_class, "_step", interrupted)


@pytest.mark.slow
@pytest.mark.parametrize("options, after", [(STEPS, 1), (STEPS, 5), (EPOCHS, 7)])
def test_an_interrupted_run_goes_on_to_exactly_the_same_result(
    small_set, finished, tmp_path, monkeypatch, options, after
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, Trainer, after)
        train(small_set, tmp_path / "a", *options)
    resumed = train(small_set, tmp_path / "a", *options)
    assert_same_run(
        resumed, finished if options == STEPS else train(small_set, tmp_path / "b", *options)
    )


@pytest.mark.slow
def test_workers_change_no_result(small_set, finished, tmp_path):
    assert_same_run(train(small_set, tmp_path, *STEPS, "--workers", 2), finished)


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["memory", "none"])
def test_whether_decoded_images_are_kept_changes_no_result(
    small_set, finished, tmp_path, monkeypatch, kept
):
    five_images = 2 * 5 * pixel_cache.image_bytes(36)
    monkeypatch.setattr(pixel_cache, "free_memory", lambda: five_images)
    monkeypatch.setattr(transforms, "_pixel_cache", lambda side: PixelCache(side, squash(side)))
    options = ("--image_cache", kept, "--workers", 1)
    assert_same_run(train(small_set, tmp_path, *STEPS, *options), finished)
    train(small_set, tmp_path, *STEPS)  # not refused: it is the same run


@pytest.mark.slow
@pytest.mark.parametrize("old", ["image_cache: auto", "image_cache: disk", "image_cache_gb: 20"])
def test_a_begun_run_goes_on_under_settings_of_the_disk_cache(
    small_set, finished, tmp_path, monkeypatch, caplog, old
):
    (tmp_path / "old.yaml").write_text(f"{old}\n")
    options = (*STEPS, "--config", tmp_path / "old.yaml")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, Trainer, 3)
        train(small_set, tmp_path / "runs", *STEPS)
    assert_same_run(train(small_set, tmp_path / "runs", *options), finished)
    assert f"{old.split(':')[0]}: " in caplog.text and "is no longer a setting" in caplog.text


def test_the_disk_cache_is_refused_on_the_command_line(small_set, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(small_set, tmp_path, "--image_cache", "disk")
    assert "choose from" in capsys.readouterr().err


@pytest.mark.slow
def test_a_compiled_run_saves_plain_weights_and_goes_on(small_set, finished, tmp_path, monkeypatch):
    calls, compiled = [], torch.compile

    def without_a_compiler(model):
        calls.append(model)
        return compiled(model, backend="eager")

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, Trainer, 3)
        train(small_set, tmp_path, *STEPS, "--compile")
    run_dir = train(small_set, tmp_path, *STEPS, "--compile")
    found, plain = checkpoint(run_dir)["state_dict"], checkpoint(finished)["state_dict"]
    assert len(calls) == 2 and list(found) == list(plain)
    assert all(torch.allclose(value, plain[key], atol=1e-4) for key, value in found.items())
    with pytest.raises(InputError, match="compile: True there, False now"):
        train(small_set, tmp_path, *STEPS)


def test_compiling_without_a_compiler_is_refused(small_set, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InputError, match="--compile needs a C\\+\\+ compiler; install g\\+\\+"):
        train(small_set, tmp_path, *STEPS, "--compile")


@pytest.mark.slow
def test_a_training_step_reads_no_number_from_the_device(small_set, tmp_path, monkeypatch):
    read, step = [], Trainer._step

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            if function is torch.ops.aten._local_scalar_dense.default:
                read.append(function)
            return function(*arguments, **(keywords or {}))

    def watched(self, *arguments):
        with Watch():
            return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", watched)
    train(small_set, tmp_path, *STEPS)
    assert not read
    with Watch():
        torch.ones(1).item()
    assert len(read) == 1


def test_results_say_what_was_reached_and_with_what(small_set, finished):
    values = load_yaml(finished / "results.yaml").values
    expected = {
        "arm": "Original",
        "dataset": "noise",
        "seed": 1,
        "steps": 6,
        "lr": 0.05,
        "num_test": 15,
    }
    expected |= {"num_real": 18, "num_generated": 0, "arch": "resnet10_tiny", "batch_size": 4}
    assert {key: values[key] for key in expected} == expected
    assert "subset_seed" not in values  # no image was drawn or held out
    history = [row["test_accuracy"] for row in checkpoint(finished)["history"]]
    assert (values["best_accuracy"], values["last_accuracy"]) == (max(history), history[-1])
    assert checkpoint(finished, "model_best.pth.tar")["step"] == 2 + 2 * history.index(max(history))
    for name, key in (
        ("model_best.pth.tar", "best_accuracy"),
        ("checkpoint.pth.tar", "last_accuracy"),
    ):
        model, correct = load_classifier(finished / name), 0
        for record in load_dataset(str(small_set)).records(
            "test"
        ):  # 36 pixels, of which the inner 32
            pixels = torch.from_numpy(np.asarray(Image.open(record.path))[2:34, 2:34] / 255).float()
            pixels = (pixels - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
                [0.229, 0.224, 0.225]
            )
            correct += int(model(pixels.permute(2, 0, 1)[None]).argmax()) == record.label
        assert values[key] == pytest.approx(100 * correct / 15)


def test_the_log_has_the_papers_format_and_the_rate_in_use(finished):
    first, header, *lines = (finished / "log.txt").read_text().splitlines()
    assert first.startswith("Namespace(") and "lr=0.05" in first
    assert header.split("\t")[:3] == ["Epoch", "Learning Rate", "Train Loss"] and header.endswith(
        "Acc.\t"
    )
    rows = [line.split("\t") for line in lines if not line.startswith("The best performance:")]
    assert all(len(row) == 7 and row[6] == "" for row in rows)
    assert all(re.fullmatch(r"\d+\.\d{6}", cell) for row in rows for cell in row[:6])
    # steps 2, 4 and 6 of 6 ran at 0.05 (1 + cos(pi i / 6)) / 2 for i = 1, 3, 5; 18 images, batch 4
    assert [row[1] for row in rows] == ["0.046651", "0.025000", "0.003349"]
    assert [float(row[0]) for row in rows] == pytest.approx([2 / 4.5, 4 / 4.5, 6 / 4.5], abs=1e-6)
    accuracies = [float(row[5]) for row in rows]
    records = [a for i, a in enumerate(accuracies) if a > max(accuracies[:i], default=0)]
    best = [float(line.split(":")[1]) for line in lines if line.startswith("The best performance:")]
    assert best == pytest.approx(records, abs=1e-6)
    with Image.open(finished / "curves.png") as curves:
        assert curves.convert("L").getextrema() == (0, 255)


def test_a_done_run_is_not_repeated_and_other_settings_are_refused(
    small_set, finished, monkeypatch
):
    monkeypatch.setattr(Trainer, "__init__", None)
    before = {path.name: path.stat().st_mtime_ns for path in finished.iterdir()}
    checkpoints = finished.parents[2]
    assert train(small_set, checkpoints, *STEPS) == finished
    with pytest.raises(InputError, match="momentum: 0.9 there, 0.5 now"):
        train(small_set, checkpoints, *STEPS, "--momentum", 0.5)
    with pytest.raises(InputError, match="max_train_steps: 6 there, 9 now"):
        train(small_set, checkpoints, *STEPS, "--max_train_steps", 9)
    assert {path.name: path.stat().st_mtime_ns for path in finished.iterdir()} == before


def write_expansion(small_set: Path, output: Path, config: str = "0") -> None:
    """Two flat images in place of variants of every training image."""
    made_with = MadeWith("m", "m", config, 1)
    output.mkdir()
    with ExpansionWriter(output, made_with) as writer:
        for record in load_dataset(str(small_set)).records("train"):
            for k in range(2):
                stem = f"{record.class_name}/{record.path.stem}"
                variant = Variant(record, k, variant_name(stem, k), "p")
                pixels = np.full((32, 32, 3), 80 * record.label + int(config), np.uint8)
                writer.write(pixels, variant, {})


def expanded_run(small_set: Path, output: Path, checkpoints: Path, *options: object) -> dict:
    line = f"-d {small_set} --expanded_dir {output} --checkpoint_dir {checkpoints} --workers 0"
    line += " --seeds 1 -a resnet10_tiny --image_size 32 --resize_size 36"
    line += " --budget steps --max_train_steps 2"
    train_expand.main([*line.split(), *map(str, options)])
    (results,) = checkpoints.rglob("results.yaml")
    return load_yaml(results).values


@pytest.mark.slow
def test_neither_held_out_images_nor_their_variants_are_trained_on(
    small_set, tmp_path, monkeypatch
):
    seen, build = {}, Trainer.__init__

    def note(self, run, objective):
        seen.update(train=objective.records, val=run.val_records)
        build(self, run, objective)

    monkeypatch.setattr(Trainer, "__init__", note)
    write_expansion(small_set, tmp_path / "set")
    values = expanded_run(small_set, tmp_path / "set", tmp_path / "runs", "--val_fraction", 0.34)
    held_out = {record.file_name for record in seen["val"]}
    real = {record.file_name for record in seen["train"] if record.source is None}
    sources = [record.source for record in seen["train"] if record.source is not None]
    assert len(held_out) == 6 and len(real) == 12 and len(sources) == 24
    assert not held_out & real and set(sources) == real
    assert all(["ant", "bee", "cat"][r.label] == r.class_name for r in seen["train"])
    assert (values["num_real"], values["num_generated"]) == (12, 24)
    assert {"val_accuracy", "selected_accuracy"} <= set(values)


@pytest.mark.slow
def test_a_set_that_was_made_anew_with_other_settings_is_not_taken_for_the_old_one(
    small_set, tmp_path
):
    write_expansion(small_set, tmp_path / "first", config="0")
    write_expansion(small_set, tmp_path / "second", config="1")
    expanded_run(small_set, tmp_path / "first", tmp_path / "runs", "--exp", "same")
    with pytest.raises(InputError, match="other settings"):
        expanded_run(small_set, tmp_path / "second", tmp_path / "runs", "--exp", "same")


def test_randaugment_changes_what_the_network_sees_of_real_and_generated_images(small_set):
    records = load_dataset(str(small_set)).records("train")
    recipe = {"image_size": 32, "resize_size": 36, "workers": 0, "batch_size": 6}
    first, again, other = (
        next(
            iter(
                Supervised(records, Recipe(**recipe, augment=augment), 1, 3).batches(
                    [6], 0, Accelerator()
                )
            )
        )
        for augment in ("default", "default", "randaugment")
    )
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], other[1])
    changed = (first[0] - other[0]).abs().amax(dim=(1, 2, 3)) > 0.1
    assert changed.sum() >= 4
