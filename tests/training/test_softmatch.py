"""SoftMatch: weights step by step against plain Python, and what its loss learns from."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F

import train_expand
import train_original
from expansion.classifier.backbones import Classifier
from expansion.classifier.recipe import Recipe
from expansion.common.config import load_yaml
from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from expansion.training.objectives import predict
from expansion.training.softmatch import HeadDropout, SoftMatch, SoftMatchWeights, consistency_loss
from expansion.training.softmatch_config import SoftMatchConfig

RECIPE = Recipe(
    arch="resnet10_tiny", image_size=32, resize_size=36, workers=0, batch_size=4, lr=0.05
)
BATCHES = [
    [[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]],
    [[0.05, 0.9, 0.05], [0.3, 0.3, 0.4]],
    [[0.34, 0.33, 0.33], [0.98, 0.01, 0.01]],
]


def by_hand(batches, momentum: float, n_sigma: float, target, warmup) -> list[list[float]]:
    """Weights of every batch by SoftMatch's equations, in plain Python."""
    mu, v, prior, result = 1 / 3, 1.0, None, []
    for number, batch in enumerate(batches):
        m = min(momentum, number / (number + 1)) if warmup else momentum
        mean = [sum(row[c] for row in batch) / len(batch) for c in range(3)]
        prior = (
            mean
            if prior is None
            else [m * p + (1 - m) * q for p, q in zip(prior, mean, strict=True)]
        )
        confidences = []
        for row in batch:
            q = row
            if target is not None:
                q = [
                    x * (t + 1e-6) / (p + 1e-6) for x, t, p in zip(row, target, prior, strict=True)
                ]
                q = [x / sum(q) for x in q]
            confidences.append(max(q))
        average = sum(confidences) / len(confidences)
        spread = sum((c - average) ** 2 for c in confidences) / (len(confidences) - 1)
        mu, v = m * mu + (1 - m) * average, m * v + (1 - m) * spread
        result.append(
            [math.exp(-(min(c - mu, 0) ** 2) * n_sigma**2 / (2 * v)) for c in confidences]
        )
    return result


@pytest.mark.parametrize("target", [None, [1 / 3] * 3, [0.5, 0.3, 0.2]])
@pytest.mark.parametrize("m, n_sigma", [(0.999, 2.0), (0.5, 2.0), (0.9, 1.0)])
@pytest.mark.parametrize("warmup", [False, True])
def test_weights_equal_a_step_by_step_computation(target, m, n_sigma, warmup):
    config = SoftMatchConfig(statistics_momentum=m, n_sigma=n_sigma, statistics_warmup=warmup)
    weights = SoftMatchWeights(3, config, None if target is None else torch.tensor(target))
    for batch, expected in zip(BATCHES, by_hand(BATCHES, m, n_sigma, target, warmup), strict=True):
        assert weights(torch.tensor(batch)).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_state_takes_in_a_batch_before_it_weighs_it():
    """With momentum 0 the mean is this batch's: only the less confident image is weighed down."""
    weights = SoftMatchWeights(3, SoftMatchConfig(statistics_momentum=0.0), None)
    confident, doubtful = weights(torch.tensor([[0.9, 0.05, 0.05], [0.5, 0.3, 0.2]])).tolist()
    # mean 0.7, variance 0.08: (0.5 - 0.7)^2 * 4 / 0.16 = 1
    assert (confident, doubtful) == pytest.approx((1.0, math.exp(-1)))


def test_the_largest_weight_is_a_setting():
    weights = SoftMatchWeights(3, SoftMatchConfig(max_weight=0.25), None)
    assert weights(torch.tensor([[1.0, 0.0, 0.0]])).tolist() == pytest.approx([0.25])


def test_a_single_image_leaves_the_variance_alone():
    config = SoftMatchConfig(statistics_warmup=False)
    weights = SoftMatchWeights(3, config, None)
    weights(torch.tensor([[0.6, 0.2, 0.2]]))
    assert weights.variance == 1.0 and weights.mean == pytest.approx(0.999 / 3 + 0.001 * 0.6)


def test_with_warm_up_the_statistics_are_plain_means_at_first():
    """So 0.999 acts within a few hundred steps; without it the start values 1/3 and 1 remain."""
    weights = SoftMatchWeights(3, SoftMatchConfig(), None)
    for batch in BATCHES:
        weights(torch.tensor(batch))
    confidences = [(0.7, 0.4), (0.9, 0.4), (0.34, 0.98)]
    assert weights.mean.item() == pytest.approx(sum(a + b for a, b in confidences) / 6)
    spreads = [(a - b) ** 2 / 2 for a, b in confidences]
    assert weights.variance.item() == pytest.approx(sum(spreads) / 3)


