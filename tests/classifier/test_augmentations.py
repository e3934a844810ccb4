"""Classic augmentations: what each does to images, labels and loss, and that it acts."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torchvision.transforms import v2

from baselines.labels.soft_labels import SoftLabels
from baselines.labels.soft_labels_config import SoftLabelsConfig
from dreamda.self_training.config import AmstConfig
from dreamda.self_training.voting import HeadTraining
from expansion.classifier.augmentations import (
    AugmentedBatch,
    grid_mask,
    jensen_shannon,
    steps_on,
)
from expansion.classifier.backbones import Classifier
from expansion.classifier.recipe import AUGMENTATIONS, Recipe
from expansion.classifier.transforms import train_transform
from expansion.common.errors import InputError
from expansion.training.objectives import Supervised
from expansion.training.softmatch import SoftMatch, TwoViews
from expansion.training.softmatch_config import SoftMatchConfig
from expansion.training.trainer import Trainer
from tests.helpers.noise_runs import checkpoint, interrupt, records, train

SMALL = {"arch": "resnet10_tiny", "image_size": 32, "resize_size": 36, "workers": 0}
ARMS = [name for name in AUGMENTATIONS if name != "default"]
STEPS_OF_IMAGES = ["randaugment", "autoaugment", "augmix", "random_erasing", "cutout"]


@pytest.fixture(scope="module")
def images(dataset):
    """Nine real images under label 0 and six generated ones under label 1."""
    found = records(dataset)
    return [
        dataclasses.replace(record, label=label)
        for label, part in enumerate((found.real, found.generated))
        for record in part
    ]


def seen(images, augment: str, progress: float = 1.0, seed: int = 1, first: int = 0) -> tuple:
    """(inputs, labels, origins) of one batch of all images as `Supervised` gives it."""
    recipe = Recipe(**SMALL, augment=augment, batch_size=len(images))
    objective = Supervised(images, recipe, seed, 2)
    size = len(images)
    pixels, targets = next(iter(objective.batches([size] * (first + 1), first, Accelerator())))
    torch.manual_seed(seed)
    return (*objective.augmented.inputs(pixels, targets, progress), targets)


def test_every_name_has_an_augmentation_and_the_papers_settings():
    for name, arm in AUGMENTATIONS.items():
        recipe = Recipe(augment=name)
        in_loader = steps_on("image", recipe) + steps_on("pixels", recipe)
        on_batch = AugmentedBatch(recipe, 2).step
        assert len(in_loader) + (on_batch is not None) == bool(arm.acts_on)
        assert bool(arm.title) == (name != "default")
    (randaugment,) = steps_on("image", Recipe(augment="randaugment"))
    assert (randaugment.num_ops, randaugment.magnitude) == (2, 9)
    (autoaugment,) = steps_on("image", Recipe(augment="autoaugment"))
    assert autoaugment.policy == v2.AutoAugmentPolicy.IMAGENET
    (augmix,) = steps_on("image", Recipe(augment="augmix"))
    assert (augmix.mixture_width, augmix.alpha, Recipe().jsd_weight) == (3, 1.0, 12.0)
    (erasing,) = steps_on("pixels", Recipe(augment="random_erasing"))
    assert (erasing.p, erasing.scale, erasing.ratio) == (0.5, (0.02, 0.33), (0.3, 3.3))
    found = [Recipe(augment=name).probability for name in ("gridmask", "cutmix", "mixup")]
    assert found == [0.8, 0.5, 1.0]
    assert Recipe(augment="cutmix", augment_probability=1.0).probability == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("augment", ARMS)
def test_it_changes_real_and_generated_images(images, augment):
    changed = torch.zeros(len(images), dtype=torch.bool)
    for seed in range(1, 4):
        plain, _, origins = seen(images, "default", seed=seed)
        found, _, same_origins = seen(images, augment, seed=seed)
        assert torch.equal(origins, same_origins) and origins.sum() == 6
        views = found.chunk(3) if augment == "augmix" else [found]
        differs = (views[-1] - plain).abs().amax(dim=(1, 2, 3)) > 0.05
        for origin in (0, 1):
            changed[origin] |= bool((differs & (origins == origin)).any())
    assert changed[0] and changed[1]


@pytest.mark.slow
@pytest.mark.parametrize("augment", ARMS)
def test_one_seed_gives_one_batch_and_another_seed_another(images, augment):
    first, labels, _ = seen(images, augment)
    again, labels_again, _ = seen(images, augment)
    assert torch.equal(first, again) and torch.equal(labels, labels_again)
    assert not torch.equal(first, seen(images, augment, seed=2)[0])


# Steps on images.


@pytest.mark.slow
@pytest.mark.parametrize("augment", ["cutout", "random_erasing"])
def test_a_rectangle_of_the_right_size_becomes_the_mean_colour(augment):
    recipe = Recipe(**SMALL, augment=augment)
    (step,) = steps_on("pixels", recipe)
    shares = []
    for seed in range(300):
        torch.manual_seed(seed)
        hidden = (step(torch.ones(3, 40, 40)) == 0).all(dim=0)
        rows, columns = hidden.any(dim=1), hidden.any(dim=0)
        assert torch.equal(hidden, rows[:, None] & columns)
        assert len(rows.nonzero()) == 0 or rows.nonzero().diff(dim=0).eq(1).all()
        shares.append(hidden.float().mean().item())
    inside = [share for share in shares if share > 0]
    if augment == "cutout":  # half of each side, down to a quarter at the borders
        assert len(inside) == 300 and max(shares) == 0.25 and min(shares) < 0.09
        assert torch.tensor(shares).mean() == pytest.approx(0.4375**2, abs=0.02)
    else:
        assert 120 < len(inside) < 180
        assert 0.015 < min(inside) < 0.05 and 0.28 < max(inside) < 0.345


def test_augmix_gives_the_plain_view_and_two_different_ones(images):
    plain, _, _ = seen(images, "default")
    inputs, labels, origins = seen(images, "augmix")
    first, *others = inputs.chunk(3)
    assert torch.equal(first, plain) and torch.equal(labels, origins)
    assert not torch.equal(*others) and all(view.shape == plain.shape for view in others)


# Steps on batches.


@pytest.mark.parametrize("augment", ["mixup", "cutmix"])
def test_labels_are_mixed_by_the_share_of_the_image_that_is_seen(augment):
    # Image i is the constant i, so that what is seen of it and its neighbour can be read off.
    pixels = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16).contiguous()
    targets = torch.tensor([2, 0, 1, 4])
    augmented = AugmentedBatch(Recipe(augment=augment), num_classes=5)
    shares = []
    for seed in range(200):
        torch.manual_seed(seed)
        inputs, labels = augmented.inputs(pixels, targets, 0.0)
        if labels.ndim == 1:
            assert torch.equal(inputs, pixels) and torch.equal(labels, targets)
            continue
        for i in range(4):
            own, other = i, (i - 1) % 4
            share = labels[i, targets[own]].item()
            assert labels[i, targets[other]].item() == pytest.approx(1 - share, abs=1e-6)
            assert labels[i].sum().item() == pytest.approx(1)
            assert inputs[i].mean().item() == pytest.approx(
                share * own + (1 - share) * other, abs=1e-5
            )
            if augment == "cutmix":
                assert set(inputs[i].unique().tolist()) <= {float(own), float(other)}
        shares.append(share)
    assert torch.equal(pixels[2], torch.full((3, 16, 16), 2.0))  # the input is left alone
    assert len(shares) == 200 if augment == "mixup" else 75 < len(shares) < 125
    assert min(shares) < (0.1 if augment == "mixup" else 0.3) and max(shares) > 0.9
    if augment == "mixup":
        assert sum(shares) / 200 == pytest.approx(0.5, abs=0.06)  # Beta(1, 1) is uniform


def test_the_loss_of_mixed_labels_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])  # p = (3/4, 1/4), (1/2, 1/2)
    labels = torch.tensor([[0.2, 0.8], [1.0, 0.0]])
    augmented = AugmentedBatch(Recipe(augment="mixup"), 2)
    expected = (-0.2 * math.log(0.75) - 0.8 * math.log(0.25) + math.log(2)) / 2
    assert augmented.loss(logits, labels).item() == pytest.approx(expected, abs=1e-6)
    assert augmented.hits(logits, labels).tolist() == [False, True]
    smooth = AugmentedBatch(Recipe(augment="mixup", label_smoothing=0.1), 2)
    spread = (-0.23 * math.log(0.75) - 0.77 * math.log(0.25) + math.log(2)) / 2
    assert smooth.loss(logits, labels).item() == pytest.approx(spread, abs=1e-6)


def test_the_divergence_of_three_views_by_hand():
    """p = (.5 .5), (.9 .1), (.1 .9) around M = (.5 .5): (0 + 2 (.9 ln 1.8 + .1 ln .2)) / 3."""
    nine = math.log(9.0)
    logits = torch.tensor([[[0.0, 0.0]], [[nine, 0.0]], [[0.0, nine]]])
    expected = 2 * (0.9 * math.log(1.8) + 0.1 * math.log(0.2)) / 3
    assert jensen_shannon(logits).item() == pytest.approx(expected, abs=1e-6)
    assert jensen_shannon(logits[:1].expand(3, 1, 2)).item() == pytest.approx(0, abs=1e-7)
    certain = torch.eye(3)[:, None] * 200  # three certain, different answers: log V
    assert jensen_shannon(certain).item() == pytest.approx(math.log(3), abs=1e-5)
    augmented = AugmentedBatch(Recipe(augment="augmix"), 2)
    loss = augmented.loss(logits.flatten(0, 1), torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(2) + 12 * expected, abs=1e-5)
    assert augmented.hits(logits.flatten(0, 1), torch.tensor([0])).tolist() == [True]


def test_the_grids_squares_by_hand():
    zero = torch.zeros(1)
    mask = grid_mask(20, 20, torch.tensor([10.0]), zero, torch.zeros(1, 2))[0]
    # Rows and columns from the centre, 0.5 to 9.5 in a cell of 10: the last four are hidden.
    hidden = torch.tensor([i % 10 >= 6 for i in range(20)])
    assert torch.equal(mask == 0, hidden[:, None] & hidden)
    shifted = grid_mask(20, 20, torch.tensor([10.0]), zero, torch.tensor([[0.3, 0.0]]))[0]
    assert torch.equal(shifted == 0, hidden.roll(-3)[:, None] & hidden)
    turned = grid_mask(20, 20, torch.tensor([10.0]), zero + math.pi / 4, torch.zeros(1, 2))[0]
    assert not torch.equal(turned, mask) and 0.08 < (turned == 0).float().mean() < 0.24


@pytest.mark.slow
@pytest.mark.parametrize(
    ("progress", "share"), [(0.0, 0.0), (0.2, 0.2), (0.4, 0.4), (0.8, 0.8), (1.0, 0.8)]
)
def test_the_grids_probability_rises_to_its_peak_and_stays(progress, share):
    augmented = AugmentedBatch(Recipe(augment="gridmask"), 2)
    torch.manual_seed(0)
    pixels, targets = torch.ones(2000, 3, 28, 28), torch.zeros(2000).long()
    inputs, labels = augmented.inputs(pixels, targets, progress)
    assert labels is targets and set(inputs.unique().tolist()) <= {0.0, 1.0}
    hidden = (inputs == 0).float().mean(dim=(1, 2, 3))
    assert (hidden > 0).float().mean().item() == pytest.approx(share, abs=0.035)
    if share:  # (1 - 0.6)^2 of the area, less what rounding the bars up takes
        assert hidden[hidden > 0].mean().item() == pytest.approx(0.15, abs=0.02)


# In training.


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [("--augment", "cutmix"), ("--augment", "augmix"), ("--augment", "gridmask", "--workers", 2)],
    ids=lambda options: options[1],
)
def test_a_stopped_run_ends_as_an_uninterrupted_one(dataset, tmp_path, monkeypatch, options):
    whole = checkpoint(train(dataset, tmp_path / "whole", *options[:2]))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 3)
        train(dataset, tmp_path / "stopped", *options)
    ours = checkpoint(train(dataset, tmp_path / "stopped", *options))
    assert ours["history"] == whole["history"]
    assert all(torch.equal(v, whole["state_dict"][k]) for k, v in ours["state_dict"].items())
    plain = checkpoint(train(dataset, tmp_path / "plain"))
    assert plain["history"] != whole["history"]


@pytest.mark.slow
def test_the_objective_knows_how_far_the_run_is(dataset, tmp_path, monkeypatch):
    found, loss = [], Supervised.loss

    def note(self, model, batch, progress):
        found.append(progress)
        return loss(self, model, batch, progress)

    monkeypatch.setattr(Supervised, "loss", note)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 4)
        train(dataset, tmp_path)
    train(dataset, tmp_path)
    assert found == [0, 1 / 8, 2 / 8, 3 / 8, *(i / 8 for i in range(4, 8))]


@pytest.mark.parametrize("augment", STEPS_OF_IMAGES)
def test_unlabelled_views_stay_as_their_method_wants_them(augment):
    image = Image.linear_gradient("L").convert("RGB")
    views = []
    for name in ("default", augment):
        torch.manual_seed(3)
        views.append(TwoViews(Recipe(**SMALL, augment=name), 2)(image))
    assert all(map(torch.equal, *views))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        assert torch.equal(train_transform(Recipe(**SMALL))(image), views[0][0])


@pytest.mark.parametrize("augment", ["mixup", "augmix"])
def test_labelled_images_are_mixed_beside_unlabelled_ones(images, augment):
    recipe = Recipe(**SMALL, augment=augment, batch_size=4)
    config = SoftMatchConfig(consistency_weight=0.0)
    objective = SoftMatch(images[:10], images[10:], config, recipe, num_classes=2, seed=1)
    pixels, targets, weak, strong = next(iter(objective.batches([4], 0, Accelerator())))
    assert weak.shape == strong.shape == (2, 3, 32, 32)  # half as many images as labelled ones
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 2))
    torch.manual_seed(7)
    loss, hits = objective.loss(model, [pixels, targets, weak, strong], 0.0)
    torch.manual_seed(7)
    augmented = AugmentedBatch(recipe, 2)
    inputs, labels = augmented.inputs(pixels, targets, 0.0)
    expected = augmented.loss(model(inputs), labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5) and hits.shape == (4,)


@pytest.mark.slow
@pytest.mark.parametrize(("labels", "augment"), [("amst", "mixup"), ("soft", "gridmask")])
def test_learnt_labels_take_augmentations(dataset, tmp_path, labels, augment):
    run_dir = train(dataset, tmp_path, "--labels", labels, "--augment", augment)
    assert labels in run_dir.parent.name and augment in run_dir.parent.name
    found = [row["train_loss"] for row in checkpoint(run_dir)["history"]]
    assert all(map(math.isfinite, found))


def test_the_grid_hides_parts_of_images_with_soft_labels(dataset):
    recipe = Recipe(**SMALL, augment="gridmask", augment_probability=1.0, batch_size=4)
    config = SoftLabelsConfig(mixup_alpha=0.0)
    objective = SoftLabels(records(dataset), torch.full((6, 3), 1 / 3), config, recipe, seed=1)
    batch = next(iter(objective.batches([8], 0, Accelerator())))
    model, fed = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3)), []
    model.register_forward_pre_hook(lambda module, inputs: fed.append(inputs[0]))
    for progress in (0.0, 1.0):
        objective.loss(model, batch, progress)
    hidden = [(images == 0).float().mean().item() for images in (fed[1], fed[3])]
    assert hidden[0] < 0.01 and 0.05 < hidden[1] < 0.3


def test_the_voting_heads_learn_smoothed_labels_by_hand():
    recipe = Recipe(**SMALL, label_smoothing=0.1)
    objective = HeadTraining([], AmstConfig(multi_head=False), recipe, seed=1)
    objective.wrap(Classifier("resnet10_tiny", 2, 32))
    logits = torch.tensor([[[math.log(3.0), 0.0]]])  # one head, one image: p = 3/4, 1/4
    view = torch.zeros(1, 3, 32, 32)
    loss, _ = objective.loss(lambda pixels: logits, [view, view, torch.tensor([0])], 0.0)
    expected = -0.95 * math.log(0.75) - 0.05 * math.log(0.25)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--augment mixup --labels soft", "labels soft mixes .* leave out --augment mixup"),
        ("--augment augmix --labels soft", "leave out --augment augmix"),
        ("--label_smoothing 0.1 --labels soft", "label_smoothing 0.1"),
        ("--augment cutmix --batch_size 1", "batch_size 1: cutmix .* give 2 or more"),
        ("--augment cutout --augment_probability 0.3", "counts only with .*random_erasing"),
        ("--augment gridmask --augment_probability 0", "augment_probability 0.0: give more than 0"),
        ("--randaugment_magnitude 31", "randaugment_magnitude 31: give 0 to 30"),
        ("--mix_alpha 0", "mix_alpha 0.0: give a positive number"),
        ("--jsd_weight -1", "jsd_weight -1.0"),
    ],
)
def test_a_wrong_augmentation_is_refused_in_one_line(
    dataset,
    tmp_path: Path,
    monkeypatch,
    options,
    words,
):
    monkeypatch.setattr(Trainer, "__init__", None)
    with pytest.raises(InputError, match=words) as error:
        train(dataset, tmp_path, *options.split())
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_an_unknown_augmentation_is_refused_with_the_known_ones(dataset, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(dataset, tmp_path, "--augment", "cutmixup")
    assert "'cutmix'" in capsys.readouterr().err
