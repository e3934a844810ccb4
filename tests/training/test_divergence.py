"""Formulas at their limits are finite, and trainings stop at a number that is none."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

import train_expand
import train_original
from baselines.labels.clip_labels import clip_labels
from baselines.labels.clip_labels_config import ClipLabelsConfig
from dreamda.self_training.voting import MultiHead
from expansion.classifier.backbones import Classifier
from expansion.classifier.clip import ClipClassifier
from expansion.classifier.recipe import Recipe
from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from expansion.training.curves import RunLog
from expansion.training.divergence import LossWatch, all_finite, remedy
from expansion.training.objectives import Objective
from expansion.training.softmatch import SoftMatch, SoftMatchWeights
from expansion.training.softmatch_config import SoftMatchConfig
from expansion.training.trainer import Trainer
from tests.helpers.expanded_sets import write_set

pytestmark = pytest.mark.slow  # whole trainings

pytestmark = pytest.mark.slow  # whole trainings


def equal_rows(value: float, count: int = 4) -> torch.Tensor:
    return torch.tensor([[value, 1 - value]] * count)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("target", [None, [0.5, 0.5], [1.0, 0.0]])
@pytest.mark.parametrize("value", [0.5, 0.1, 0.7, 1 / 3, 1.0])
def test_images_of_equal_confidence_weigh_fully_step_after_step(momentum, target, value):
    """As on a fresh network; the variance is 0 and (max q - mu)^2 / v was 0 / 0."""
    config = SoftMatchConfig(statistics_momentum=momentum, max_weight=0.5)
    weights = SoftMatchWeights(2, config, None if target is None else torch.tensor(target))
    for _ in range(20):
        assert weights(equal_rows(value)).tolist() == pytest.approx([0.5] * 4, abs=2e-3)


def test_without_variance_what_is_below_the_mean_weighs_nothing():
    """The truncated Gaussian's limit: 1 at and above the mean, 0 below."""
    weights = SoftMatchWeights(2, SoftMatchConfig(), None)
    weights.num_batches, weights.mean, weights.variance = (
        10**9,
        torch.tensor(0.8),
        torch.tensor(0.0),
    )
    weights.config = SoftMatchConfig(statistics_momentum=0.999999)
    (below,), (above,) = weights(equal_rows(0.7, 1)).tolist(), weights(equal_rows(0.9, 1)).tolist()
    assert (below, above) == (0.0, 1.0)


def test_a_clip_model_with_damaged_weights_gives_no_labels(monkeypatch):
    class Damaged:
        def predict(self, records, workers):
            return torch.tensor([[0.2, 0.8], [math.nan, math.nan]])

    monkeypatch.setattr(ClipClassifier, "load", lambda *_, **__: Damaged())
    run = SimpleNamespace(
        prompt_names=(), accelerator=Accelerator(), recipe=SimpleNamespace(num_workers=0)
    )
    with pytest.raises(InputError, match="probabilities that are NaN; .*another --clip_model"):
        clip_labels([], ClipLabelsConfig(), run)


def test_a_class_that_is_never_predicted_divides_by_no_zero():
    weights = SoftMatchWeights(3, SoftMatchConfig(), torch.tensor([0.0, 0.0, 1.0]))
    found = weights(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    assert found.isfinite().all() and weights.align(torch.eye(3)).isfinite().all()


def test_the_mean_of_sure_heads_has_a_finite_logarithm():
    """Their probability of another class is 0 in float32, and its log infinite."""
    module = MultiHead(Classifier("resnet10_tiny", 3, 32), ("weak", "strong"), 0.5).eval()
    for head in module.heads:
        nn.init.zeros_(head.weight)
        head.bias.data = torch.tensor([300.0, 0.0, -300.0])
    log_p = module(torch.zeros(2, 3, 32, 32))
    torch.testing.assert_close(log_p, torch.tensor([[0.0, -300.0, -600.0]] * 2))


@pytest.fixture(scope="module")
def small_set(tmp_path_factory) -> Path:
    """Three classes of noise, 4 training and 3 test images each; unlabelled and generated ones."""
    root, draw = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)

    def noise(*place: str) -> None:
        path = root.joinpath(*place)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (36, 36, 3), dtype=np.uint8)).save(path)

    for name in ("ant", "bee", "cat"):
        for i in range(7):
            noise("noise", "train" if i < 4 else "test", name, f"{i}.png")
            noise("unlabeled", f"{name}{i}.png")
    write_set(
        root / "noise_2x",
        (
            (
                record,
                0,
                f"{record.class_name}/{record.path.stem}_expand_0.png",
                draw.integers(0, 255, (32, 32, 3), dtype=np.uint8),
            )
            for record in load_dataset(str(root / "noise")).records("train")
        ),
    )
    return root


