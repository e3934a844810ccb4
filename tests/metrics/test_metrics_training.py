"""Trainings keep their predictions, measure them, and say how generated images were made."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import expansion.training.trainer as training
import parse_logs
import train_expand
import train_original
from expansion.common.config import load_yaml
from expansion.data.datasets import load_dataset
from expansion.metrics.measures import accuracy, per_class_recall
from expansion.metrics.predictions import Predictions

LINE = "-a resnet10_tiny --image_size 32 --resize_size 32 --workers 0 --seeds 1 --batch_size 4"
LINE += " --budget steps --max_train_steps 4 --eval_steps 2"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Three classes of coloured noise: 4 training and 3 test images each."""
    root = tmp_path_factory.mktemp("noise") / "photos"
    rng = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee", "cat")):
        for i in range(7):
            noise = rng.integers(0, 200, (32, 32, 3), dtype=np.uint8)
            noise[..., label] //= 2
            folder = root / ("train" if i < 4 else "test") / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).save(folder / f"{i}.png")
    return root


def train(photos: Path, checkpoints: Path, *options: object) -> Path:
    line = f"-d {photos} --checkpoint_dir {checkpoints} {LINE}"
    train_original.main([*line.split(), *map(str, options)])
    return checkpoints / "photos" / "resnet10_tiny_unpretrained_lr0.1" / "seed1"


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory) -> Path:
    return train(photos, tmp_path_factory.mktemp("finished"))


def test_predictions_are_those_of_the_test_set_after_the_last_step(photos, finished):
    given = Predictions.load(finished / "predictions.npz")
    records = load_dataset(str(photos)).records("test")
    assert given.file_names == tuple(record.file_name for record in records)
    assert given.labels.tolist() == [record.label for record in records]
    assert given.class_names == ("ant", "bee", "cat")
    results = load_yaml(finished / "results.yaml").values
    assert accuracy(given) == results["last_accuracy"]
    assert per_class_recall(given).mean() == pytest.approx(results["balanced_accuracy"])
    assert {"macro_f1", "auroc", "calibration_error"} <= set(results)
    state = torch.load(finished / "checkpoint.pth.tar", weights_only=True)
    assert state["history"][-1]["test_accuracy"] == accuracy(given)


@pytest.mark.slow
def test_an_interrupted_run_keeps_the_same_predictions(photos, finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def stop(*_):
            raise KeyboardInterrupt

        patch.setattr(training, "measured", stop)  # after the last checkpoint
        train(photos, tmp_path)
    run = train(photos, tmp_path)
    for name in ("predictions.npz", "options.yaml"):
        if name.endswith("npz"):
            assert (run / name).read_bytes() == (finished / name).read_bytes()
    results = [load_yaml(folder / "results.yaml").values for folder in (run, finished)]
    for values in results:
        values.pop("seconds")
    assert results[0] == results[1]


@pytest.mark.slow
def test_a_run_that_an_older_version_had_all_but_finished_gets_results(photos, tmp_path):
    run = train(photos, tmp_path)
    for name in ("results.yaml", "predictions.npz"):
        (run / name).unlink()
    train(photos, tmp_path)
    results = load_yaml(run / "results.yaml").values
    assert "last_accuracy" in results and "auroc" not in results


@pytest.mark.parametrize(("num_processes", "num_images"), [(1, 5), (2, 5), (3, 5), (4, 3), (2, 4)])
def test_predictions_of_several_processes_come_in_the_order_of_the_test_set(
    num_processes, num_images, tmp_path
):
    """Rank r holds images r, r + processes, ...; the last shares are padded or empty."""
    rows = torch.rand(num_images, 3).softmax(dim=1)
    shares = [rows[rank::num_processes] for rank in range(num_processes)]
    longest = max(map(len, shares))
    padded = [torch.cat([s, torch.zeros(longest - len(s), 3)]) for s in shares]

    class FirstOfSeveral:
        device, is_main_process = torch.device("cpu"), True

        def __init__(self):
            self.num_processes = num_processes

        def pad_across_processes(self, tensor):
            assert torch.equal(tensor, shares[0])
            return padded[0]

        def gather(self, tensor):
            return torch.cat(padded)

    records = [SimpleNamespace(file_name=f"{i}.png", label=i % 3) for i in range(num_images)]
    run = SimpleNamespace(
        accelerator=FirstOfSeveral(), test_records=records, class_names="abc", run_dir=tmp_path
    )
    training.keep_predictions(run, list(shares[0].split(2)))
    given = Predictions.load(tmp_path / "predictions.npz")
    assert np.array_equal(given.probabilities, rows.numpy())
    assert given.file_names == tuple(f"{i}.png" for i in range(num_images))


def expanded(photos: Path, output: Path) -> None:
    """One flat image in place of a variant of every training image."""
    for record in load_dataset(str(photos)).records("train"):
        name = f"{record.class_name}/{record.path.stem}_expand_0.png"
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (80 * record.label, 0, 0)).save(output / name)
        row = {"file_name": name, "class": record.class_name, "source": record.file_name}
        row |= {"variant": 0, "label": record.label}
        with (output / "manifest.0-of-1.1.jsonl").open("a") as manifest:
            manifest.write(json.dumps(row) + "\n")


@pytest.mark.slow
def test_settings_of_the_set_are_recorded_beside_the_identity(photos, tmp_path, capsys):
    expanded(photos, tmp_path / "set")
    settings = "method: img2img\nsettings: {strength: 0.25, eta: null}\nseed: 42\nclasses: 1a\n"
    (tmp_path / "set" / "expansion.yaml").write_text(settings)
    train(photos, tmp_path / "runs")
    line = (
        f"-d {photos} --checkpoint_dir {tmp_path / 'runs'} {LINE} --expanded_dir {tmp_path / 'set'}"
    )
    train_expand.main(line.split())
    (run,) = tmp_path.glob("runs/photos/*_set_lr0.1/seed1")
    results = load_yaml(run / "results.yaml").values
    expected = {"method": "img2img", "seed": 42, "strength": 0.25, "eta": None}
    folder = results["expanded_set"].pop("folder")  # seen from the run's
    assert results["expanded_set"] == expected
    assert (run / folder).resolve() == (tmp_path / "set").resolve()
    assert "expanded_set" not in load_yaml(run / "options.yaml").values
    # Information alone: without it the run is the same run.
    (tmp_path / "set" / "expansion.yaml").unlink()
    train_expand.main(line.split())
    capsys.readouterr()
    parse_logs.main([str(tmp_path / "runs"), "--table", "--columns", "strength"])
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line.split() for line in lines if line.startswith("set ")]
    assert "0.25" in row and "9" in row and ("(1" in row)
