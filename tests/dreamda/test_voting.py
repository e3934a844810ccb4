"""AMST's heads: Eq. 7, orthogonality and votes by hand, dropout where it belongs."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from dreamda.self_training.config import AmstConfig
from dreamda.self_training.voting import (
    HeadTraining,
    MultiHead,
    count_votes,
    dropout_votes,
    orthogonality,
)
from expansion.classifier.backbones import Classifier
from expansion.classifier.recipe import Recipe
from expansion.data.datasets import load_dataset

RECIPE = Recipe(arch="resnet10_tiny", image_size=32, resize_size=36, workers=0, batch_size=4)
VIEWS = ("weak", "weak", "strong", "strong")


@pytest.mark.parametrize(
    "form, expected",
    [
        ("l1_cxc", abs(1 * 3 + 2 * -1) + abs(1 * 0 + 2 * 2) + abs(-1 * 3) + abs(0)),
        # W1^T W2 = [[1*3 + -1*0, 1*-1 + -1*2], [2*3, 2*-1]]: (3 + 3 + 6 + 2) / 2
        ("l1_dxd_mean", 7.0),
        (
            "fro_cosine",
            math.sqrt(
                (1 / math.sqrt(50)) ** 2
                + (4 / math.sqrt(20)) ** 2
                + (-3 / math.sqrt(10)) ** 2
                + 0.0
            ),
        ),
    ],
)
def test_orthogonality_by_hand(form, expected):
    first = torch.tensor([[1.0, 2.0], [-1.0, 0.0]])
    second = torch.tensor([[3.0, -1.0], [0.0, 2.0]])
    assert orthogonality(first, second, form).item() == pytest.approx(expected, abs=1e-5)


def test_the_orthogonality_terms_gradient_by_hand():
    """d sum|W1 W2^T| / dW1 = sign(W1 W2^T) W2."""
    first = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], requires_grad=True)
    second = torch.tensor([[3.0, -1.0], [0.0, 2.0]])
    orthogonality(first, second, "l1_cxc").backward()
    # products: [1, 4], [-3.5, 1]
    expected = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]) @ second
    torch.testing.assert_close(first.grad, expected)


@pytest.mark.parametrize("multi_head, weight", [(True, 0.001), (True, 0.5), (False, 0.5)])
def test_eq_7_by_hand(multi_head, weight):
    """Each head's cross-entropy on its own view, plus lambda |W1^T W2| of each pair."""
    config = AmstConfig(multi_head=multi_head, ortho_weight=weight)
    objective = HeadTraining([], config, RECIPE, seed=1)
    torch.manual_seed(0)
    classifier = Classifier("resnet10_tiny", 3, 32)
    module = objective.wrap(classifier)
    module.dropout = 0.0
    weak, strong = torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32)
    targets = torch.tensor([0, 1, 2, 1])
    loss, _ = objective.loss(module.train(), [weak, strong, targets], 0.0)
    with torch.no_grad():
        features = classifier.train().features(torch.cat([weak, strong]))
        views = (features[:4], features[:4], features[4:], features[4:])
        weights = [head.weight for head in module.heads]
        expected = sum(
            F.cross_entropy(h(view), targets) for h, view in zip(module.heads, views, strict=False)
        )
        if multi_head:
            for a, b in ((0, 1), (2, 3)):
                expected += weight * (weights[a] @ weights[b].T).abs().sum()
    assert len(module.heads) == (4 if multi_head else 1)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)


def test_stage_1_trains_body_and_heads_and_not_the_main_head():
    objective = HeadTraining([], AmstConfig(), RECIPE, seed=1)
    classifier = Classifier("resnet10_tiny", 3, 32)
    module = objective.wrap(classifier).train()
    pixels = torch.randn(4, 3, 32, 32)
    objective.loss(module, [pixels, pixels, torch.tensor([0, 1, 2, 1])], 0.0)[0].backward()
    assert all(p.grad is not None for p in module.parameters())
    assert classifier.head.weight.grad is None
    assert {id(p) for p in classifier.head.parameters()}.isdisjoint(map(id, module.parameters()))


def test_dropout_acts_before_the_heads_in_training_alone():
    module = MultiHead(Classifier("resnet10_tiny", 3, 32), VIEWS, 0.5)
    pixels = torch.randn(4, 3, 32, 32)
    assert torch.equal(module.eval()(pixels), module(pixels)) and module(pixels).shape == (4, 3)
    module.train()
    module.body.eval()
    assert not torch.equal(module(pixels), module(pixels))


def test_evaluation_averages_the_heads_probabilities():
    module = MultiHead(Classifier("resnet10_tiny", 3, 32), VIEWS, 0.5).eval()
    pixels = torch.randn(2, 3, 32, 32)
    features = module.body(pixels)
    mean = sum(head(features).softmax(dim=1) for head in module.heads) / 4
    torch.testing.assert_close(module(pixels).softmax(dim=1), mean)