def train(small_set: Path, checkpoints: Path, *options: object) -> None:
    line = f"-d {small_set / 'noise'} --checkpoint_dir {checkpoints} -a resnet10_tiny --seeds 1"
    line += " --image_size 32 --resize_size 36 --workers 0 --batch_size 4 --budget steps"
    line += " --max_train_steps 8 --eval_steps 2"
    words = [*line.split(), *map(str, options)]
    if "--labels" in words:
        train_expand.main([*words, "--expanded_dir", str(small_set / "noise_2x")])
    else:
        train_original.main(words)


def test_a_fresh_network_that_finds_all_images_equally_likely_learns_from_unlabelled_ones(
    small_set,
):
    records = load_dataset(str(small_set / "noise")).records("train")
    recipe = Recipe(arch="resnet10_tiny", image_size=32, resize_size=36, workers=0, batch_size=4)
    objective = SoftMatch(
        records[4:], records[:4], SoftMatchConfig(), recipe, num_classes=3, seed=1
    )
    model = Classifier("resnet10_tiny", 3, 32)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    for batch in objective.batches([4, 4], 0, Accelerator()):
        loss, _ = objective.loss(model, batch, 0.0)
        loss.backward()
        assert loss.item() > math.log(3)  # the unlabelled images count
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


OBJECTIVES = [
    (),
    ("--unlabeled_dir", "unlabeled"),
    ("--labels", "amst"),
    ("--labels", "soft"),
    ("--augment", "mixup"),
    ("--augment", "augmix"),
]


@pytest.mark.parametrize("options", OBJECTIVES, ids=" ".join)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_every_training_of_a_classifier_stops_at_such_a_loss_and_keeps_what_was_before(
    small_set, tmp_path, monkeypatch, options, value
):
    options = [small_set / word if word == "unlabeled" else word for word in options]
    take_step, last = Trainer._step, 4 if "--labels" not in options else 1

    def failing(self, step, batch):
        loss, hits = take_step(self, step, batch)
        return (loss * value if step == last else loss), hits

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", failing)
        with pytest.raises(InputError) as stopped:
            train(small_set, tmp_path, *options)
    expected = f"training has stopped: the loss of step {last + 1} is {value}; the likely cause is "
    assert str(stopped.value).startswith(
        expected + "the learning rate: give a smaller --lr than 0.1"
    )
    assert not list(tmp_path.rglob("results.yaml")) and not list(tmp_path.rglob(".lock"))
    for path in tmp_path.rglob("*.pth.tar"):
        state = torch.load(path, weights_only=True)
        assert state["step"] <= last
        assert all_finite(state["state_dict"].values(), Accelerator())
    train(small_set, tmp_path, *options)  # what was kept can be gone on from
    assert list(tmp_path.rglob("results.yaml"))


def test_a_learning_rate_far_too_large_is_no_result(small_set, tmp_path):
    with pytest.raises(InputError, match=r"step 2 is (nan|inf); .* smaller --lr than 1e\+20"):
        train(small_set, tmp_path, "--lr", 1e20)
    assert not list(tmp_path.rglob("*.pth.tar")) and not list(tmp_path.rglob("results.yaml"))


