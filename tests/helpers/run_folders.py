"""Run folders as the training commands write them, for tests of tables."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

import parse_logs
from expansion.metrics.classification import measured
from expansion.metrics.predictions import Predictions


def row_of(lines: list[str], name: str) -> str:
    """The one table line of that row, single-spaced."""
    found = [" ".join(line.split()) for line in lines if line.startswith(f"{name} ")]
    assert len(found) == 1, f"{len(found)} rows {name!r} in {lines}"
    return found[0]


def notes_of(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("note: ")]


@pytest.fixture
def write_run(tmp_path):
    """Function that writes `<tmp>/<folder>/results.yaml`; a text is written as it is."""

    def write(folder: str, content: dict | str) -> str:
        (tmp_path / folder).mkdir(parents=True)
        path = tmp_path / folder / "results.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(path)

    return write


@pytest.fixture
def write_arm(write_run):
    """Function that writes the runs of one arm as train_original.py and train_expand.py do."""

    def write(arm: str, last: list[float], **changes) -> None:
        for seed, accuracy in enumerate(last, start=1):
            facts = {
                "last_accuracy": accuracy,
                "best_accuracy": accuracy + seed,
                "steps": 300,
                "arm": arm,
                "dataset": "digits",
                "seed": seed,
                "num_real": 20,
                "num_generated": 0 if arm == "Original" else 200,
                "num_test": 15,
                "training_images": "20 images, content e1d3",
                "test_images": "15 images, content 2a7f",
                "arch": "resnet10_tiny",
                "pretrained": False,
                "lr": 0.1,
                **changes,
            }
            exp = "" if arm == "Original" else f"_{arm}"
            start = "pretrained" if facts["pretrained"] else "unpretrained"
            folder = f"{facts['arch']}_{start}{exp}_lr{facts['lr']:g}"
            write_run(f"{facts['dataset']}/{folder}/seed{facts['seed']}", facts)

    return write


@pytest.fixture
def two_arms(write_arm):
    """Original: last 70, 74 and best 71, 76. gen_10x: last 80, 90 and best 81, 92."""
    write_arm("Original", [70.0, 74.0])
    write_arm("gen_10x", [80.0, 90.0])


@pytest.fixture
def table(tmp_path, capsys):
    """Function that runs --table on the temporary folder and returns the lines it prints."""

    def run(*arguments: str) -> list[str]:
        parse_logs.main([str(tmp_path), "--table", *arguments])
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def write_predicted(write_arm, tmp_path):
    """Function that writes runs with predictions: `hits` holds one pattern of 0 and 1 per seed.

    They are of 3 classes; the confidence depends on `arm`, the seed and the image.
    """

    def write(arm: str, hits: list[list[int]], seeds: list[int] | None = None, **changes) -> None:
        for seed, pattern in zip(seeds or range(1, len(hits) + 1), hits, strict=True):
            labels = np.arange(len(pattern)) % 3
            chosen = np.where(np.array(pattern) == 1, labels, (labels + 1) % 3)
            rng = np.random.default_rng([seed, len(arm)])
            confidence = rng.uniform(0.5, 1, (len(pattern), 1))
            rows = np.where(chosen[:, None] == np.arange(3), confidence, (1 - confidence) / 2)
            names = tuple(f"test/{i}.png" for i in range(len(pattern)))
            given = Predictions(names, labels, rows.astype(np.float32), ("a", "b", "c"))
            facts = {"num_test": len(pattern), "seed": seed, **changes}
            facts["test_images"] = changes.get("test_images", f"{len(pattern)} images, content 1")
            write_arm(arm, [measured(given)["last_accuracy"]], **facts)
            pattern = f"resnet10_tiny_*{'' if arm == 'Original' else f'_{arm}'}_lr*/seed{seed}"
            dataset = facts.get("dataset", "digits")
            found = (tmp_path / dataset).glob(pattern)
            run = next(
                path for path in found if (arm == "Original") == ("pretrained_lr" in str(path))
            )
            given.save(run / "predictions.npz")

    return write