def test_votes_by_hand():
    """Two heads, two dropout samples, three images, two classes; probabilities of class 0."""
    head_1 = [[0.9, 0.7, 0.2], [0.7, 0.5, 0.4]]  # (T, M)
    head_2 = [[0.8, 0.3, 0.1], [0.6, 0.1, 0.1]]
    p = torch.tensor([head_1, head_2])
    votes = count_votes(torch.stack([p, 1 - p], dim=-1))
    # Means of class 0: head 1: 0.8 0.6 0.3, head 2: 0.7 0.2 0.1; both: 0.75 0.4 0.2.
    assert votes.labels.tolist() == [0, 1, 1]
    assert votes.agreement.tolist() == [2, 1, 2]
    # Population variance: half the squared range for two samples, i.e. (a - b)^2 / 4.
    assert votes.uncertainty.tolist() == pytest.approx([0.01, 0.01, 0.01], abs=1e-6)
    assert votes.confidence.tolist() == pytest.approx([0.75, 0.8, 0.8], abs=1e-6)


def test_the_uncertainty_is_that_of_the_most_uncertain_head_for_its_label():
    p = torch.tensor([[[0.9], [0.9]], [[0.95], [0.65]]])  # heads x samples x one image
    votes = count_votes(torch.stack([p, 1 - p], dim=-1))
    assert votes.uncertainty.item() == pytest.approx((0.95 - 0.65) ** 2 / 4)


SEEDS = torch.full((300,), -1)  # seed labels that nobody votes for


def test_a_confirmed_seed_label_is_accepted_however_uncertain():
    """One image certain, two not; the last one's seed label is not what the heads vote for."""
    p = torch.tensor([[[0.9, 0.9, 0.9], [0.9, 0.5, 0.5]]])
    votes = count_votes(torch.stack([p, 1 - p], dim=-1))
    seed_labels = torch.tensor([1, 0, 1])
    assert votes.accepted(AmstConfig(), 1, seed_labels).tolist() == [True, False, False]
    confirming = AmstConfig(confirm_seed=True)
    assert votes.accepted(confirming, 1, seed_labels).tolist() == [True, True, False]
    split = count_votes(torch.tensor([[[[0.9, 0.1]]], [[[0.2, 0.8]]]]))  # two heads, two opinions
    assert not votes_agree(split) and not split.accepted(confirming, 2, split.labels).any()


def votes_agree(votes) -> bool:
    return bool((votes.agreement == 2).all())


def random_votes():
    torch.manual_seed(0)
    return count_votes((2 * torch.randn(4, 10, 300, 5)).softmax(dim=-1))


def test_acceptance_grows_with_tau_and_falls_with_the_heads_that_must_agree():
    votes = random_votes()
    for name, values in (("tau", (0.001, 0.01, 0.05, 0.3)), ("min_agree", (4, 3, 2, 1))):
        options = {"tau": 0.3, "min_agree": 4}
        before = torch.zeros(300, dtype=torch.bool)
        counts = []
        for value in values:
            accepted = votes.accepted(AmstConfig(**{**options, name: value}), 4, SEEDS)
            if name == "tau":
                assert not (before & ~accepted).any()
            before = accepted
            counts.append(int(accepted.sum()))
        assert counts == sorted(counts) and counts[0] < counts[-1]


def test_acceptance_falls_with_the_confidence_asked():
    votes = random_votes()
    counts = [
        int(votes.accepted(AmstConfig(tau=0.3, min_agree=1, min_conf=c), 4, SEEDS).sum())
        for c in (0.0, 0.3, 0.5, 0.99)
    ]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


def test_one_head_is_tested_for_its_uncertainty_alone():
    p = torch.tensor([[[0.9, 0.9], [0.9, 0.5]]])
    votes = count_votes(torch.stack([p, 1 - p], dim=-1))
    assert votes.accepted(AmstConfig(), 1, torch.zeros(2)).tolist() == [True, False]


def test_batch_normalisation_keeps_its_statistics_and_only_the_heads_dropout_acts(small_set):
    torch.manual_seed(0)
    module = MultiHead(Classifier("resnet10_tiny", 3, 32), VIEWS, 0.5).train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    modes = []
    module.body.register_forward_hook(lambda m, i, o: modes.append((m.training, len(o))))
    records = load_dataset(str(small_set)).records("train")
    config = AmstConfig(mc_passes=7)
    first, again, other = (
        dropout_votes(module, records, config, RECIPE, seed) for seed in (1, 1, 2)
    )
    assert modes == [(False, 18)] * 3  # the body runs once, not once per dropout sample
    assert module.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert torch.equal(first.uncertainty, again.uncertainty)
    assert not torch.equal(first.uncertainty, other.uncertainty) and (first.uncertainty > 0).all()
    module.dropout = 1e-9
    assert dropout_votes(module, records, config, RECIPE, 1).uncertainty.max() < 1e-10