def test_mixed_precision_is_named_where_it_may_be_the_cause():
    assert "too large for fp16 (give --mixed_precision no)" in remedy("lr", 0.1, "fp16")
    assert "mixed_precision" not in remedy("lr", 0.1)


@pytest.mark.parametrize("part", ["module", "objective"])
def test_what_no_loss_shows_is_found_before_it_is_saved(small_set, tmp_path, monkeypatch, part):
    """A head that no evaluation uses, or an objective's statistics."""
    kept = torch.zeros(2)
    monkeypatch.setattr(Objective, "state_dict", lambda self: {"kept": kept})
    take_step = Trainer._step

    def poisoning(self, step, batch):
        result = take_step(self, step, batch)
        if step == 3 and part == "objective":
            kept[1] = math.nan
        elif step == 3:
            self.module.register_buffer("unused", torch.tensor([1.0, math.inf]))
        return result

    monkeypatch.setattr(Trainer, "_step", poisoning)
    with pytest.raises(InputError, match="the weights after step 4 hold NaN or infinity"):
        train(small_set, tmp_path)
    (path,) = tmp_path.rglob("checkpoint.pth.tar")
    assert torch.load(path, weights_only=True)["step"] == 2


def test_a_checkpoint_that_holds_nan_is_not_gone_on_from(small_set, tmp_path, monkeypatch):
    """Earlier versions saved such ones."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunLog, "write", interrupted)
        train(small_set, tmp_path)
    (path,) = tmp_path.rglob("checkpoint.pth.tar")
    state = torch.load(path, weights_only=True)
    state["state_dict"]["head.bias"][0] = math.nan
    torch.save(state, path)
    with pytest.raises(InputError, match="checkpoint.pth.tar hold NaN or infinity; remove .*seed1"):
        train(small_set, tmp_path)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_weights_that_begin_as_nan_are_refused(small_set, tmp_path):
    state = Classifier("resnet10_tiny", 5, 32).state_dict()
    state["body.0.weight"][0] = math.nan
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="0.weight has values that are not finite"):
        train(small_set, tmp_path, "--pretrained", "--weights", tmp_path / "weights.pth")


def test_a_device_that_must_be_waited_for_is_asked_now_and_then_and_tells_the_first_step():
    watch = LossWatch(Accelerator(), "do this")
    watch.every = 4
    for step in (1, 2, 3):
        watch.note(step, torch.tensor(math.nan if step > 1 else 1.0))
    with pytest.raises(InputError, match="the loss of step 2 is nan; do this"):
        watch.note(4, torch.tensor(1.0))
    watch.note(5, torch.tensor(math.inf))
    with pytest.raises(InputError, match="the loss of step 5 is inf"):
        watch.look()
    watch.look()  # nothing new


@pytest.mark.parametrize(
    "options, words",
    [
        ("--lr 0", "lr 0.0: give a positive number"),
        ("--lr -0.1", "lr -0.1: give a positive number"),
        ("--lr nan", "lr: expected float, got nan"),
        ("--lr inf", "lr: expected float, got inf"),
        ("--momentum 1", "momentum 1.0: give 0 to below 1"),
        ("--momentum -0.5 --no-nesterov", "momentum -0.5: give 0 to below 1"),
        ("--weight_decay -1", "weight_decay -1.0: give 0 or a positive number"),
        ("--rotation -1", "rotation -1.0: give 0 or a positive number"),
        ("--workers -1", "workers -1: give 0 or a positive number"),
        ("--labels amst --mc_passes 1", "mc_passes 1: one sample has no variance"),
        ("--labels amst --ortho_weight -1", "ortho_weight -1.0: give 0 or more"),
        ("--labels amst --consistency_weight -1", "consistency_weight -1.0: give 0 or more"),
    ],
)
def test_settings_that_cannot_train_are_refused_before_anything_is_written(
    small_set, tmp_path, options, words
):
    with pytest.raises(InputError, match=words):
        train(small_set, tmp_path, *options.split())
    assert not list(tmp_path.iterdir())
