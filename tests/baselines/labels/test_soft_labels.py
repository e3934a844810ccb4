"""Soft labels: formulas by hand, when labels change, budgets, resumed runs."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

import train_expand
from baselines.labels.label_results import label_results
from baselines.labels.soft_labels import (
    LabelMemory,
    SoftLabels,
    mixup,
    predict_all,
    soft_label_loss,
)
from baselines.labels.soft_labels_config import SoftLabelsConfig
from expansion.classifier.backbones import load_classifier
from expansion.classifier.recipe import Recipe, Schedule, split_budget
from expansion.classifier.transforms import eval_transform, network_input
from expansion.common.config import load_yaml
from expansion.common.errors import InputError
from expansion.common.seeding import stable_seed
from expansion.data.batches import stream_indices
from expansion.images.records import ImageRecord
from expansion.training.objectives import TrainingImages
from tests.helpers.noise_runs import checkpoint, interrupt, records, train

SMALL = Recipe(arch="resnet10_tiny", image_size=32, resize_size=36, workers=0, batch_size=4)
STEPS = dataclasses.replace(SMALL, budget="steps", max_train_steps=8)


SOFT = ("--labels", "soft", "--warmup_share", 0.25, "--min_labeled", 0.5)


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory) -> Path:
    return train(dataset, tmp_path_factory.mktemp("finished"), *SOFT)


# Soft labels: formulas.


@pytest.mark.parametrize(
    "prior_weight, entropy_weight, expected",
    [  # p = (0.9, 0.1), (0.5, 0.5); y = (0.8, 0.2), (0, 1); mean p = (0.7, 0.3)
        (0.0, 0.0, 0.618976),  # (-0.8 ln 0.9 - 0.2 ln 0.1 + ln 2) / 2 = (0.544805 + 0.693147) / 2
        (1.0, 0.0, 0.618976 + 0.780324),  # -(ln 0.7 + ln 0.3) / 2
        (0.0, 1.0, 0.618976 + 0.509115),  # (-0.9 ln 0.9 - 0.1 ln 0.1 + ln 2) / 2
        (0.8, 0.4, 0.618976 + 0.624259 + 0.203646),
    ],
)
def test_the_loss_and_its_regularisers_are_those_computed_by_hand(
    prior_weight, entropy_weight, expected
):
    logits = torch.tensor([[math.log(9), 0.0], [3.0, 3.0]])
    labels = torch.tensor([[0.8, 0.2], [0.0, 1.0]])
    config = SoftLabelsConfig(prior_weight=prior_weight, entropy_weight=entropy_weight)
    assert float(soft_label_loss(logits, labels, config)) == pytest.approx(expected, abs=2e-6)


def test_the_loss_is_finite_where_a_class_is_never_predicted():
    logits = torch.tensor([[300.0, 0.0], [300.0, 0.0]], requires_grad=True)
    loss = soft_label_loss(logits, torch.tensor([[1.0, 0.0]] * 2), SoftLabelsConfig())
    loss.backward()
    assert loss.item() == pytest.approx(0.8 * 150) and logits.grad.isfinite().all()


def test_the_defaults_are_the_papers():
    expected = {"warmup_share": 0.1, "warmup_epochs": 10, "prior_weight": 0.8}
    expected |= {"entropy_weight": 0.4, "mixup_alpha": 1.0, "min_labeled": 0.16}
    assert dataclasses.asdict(SoftLabelsConfig()) == expected


def test_labels_are_mixed_as_the_images_are():
    # Image i is the constant vector of its label, so that a mixed image shows its mixed label.
    labels = torch.eye(4)
    pixels = labels[:, :3, None, None].expand(4, 3, 2, 2)
    seen = []
    for seed in range(200):
        torch.manual_seed(seed)
        mixed, mixed_labels = mixup(pixels, labels, 1.0)
        assert torch.equal(mixed, mixed_labels[:, :3, None, None].expand(4, 3, 2, 2))
        assert torch.allclose(mixed_labels.sum(dim=1), torch.ones(4))
        seen += mixed_labels.max(dim=1).values.tolist()
    inner = [share for share in seen if share < 1]  # max(lambda, 1 - lambda), uniform on (0.5, 1)
    assert len(inner) > 400
    assert (
        min(inner) < 0.55 and max(inner) > 0.95 and np.mean(inner) == pytest.approx(0.75, abs=0.03)
    )
    torch.manual_seed(0)
    assert all(map(torch.equal, mixup(pixels, labels, 0.0), (pixels, labels)))


# Soft labels: when they change, what a batch holds.


def test_labels_change_when_a_pass_ends_and_not_before():
    start, memory = torch.tensor([[1.0, 0.0]] * 3), LabelMemory(torch.tensor([[1.0, 0.0]] * 3))
    predictions = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    memory.collect(torch.tensor([2, 0]), predictions[[2, 0]])
    assert torch.equal(memory.labels, start)
    memory.collect(torch.tensor([1, 2]), predictions[[1, 2]])  # 2 belongs to the second pass
    assert torch.equal(memory.labels, predictions)
    later = torch.tensor([[0.6, 0.4], [0.5, 0.5], [0.3, 0.7]])
    memory.collect(torch.tensor([0]), later[[0]])
    assert torch.equal(memory.labels, predictions)
    memory.collect(torch.tensor([1]), later[[1]])
    assert torch.equal(memory.labels, later)


def test_a_state_of_the_labels_is_complete():
    memory, other = LabelMemory(torch.zeros(2, 1)), LabelMemory(torch.zeros(2, 1))
    memory.collect(torch.tensor([1]), torch.tensor([[5.0]]))
    other.load_state_dict(memory.state_dict())
    other.collect(torch.tensor([0]), torch.tensor([[4.0]]))
    assert other.labels.tolist() == [[4.0], [5.0]]


class Constant(nn.Module):
    """Logits that depend on the mode, and on the mean of the image."""

    def __init__(self):
        super().__init__()
        self.batches, self.dropout = [], nn.Dropout(0.5)

    def forward(self, pixels):
        self.batches.append((self.training, pixels))
        mean = pixels.mean(dim=(1, 2, 3))
        return self.dropout(torch.stack([mean, -mean, 0 * mean], dim=1))


def make_objective(dataset: Path, **settings: float) -> SoftLabels:
    config = SoftLabelsConfig(mixup_alpha=0.0, **settings)
    labels = torch.eye(3)[[0, 0, 0, 1, 1, 2]]
    return SoftLabels(records(dataset), labels, config, STEPS, seed=1)


def test_predictions_are_of_plain_images_without_dropout_and_replace_the_labels_after_a_pass(
    dataset,
):
    objective = make_objective(dataset, min_labeled=0.5)
    start, model = objective.memory.labels.clone(), Constant().train()
    plain = [
        network_input(eval_transform(STEPS)(record.load())) for record in objective.images.generated
    ]
    batches = list(objective.batches([4] * 4, 0, Accelerator()))
    seen = []
    for step, batch in enumerate(batches):
        assert torch.equal(objective.memory.labels, start) is (step < 3)  # 3 batches of 2 make 6
        objective.loss(model, batch, 0.0)
        (mode, shown), (train_mode, mixed) = model.batches[-2:]
        seen += batch[4].tolist()
        assert (mode, train_mode, model.training) == (False, True, True)
        assert torch.equal(shown, torch.stack([plain[i] for i in batch[4]]))
        assert not torch.equal(mixed[2:], shown)
    order = stream_indices(6, 0, 8, stable_seed("generated", 1))
    assert seen == order and sorted(seen[:6]) == list(range(6))
    means = torch.stack(plain).mean(dim=(1, 2, 3))
    expected = torch.stack([means, -means, 0 * means], dim=1).softmax(dim=1)
    assert torch.allclose(objective.memory.labels, expected, atol=1e-6)


def test_the_loss_takes_the_labels_of_the_images_at_hand(dataset):
    objective = make_objective(dataset, min_labeled=0.5, prior_weight=0.0, entropy_weight=0.0)
    model = Constant().eval()
    real, targets, augmented, plain, indices = next(iter(objective.batches([4], 0, Accelerator())))
    labels = [*targets.tolist(), *([0, 0, 0, 1, 1, 2][i] for i in indices)]
    logits = model(torch.cat([real, augmented]))
    loss, hits = objective.loss(model, [real, targets, augmented, plain, indices], 0.0)
    expected = nn.functional.cross_entropy(logits, torch.tensor(labels))
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert hits.tolist() == (logits.argmax(dim=1) == torch.tensor(labels)).tolist()


@pytest.mark.parametrize(
    "min_labeled, num_real, num_generated, size, processes, expected",
    [
        (0.16, 1, 99, 100, 1, 16),
        (0.07, 1, 99, 100, 1, 7),  # 0.07 * 100 is above 7 in floating point
        (0.16, 1, 99, 64, 1, 11),  # 10.24
        (0.16, 40, 60, 100, 1, 40),  # the images' own share is larger
        (0.16, 1, 99, 2, 1, 1),
        (0.9, 1, 99, 4, 1, 3),  # one place is left for a generated image
        (0.16, 1, 99, 8, 4, 4),  # one for every process
    ],
)
def test_every_batch_has_its_share_of_real_images(
    min_labeled, num_real, num_generated, size, processes, expected
):
    record = ImageRecord(Path("x"), "x", 0, "ant")
    images = TrainingImages([record] * num_real, [record] * num_generated)
    config = SoftLabelsConfig(min_labeled=min_labeled)
    objective = SoftLabels(images, torch.ones(num_generated, 1), config, STEPS, seed=1)
    assert objective.num_labeled(size, processes) == expected


def test_batches_are_filled_as_counted_and_go_on_where_a_run_stopped(dataset):
    objective = make_objective(dataset)  # 9 real of 15: 2.4 of 4, 1.8 of 3
    whole = list(objective.batches([4, 3, 4], 0, Accelerator()))
    assert [(len(b[0]), len(b[2])) for b in whole] == [(2, 2), (2, 1), (2, 2)]
    (last,) = objective.batches([4, 3, 4], 2, Accelerator())
    assert all(map(torch.equal, last, whole[2]))


# Soft labels: budget and runs.


@pytest.mark.parametrize(
    "steps, share, expected",
    [(300, 0.1, (30, 270)), (8, 0.25, (2, 6)), (2, 0.01, (1, 1)), (2, 0.99, (1, 1))],
)
def test_warm_up_and_the_rest_share_the_steps(steps, share, expected):
    recipe = dataclasses.replace(STEPS, max_train_steps=steps)
    parts = split_budget(recipe, share=share, epochs=None)
    assert tuple(part.max_train_steps for part in parts) == expected
    assert sum(len(Schedule(part, 50).batch_sizes) for part in parts) == steps


def test_warm_up_adds_epochs_where_epochs_are_counted():
    recipe = dataclasses.replace(SMALL, epochs=30)
    warmup, rest = split_budget(recipe, share=0.1, epochs=4)
    assert (warmup.epochs, rest) == (4, recipe)


@pytest.mark.parametrize(
    "option, message",
    [
        (("--max_train_steps", 1), "max_train_steps 1: .*give 2 or more"),
        (("--batch_size", 1), "batch_size 1: .*give 2 or more"),
        (("--warmup_share", 1), "warmup_share 1.0: give a share"),
        (("--min_labeled", 0), "min_labeled 0.0: give a share"),
        (("--mixup_alpha", -1), "mixup_alpha -1.0: give 0 or more"),
        (("--warmup_epochs", 0), "warmup_epochs 0: give at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(dataset, tmp_path, option, message):
    with pytest.raises(InputError, match=message):
        train(dataset, tmp_path, "--labels", "soft", *option)


def test_a_run_with_soft_labels_takes_the_steps_it_was_given(finished):
    values = load_yaml(finished / "results.yaml").values
    assert values["steps"] == 8 and values["labels"] == "soft"
    assert checkpoint(finished / "warmup")["step"] == 2 and checkpoint(finished)["step"] == 6
    learning = {"warmup_share": 0.25, "min_labeled": 0.5}
    assert learning.items() <= values["learning"].items()
    rates = [row["lr"] for row in checkpoint(finished)["history"]]
    assert rates[0] == pytest.approx(0.025 * (1 + math.cos(math.pi / 6)))  # begun anew
    # 6 steps of 2 generated images are 12: two passes over the 6
    state = checkpoint(finished)["objective"]
    assert state["seen"] == 12 and torch.equal(state["labels"], state["predictions"])
    final = state["labels"].argmax(dim=1)
    agreement = (final == torch.tensor([0, 0, 0, 1, 1, 1])).float().mean()
    assert values["label_agreement"] == pytest.approx(100 * float(agreement), abs=0.01)
    assert "label_accuracy" not in values  # nobody knows the truth


@pytest.mark.slow
def test_the_first_labels_are_the_warmed_up_classifiers(dataset, finished, tmp_path, monkeypatch):
    seen, build = {}, SoftLabels.__init__

    def note(self, images, labels, *arguments, **named):
        seen["labels"] = labels.clone()
        build(self, images, labels, *arguments, **named)

    monkeypatch.setattr(SoftLabels, "__init__", note)
    train(dataset, tmp_path, *SOFT)
    model = load_classifier(finished / "warmup" / "checkpoint.pth.tar").train()
    generated = records(dataset).generated
    expected = predict_all(model, generated, STEPS, Accelerator())
    assert torch.allclose(seen["labels"], expected, atol=1e-6) and model.training
    pixels = torch.stack([eval_transform(STEPS)(record.load()) for record in generated])
    pixels = network_input(pixels)
    assert torch.allclose(expected, model.eval()(pixels).softmax(dim=1), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 3, 5, 7])  # in the warm-up; before and after a swap
def test_a_stopped_run_with_soft_labels_goes_on_to_exactly_the_same_result(
    dataset, finished, tmp_path, monkeypatch, after
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, after)
        train(dataset, tmp_path, *SOFT)
    ours, theirs = checkpoint(train(dataset, tmp_path, *SOFT)), checkpoint(finished)
    assert ours["history"] == theirs["history"]
    for part in ("state_dict", "objective"):
        for key, value in theirs[part].items():
            assert torch.equal(torch.as_tensor(ours[part][key]), torch.as_tensor(value)), key


def test_figures_count_seed_labels_and_the_truth_where_all_of_it_is_known():
    record = ImageRecord(Path("x"), "x", 1, "bee")
    known = [dataclasses.replace(record, true_label=label) for label in (0, 1, 2)]
    assert label_results(known, [0, 1, 0]) == {"label_agreement": 33.33, "label_accuracy": 66.67}
    assert label_results([*known, record], [1, 1, 0, 1]) == {"label_agreement": 75.0}


@pytest.mark.parametrize(
    "labels, present, absent",
    [
        ("soft", "--warmup_share --warmup_epochs --mixup_alpha --min_labeled", "--clip_model"),
        ("clip", "--clip_model --clip_revision --clip_templates", "--warmup_share"),
    ],
)
def test_help_lists_the_options_of_the_chosen_labels(capsys, labels, present, absent):
    with pytest.raises(SystemExit):
        train_expand.main(["--labels", labels, "--help", "all"])
    shown = capsys.readouterr().out
    assert all(f"{option} " in shown for option in present.split())
    assert absent not in shown
