"""Batches, learning rates, steps of the optimiser and evaluation: equations by hand."""

from __future__ import annotations

import math
import os

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import train_expand
import train_original
from expansion.classifier.recipe import Recipe, Schedule
from expansion.common.errors import InputError
from expansion.training.trainer import evaluate, make_optimizer


@pytest.mark.parametrize(
    "num_images, options, sizes",
    [
        (10, {"epochs": 2}, [4, 4, 2] * 2),
        (9, {"epochs": 2}, [4, 5] * 2),  # a batch of one image joins the one before
        (8, {"epochs": 1}, [4, 4]),
        (1, {"epochs": 2}, [1, 1]),
        (3, {"budget": "steps", "max_train_steps": 3}, [4, 4, 4]),
    ],
)
def test_batches_cover_every_pass_and_none_trains_on_one_leftover_image(num_images, options, sizes):
    assert Schedule(Recipe(batch_size=4, **options), num_images).batch_sizes == sizes


@pytest.mark.parametrize(
    "options, rates, evaluations",
    [  # 0.4 (1 + cos(pi done / total)) / 2; cos(pi/4) = 0.70711
        ({"epochs": 2}, [0.4, 0.4, 0.4, 0.2, 0.2, 0.2], [3, 6]),
        ({"budget": "steps", "max_train_steps": 4}, [0.4, 0.341421, 0.2, 0.058579], [1, 2, 3, 4]),
        (
            {"budget": "steps", "max_train_steps": 4, "eval_steps": 3},
            [0.4, 0.341421, 0.2, 0.058579],
            [3, 4],
        ),
    ],
)
def test_the_cosine_moves_per_epoch_or_per_step(options, rates, evaluations):
    schedule = Schedule(Recipe(batch_size=4, lr=0.4, **options), num_images=10)
    steps = range(len(schedule.batch_sizes))
    assert [schedule.learning_rate(step) for step in steps] == pytest.approx(rates, abs=1e-6)
    assert [step + 1 for step in steps if schedule.evaluates_after(step + 1)] == evaluations


@pytest.mark.parametrize("options", [{"epochs": 2}, {"budget": "steps", "max_train_steps": 6}])
def test_the_warm_up_scales_the_cosine_by_the_share_of_its_steps(options):
    """10 images in batches of 4: 6 steps, of which 4.2, so 4, warm up."""
    cold = Schedule(Recipe(batch_size=4, **options), num_images=10)
    warm = Schedule(Recipe(batch_size=4, lr_warmup=0.7, **options), num_images=10)
    factors = [warm.learning_rate(step) / cold.learning_rate(step) for step in range(6)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert [warm.progress(step) for step in (0, 3)] == [0, 0.5]


@pytest.mark.parametrize(
    "options, expected",
    [  # w = 2, gradient 3, two steps. SGD: g = 3 + 0.1 w; v = 0.5 v + g; w -= 0.01 (g + 0.5 v)
        (
            {"optimizer": "sgd", "momentum": 0.5},
            2 - 0.01 * 1.5 * 3.2 - 0.01 * (1.5 * 3.1952 + 0.25 * 3.2),
        ),
        ({"optimizer": "sgd", "momentum": 0.0, "nesterov": False}, 2 - 0.01 * 3.2 - 0.01 * 3.1968),
        # AdamW with a constant gradient: w = (1 - 0.01 * 0.1) w - 0.01
        ({"optimizer": "adamw"}, (2 * 0.999 - 0.01) * 0.999 - 0.01),
    ],
)
def test_two_steps_of_the_optimiser_by_hand(options, expected):
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 2.0)
    optimizer = make_optimizer(module, Recipe(lr=0.01, weight_decay=0.1, **options))
    for _ in range(2):
        module.weight.grad = torch.full((1, 1), 3.0)
        optimizer.step()
    assert module.weight.item() == pytest.approx(expected, abs=2e-6)


def test_evaluation_is_the_mean_cross_entropy_and_the_share_of_right_answers():
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    targets = torch.tensor([0, 0, 1, 1])  # the tie goes to class 0: right, right, right, wrong
    loader = [(logits[:3], targets[:3]), (logits[3:], targets[3:])]
    model = nn.Dropout(0.9).train()  # in eval mode it changes nothing
    loss, accuracy = evaluate(model, loader, Accelerator())
    losses = [
        math.log(1 + math.exp(-2)),
        math.log(2),
        math.log(1 + math.exp(-1)),
        math.log(1 + math.exp(3)),
    ]
    assert loss == pytest.approx(sum(losses) / 4, abs=1e-6)
    assert accuracy == 75.0 and model.training


@pytest.mark.parametrize(
    "script, short, long",
    [
        (
            train_original,
            "digits resnet18 0.05 False 0",
            "-d digits -a resnet18 --lr 0.05 --no-pretrained",
        ),
        (
            train_expand,
            "digits resnet18 0.01 distdiff_5x True 3",
            "--dataset digits --arch resnet18 --lr 1e-2 --exp distdiff_5x --pretrained",
        ),
    ],
)
def test_short_and_long_commands_mean_the_same(monkeypatch, script, short, long):
    found = []

    def stop(*configs):
        found.append(configs)
        raise InputError("parsed")

    monkeypatch.setattr(script, "load_data", stop)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for line in (short, long):
        with pytest.raises(InputError, match="parsed"):
            script.main(line.split())
    assert found[0] == found[1]
    config, recipe = found[0]
    words = short.split()
    assert (config.dataset, recipe.arch, str(recipe.lr), str(recipe.pretrained)) == (
        *words[:3],
        words[-2],
    )
    assert os.environ["CUDA_VISIBLE_DEVICES"] == words[-1]
