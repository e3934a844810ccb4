"""GIF-SD's score against values by hand and against torch's own losses."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from baselines.gif.score import (
    divergence_to_mean,
    entropy,
    released_divergence,
    score_terms,
)

FEATURES = F.normalize(torch.randn(3, 16, generator=torch.Generator().manual_seed(1)), dim=1)


def test_a_score_is_entropy_gained_probability_kept_and_divergence():
    odds = [[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]
    real = [0.9, 0.05, 0.05]
    entropies = [-sum(p * math.log(p) for p in row) for row in (*odds, real)]
    terms = score_terms(
        FEATURES[:2],
        torch.tensor(odds).log() + torch.tensor([[3.0], [-5.0]]),  # a constant changes nothing
        entropy(torch.tensor([real, real]).log()),
        torch.tensor([0, 0]),
        "paper",
    )
    gained = [entropies[0] - entropies[2], entropies[1] - entropies[2]]
    assert terms.information.tolist() == pytest.approx(gained, abs=1e-6)
    assert terms.probability.tolist() == pytest.approx([0.5, 0.1], abs=1e-6)
    assert torch.equal(terms.divergence, divergence_to_mean(FEATURES[:2]))
    assert torch.equal(terms.total, terms.information + terms.probability + terms.divergence)


def test_the_divergence_is_that_of_each_variant_from_the_mean():
    softmax = [[math.exp(x) for x in row] for row in FEATURES.tolist()]
    softmax = [[x / sum(row) for x in row] for row in softmax]
    mean = [math.exp(sum(column) / 3) for column in zip(*FEATURES.tolist(), strict=True)]
    mean = [x / sum(mean) for x in mean]
    by_hand = [sum(m * math.log(m / x) for m, x in zip(mean, row, strict=True)) for row in softmax]
    assert divergence_to_mean(FEATURES).tolist() == pytest.approx(by_hand, abs=1e-6)
    assert min(by_hand) > 0.001
    # torch's loss of whole batches is the mean of these.
    target = FEATURES.mean(dim=0, keepdim=True).softmax(dim=1).expand(3, -1)
    expected = F.kl_div(FEATURES.log_softmax(dim=1), target, reduction="batchmean")
    assert divergence_to_mean(FEATURES).mean().item() == pytest.approx(expected.item(), abs=1e-6)


def test_a_variant_alone_has_no_divergence_and_no_gradient_of_it():
    alone = FEATURES[:1].clone().requires_grad_()
    value = divergence_to_mean(alone)
    value.sum().backward()
    assert value.tolist() == [0] and alone.grad.abs().max() < 1e-7


def test_the_released_divergence_is_what_torch_makes_of_the_mean_and_its_own_softmax():
    mean = FEATURES.mean(dim=0, keepdim=True).repeat(3, 1)
    loss = torch.nn.KLDivLoss(reduction="batchmean", log_target=True)
    expected = loss(mean, mean.log_softmax(dim=1)).item()
    assert released_divergence(FEATURES).tolist() == pytest.approx([expected] * 3, abs=1e-6)


def test_probabilities_that_underflow_give_no_nan():
    logits = torch.tensor([[300.0, 0.0, -300.0]], requires_grad=True)
    terms = score_terms(FEATURES[:1], logits, torch.zeros(1), torch.tensor([0]), "paper")
    terms.total.sum().backward()
    assert terms.total.tolist() == [1.0] and logits.grad.isfinite().all()
