"""A running mean of weights is evaluated and saved in place of the last weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

import train_original
from expansion.classifier.backbones import Classifier
from expansion.classifier.recipe import Recipe
from expansion.common.config import deciding, load_yaml
from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from expansion.training.softmatch_config import SoftMatchConfig
from expansion.training.trainer import Trainer, eval_loader, evaluate

pytestmark = pytest.mark.slow  # whole trainings

STEPS, DECAY = 6, 0.7


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """`<root>/set`, a dataset of noise, and `<root>/more`, unlabelled images."""
    folder, draw = tmp_path_factory.mktemp("ema"), np.random.default_rng(0)
    places = [f"set/{split}/{name}" for split in ("train", "test") for name in ("ant", "bee")]
    for place in (*places, "more"):
        (folder / place).mkdir(parents=True)
        for i in range(4):
            pixels = draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / place / f"{i}.png")
    return folder


def train(root: Path, checkpoints: Path, *options: object) -> Path:
    line = f"-d {root / 'set'} --unlabeled_dir {root / 'more'} --checkpoint_dir {checkpoints}"
    line += (
        " -a resnet10_tiny --image_size 16 --resize_size 16 --workers 0 --batch_size 4 --seeds 1"
    )
    line += f" --budget steps --max_train_steps {STEPS} --eval_steps 2 --lr 0.05"
    train_original.main([*line.split(), *map(str, options)])
    (results,) = checkpoints.rglob("results.yaml")
    return results.parent


def saved(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pth.tar", weights_only=True)


@pytest.fixture
def live(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """State of the network after every step."""
    found = []
    step = Trainer._step

    def noting(self, number, batch):
        done = step(self, number, batch)
        found.append({k: v.clone() for k, v in self.classifier.state_dict().items()})
        return done

    monkeypatch.setattr(Trainer, "_step", noting)
    return found


def test_the_saved_weights_are_the_running_mean_and_the_batch_statistics_the_last(
    root, tmp_path, live
):
    state = saved(train(root, tmp_path, "--ema_decay", DECAY))["state_dict"]
    parameters = {name for name, _ in Classifier("resnet10_tiny", 2, 16).named_parameters()}
    assert len(live) == STEPS and parameters < set(state)
    for name, value in state.items():
        expected = live[0][name]
        for later in live[1:]:
            mean = DECAY * expected + (1 - DECAY) * later[name]
            expected = mean if name in parameters else later[name]
        assert torch.allclose(value, expected, atol=1e-6), name
    assert not torch.allclose(state["head.weight"], live[-1]["head.weight"])


def test_the_trained_weights_are_those_without_a_mean(root, tmp_path, live):
    train(root, tmp_path / "mean", "--ema_decay", DECAY)
    train(root, tmp_path / "plain")
    assert all(torch.equal(live[STEPS - 1][name], value) for name, value in live[-1].items())


def test_the_evaluated_weights_are_the_saved_ones(root, tmp_path):
    state = saved(train(root, tmp_path, "--ema_decay", DECAY))
    classifier = Classifier("resnet10_tiny", 2, 16)
    classifier.load_state_dict(state["state_dict"])
    recipe = Recipe(arch="resnet10_tiny", image_size=16, resize_size=16, workers=0)
    test = eval_loader(load_dataset(str(root / "set")).records("test"), recipe, Accelerator())
    loss, accuracy = evaluate(classifier, test, Accelerator())
    row = state["history"][-1]
    assert row["test_loss"] == pytest.approx(loss, abs=1e-5) and row["test_accuracy"] == accuracy


def test_a_stopped_run_goes_on_to_the_same_mean(root, tmp_path, monkeypatch):
    options = ("--ema_decay", DECAY)
    whole = saved(train(root, tmp_path / "whole", *options))
    step = Trainer._step

    def stopping(self, number, batch):
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(root, tmp_path / "stopped", *options)
    resumed = saved(train(root, tmp_path / "stopped", *options))
    for part in ("state_dict", "module", "average"):
        assert set(whole[part]) == set(resumed[part])
        assert all(torch.equal(value, resumed[part][name]) for name, value in whole[part].items())
    assert whole["history"] == resumed["history"]


def test_runs_tell_by_name_and_settings_that_they_take_a_mean(root, tmp_path):
    folder = train(root, tmp_path / "mean", "--ema_decay", DECAY)
    assert folder.parent.name == "resnet10_tiny_unpretrained_softmatch_ema0.7_lr0.05"
    assert load_yaml(folder / "results.yaml").values["learning"]["ema_decay"] == DECAY


def test_without_a_mean_checkpoints_and_settings_are_what_they_were(root, tmp_path):
    """So runs that were begun before there was one go on."""
    folder = train(root, tmp_path)
    assert "average" not in saved(folder) and saved(folder)["module"] == {}
    assert "ema_decay" not in load_yaml(folder / "options.yaml").values["learning"]
    assert "ema_decay" not in deciding(SoftMatchConfig())
    assert deciding(SoftMatchConfig(ema_decay=0.9))["ema_decay"] == 0.9


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_that_keeps_the_first_weights_for_ever_is_refused(decay):
    with pytest.raises(InputError, match=f"ema_decay {decay}: give 0 to below 1"):
        SoftMatchConfig(ema_decay=decay)