def test_a_saved_state_goes_on_as_the_one_it_was_saved_from():
    first = SoftMatchWeights(3, SoftMatchConfig(), torch.full((3,), 1 / 3))
    second = SoftMatchWeights(3, SoftMatchConfig(), torch.full((3,), 1 / 3))
    for batch in BATCHES[:2]:
        first(torch.tensor(batch))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(torch.tensor(BATCHES[2])), second(torch.tensor(BATCHES[2])))


def test_alignment_changes_weights_and_never_labels(small_set):
    """The rare class gains confidence by alignment, but the target stays the plain argmax."""
    probabilities = torch.tensor([[0.5, 0.45, 0.05], [0.6, 0.3, 0.1], [0.7, 0.2, 0.1]])
    config = SoftMatchConfig(statistics_momentum=0.0)
    plain = SoftMatchWeights(3, config, None)
    aligned = SoftMatchWeights(3, config, torch.full((3,), 1 / 3))
    assert not torch.allclose(plain(probabilities), aligned(probabilities))
    assert aligned.align(probabilities).argmax(dim=1).tolist() != [0, 0, 0]

    class Fixed(nn.Module):
        """Logits of the rows' own values, whatever the images."""

        def forward(self, pixels):
            return probabilities.log()[: len(pixels)].repeat(len(pixels) // 3 + 1, 1)[: len(pixels)]

    objectives = [make_objective(small_set, alignment=kind) for kind in ("off", "uniform")]
    losses = []
    for objective in objectives:
        objective.weights.config = SoftMatchConfig(max_weight=1.0, n_sigma=0.0)  # all weights 1
        pixels = torch.zeros(3, 3, 32, 32)
        batch = [pixels, torch.zeros(3, dtype=torch.long), pixels, pixels]
        losses.append(objective.loss(Fixed(), batch, 0.0)[0])
    assert losses[0] == losses[1]


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    """Records of three classes with 4 images each."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("sets") / "noise"
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("ant", "bee", "cat"):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = draw.integers(0, 255, (36, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return load_dataset(str(root)).records("train")


def make_objective(records, num_unlabeled: int = 5, **options) -> SoftMatch:
    return SoftMatch(
        records[num_unlabeled:],
        records[:num_unlabeled],
        SoftMatchConfig(**options),
        RECIPE,
        num_classes=3,
        seed=1,
    )


@pytest.mark.parametrize("target", ["hard", "soft"])
def test_the_consistency_loss_by_hand(target):
    """Eq. 9: mean of lambda H(target, prediction on the strong view)."""
    weak = torch.tensor([[0.6, 0.4], [0.1, 0.9]])
    strong = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])  # 1/2, 1/2; 3/4, 1/4
    weights = torch.tensor([1.0, 0.5])
    first = -math.log(0.5)
    second = {
        "hard": -math.log(0.25),
        "soft": -0.1 * math.log(0.75) - 0.9 * math.log(0.25),
    }[target]
    expected = (first + 0.5 * second) / 2
    assert consistency_loss(weak, strong, weights, target).item() == pytest.approx(expected)


def test_the_loss_is_supervised_plus_weighted_consistency(small_set):
    objective = make_objective(small_set, consistency_weight=0.7)
    torch.manual_seed(0)
    model = Classifier("resnet10_tiny", 3, 32).eval()
    pixels, weak, strong = (
        torch.randn(4, 3, 32, 32),
        torch.randn(5, 3, 32, 32),
        torch.randn(5, 3, 32, 32),
    )
    targets = torch.tensor([0, 1, 2, 0])
    loss, hits = objective.loss(model, [pixels, targets, weak, strong], 0.0)
    with torch.no_grad():
        probabilities = model(weak).softmax(dim=1)
        weights = make_objective(small_set).weights(probabilities)
        unsupervised = F.cross_entropy(model(strong), probabilities.argmax(1), reduction="none")
        share = 5 / 7  # as many unlabelled images as labelled ones would count fully
        consistency = share * (weights * unsupervised).mean()
        expected = F.cross_entropy(model(pixels), targets) + 0.7 * consistency
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert hits.tolist() == (model(pixels).argmax(dim=1) == targets).tolist()


def test_pseudo_labels_come_from_a_network_without_dropout_and_give_no_gradient(small_set):
    torch.manual_seed(0)
    model = HeadDropout(Classifier("resnet10_tiny", 3, 32), 0.5).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pixels = torch.randn(1, 3, 32, 32)
    first, second = predict(model, pixels), predict(model, pixels)
    assert torch.equal(first, second) and not first.requires_grad and model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # no statistics
    training = [
        model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
        for _ in range(2)
    ]
    assert not torch.equal(*training)


@pytest.mark.parametrize(
    "ratio, num_unlabeled, expected",
    [
        (1.0, 8, 4),  # 4 labelled images: the rest outnumbers them
        (2.0, 9, 8),  # 3 labelled
        (0.5, 8, 2),
        (1.0, 4, 2),  # 8 labelled: half as many others, half as many in a batch
        (7.0, 1, 1),
    ],
)
def test_batches_pair_labelled_images_with_two_views_of_others(
    small_set, ratio, num_unlabeled, expected
):
    objective = make_objective(small_set, num_unlabeled, unlabeled_ratio=ratio)
    pixels, targets, weak, strong = next(iter(objective.batches([4, 4], 0, Accelerator())))
    assert pixels.shape == (4, 3, 32, 32) and targets.shape == (4,)
    assert weak.shape == strong.shape == (expected, 3, 32, 32)
    assert not torch.equal(weak, strong)
    again = list(objective.batches([4, 4], 0, Accelerator()))[1]
    resumed = next(iter(objective.batches([4, 4], 1, Accelerator())))
    assert all(map(torch.equal, again, resumed))


def test_without_unlabelled_images_it_is_supervised_training(small_set):
    objective = make_objective(small_set, 0)
    batch = next(iter(objective.batches([4], 0, Accelerator())))
    assert len(batch) == 2
    torch.manual_seed(0)
    model = Classifier("resnet10_tiny", 3, 32).eval()
    loss, _ = objective.loss(model, batch, 0.0)
    assert loss.item() == pytest.approx(F.cross_entropy(model(batch[0]), batch[1]).item())


def test_the_class_distribution_to_align_with_is_a_setting(small_set):
    def aligned(kind):
        return make_objective(small_set[:10], 3, alignment=kind).weights.target

    assert aligned("off") is None
    assert aligned("uniform").tolist() == pytest.approx([1 / 3] * 3)
    assert aligned("train_prior").tolist() == pytest.approx([1 / 7, 4 / 7, 2 / 7])


@pytest.mark.slow
@pytest.mark.parametrize("script", [train_original, train_expand])
def test_both_scripts_learn_from_a_folder_without_labels(small_set, tmp_path, script):
    root = small_set[0].path.parents[2]
    unlabeled = tmp_path / "unlabeled" / "deep"
    unlabeled.mkdir(parents=True)
    for i, record in enumerate(small_set[:5]):
        (unlabeled / f"{i}.png").write_bytes(record.path.read_bytes())
    line = (
        f"-d {root} --checkpoint_dir {tmp_path / 'runs'} --unlabeled_dir {tmp_path / 'unlabeled'}"
    )
    line += (
        " -a resnet10_tiny --image_size 32 --resize_size 36 --workers 0 --batch_size 4 --seeds 1"
    )
    line += " --budget steps --max_train_steps 3 --eval_steps 1 --unlabeled_ratio 2"
    if script is train_expand:
        (tmp_path / "set" / "ant").mkdir(parents=True)
        (tmp_path / "set" / "ant" / "v.png").write_bytes(small_set[0].path.read_bytes())
        row = {"file_name": "ant/v.png", "class": "ant", "variant": 0}
        row["source"] = small_set[0].file_name
        (tmp_path / "set" / "manifest.0-of-1.1.jsonl").write_text(json.dumps(row) + "\n")
        line += f" --expanded_dir {tmp_path / 'set'}"
    script.main(line.split())
    (folder,) = (tmp_path / "runs").glob("*/*softmatch*/seed1")
    results = load_yaml(folder / "results.yaml").values
    assert results["num_unlabeled"] == 5 and results["learning"]["unlabeled_ratio"] == 2.0
    state = torch.load(folder / "checkpoint.pth.tar", weights_only=True)["objective"]
    assert state["model_prior"].sum().item() == pytest.approx(1.0) and state["mean"] != 1 / 3


def test_a_folder_without_images_is_refused(small_set, tmp_path):
    root = small_set[0].path.parents[2]
    line = f"-d {root} --unlabeled_dir {tmp_path} --dry_run"
    with pytest.raises(InputError, match="unlabeled_dir .*no images there"):
        train_original.main(line.split())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"unlabeled_ratio": 0.0}, "unlabeled_ratio 0"),
        ({"statistics_momentum": 1.0}, "statistics_momentum 1"),
        ({"strong_ops": 0}, "strong_ops 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SoftMatchConfig(), **options)
