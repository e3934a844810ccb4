"""The toy objective of CONTRIBUTING.md: images that are recognised anyway count less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import train_expand
from expansion.common.config import load_yaml, option
from expansion.common.errors import InputError, require
from expansion.training.objectives import Run, Supervised, TrainingImages
from expansion.training.options import Learning
from tests.helpers.noise_runs import train

# baselines/focal_config.py: the settings. It imports no torch, so that --help is quick.


@dataclass(frozen=True, kw_only=True)
class FocalConfig:
    """Settings of the objective."""

    gamma: float = option(2.0, "how much less recognised images count; 0: all count the same")

    def __post_init__(self):
        require(self.gamma >= 0, f"gamma {self.gamma}: give 0 or more")


# baselines/focal.py: the objective.


class Focal(Supervised):
    """Cross-entropy, in which an image of which p is its label's probability weighs (1 - p)^gamma.

    Lin et al., arXiv 1708.02002, Eq. 4.
    """

    gamma: float

    @classmethod
    def prepare(cls, images: TrainingImages, config: FocalConfig, run: Run) -> Focal:
        objective: Any = super().prepare(images, config, run)
        objective.gamma = config.gamma
        return objective

    def loss(
        self, model: nn.Module, batch: Sequence[Tensor], progress: float
    ) -> tuple[Tensor, Tensor]:
        pixels, labels = batch
        logits = model(pixels)
        losses = F.cross_entropy(logits, labels, reduction="none")
        weights = (1 - (-losses).exp()) ** self.gamma
        return (weights * losses).mean(), logits.argmax(dim=1) == labels

    def results(self) -> dict[str, float]:
        return {"gamma": self.gamma}


# train_expand.py: a line in OBJECTIVES, "focal": Learning("baselines.focal_config:FocalConfig",
# "baselines.focal:Focal").


@pytest.fixture(autouse=True)
def registered(monkeypatch) -> None:
    line = Learning(f"{__name__}:FocalConfig", f"{__name__}:Focal")
    monkeypatch.setitem(train_expand.OBJECTIVES, "focal", line)


def test_a_run_learns_by_the_objective(dataset, tmp_path):
    folder = train(dataset, tmp_path, "--labels", "focal", "--gamma", 0.5)
    results = load_yaml(folder / "results.yaml").values
    assert (results["labels"], results["gamma"], results["steps"]) == ("focal", 0.5, 8)


def test_images_that_are_recognised_weigh_less_by_hand():
    objective = Focal.__new__(Focal)
    objective.gamma = 1.0
    probabilities = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    loss, hits = objective.loss(torch.log, [probabilities, torch.tensor([0, 1])], 0.0)
    # 0.5 * -log 0.5 and 0.25 * -log 0.75
    assert loss.item() == pytest.approx((0.5 * 0.693147 + 0.25 * 0.287682) / 2, abs=1e-5)
    assert hits.tolist() == [True, True]


def test_the_option_is_shown_and_checked(dataset, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_expand.main(["--labels", "focal", "--help", "all"])
    assert "--gamma" in capsys.readouterr().out
    with pytest.raises(InputError, match="gamma -1.0: give 0 or more"):
        train(dataset, tmp_path, "--labels", "focal", "--gamma", -1)
