"""Class and group prototypes (mean of unit features, of unit length) against values by hand."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from distdiff.prototypes import build_prototypes, extract_features
from expansion.common.errors import InputError
from expansion.images.records import ImageRecord

ROOT_HALF = math.sqrt(0.5)


def at(*degrees: float) -> Tensor:
    """Unit vectors (I, 2) at these angles."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


def one_class(features: Tensor, num_groups: int = 3) -> tuple[Tensor, Tensor]:
    """Class prototype (D,) and group prototypes (K, D) of features that form one class."""
    labels = torch.zeros(len(features), dtype=torch.long)
    prototypes = build_prototypes(features, labels, num_classes=1, num_groups=num_groups)
    return prototypes.class_prototypes[0], prototypes.group_prototypes[0]


def in_order(vectors: Tensor) -> Tensor:
    """Distinct rows sorted by angle."""
    rounded = {tuple(round(x, 5) for x in row): row for row in vectors.tolist()}
    return torch.tensor(sorted(rounded.values(), key=lambda v: math.atan2(v[1], v[0])))


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_one_image_is_its_class_and_all_its_groups():
    class_prototype, groups = one_class(torch.tensor([[3.0, 4.0]]))
    close(class_prototype, torch.tensor([0.6, 0.8]))
    close(groups, torch.tensor([[0.6, 0.8]] * 3))


def test_two_images_are_two_groups_repeated_to_three():
    class_prototype, groups = one_class(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    close(class_prototype, torch.tensor([ROOT_HALF, ROOT_HALF]))
    assert groups.shape == (3, 2)
    close(in_order(groups), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))


def test_as_many_images_as_groups_are_one_group_each():
    class_prototype, groups = one_class(at(0, 60, 120))
    close(class_prototype, at(60)[0])  # symmetric about 60 degrees
    close(in_order(groups), at(0, 60, 120))


def test_more_images_than_groups_are_clustered():
    """Pairs 10 degrees apart: a group is the bisector; the class is the mean of all five."""
    class_prototype, groups = one_class(at(0, 100, 10, 150, 90))
    close(in_order(groups), at(5, 95, 150))
    total = torch.tensor([1 - 0.173648 + 0.984808 - 0.866025, 0.984808 + 0.173648 + 0.5 + 1])
    close(class_prototype, total / total.norm())


@pytest.mark.parametrize("features", [at(20), at(0, 90), at(0, 30, 45, 200)])
def test_a_single_group_is_the_class(features):
    class_prototype, groups = one_class(features, num_groups=1)
    assert groups.shape == (1, 2)
    close(groups[0], class_prototype)


def test_every_feature_counts_the_same_whatever_its_length():
    """Without scaling each feature to unit length first, the long one would dominate the mean."""
    class_prototype, groups = one_class(torch.tensor([[100.0, 0.0], [0.0, 0.01]]), num_groups=1)
    close(class_prototype, torch.tensor([ROOT_HALF, ROOT_HALF]))
    close(groups[0], torch.tensor([ROOT_HALF, ROOT_HALF]))


def test_linkage_is_average_where_single_and_complete_differ():
    """Angles 0 10 30 57 85 (arcs, which order as the chords do), two groups.

    All join 0 and 10 first. Then, average: 30 to {0, 10} at (30 + 20) / 2 = 25, before 30-57 at
    27; then 57-85 at 28, before {0, 10, 30} to 57 at 43.7. Single: 30 joins at 20, 57 at 27; 85
    stays alone. Complete: 30-57 at 27 before {0, 10} to 30 at 30; then 85 joins them at 55, before
    {0, 10} at 57.
    """
    _, groups = one_class(at(0, 10, 30, 57, 85), num_groups=2)
    left = at(0, 10, 30).mean(0)
    close(in_order(groups), torch.stack([left / left.norm(), at(71)[0]]))


def test_the_order_of_the_images_changes_nothing():
    features = torch.rand(9, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1])
    first = build_prototypes(features, labels, 2, 3)
    order = torch.tensor([8, 3, 1, 6, 0, 7, 4, 2, 5])
    second = build_prototypes(features[order], labels[order], 2, 3)
    close(first.class_prototypes, second.class_prototypes)
    for label in range(2):
        groups, others = first.group_prototypes[label], second.group_prototypes[label]
        nearest = torch.cdist(groups, others).min(dim=1)
        assert nearest.values.max() < 1e-5 and len(set(nearest.indices.tolist())) == 3


def test_each_class_has_prototypes_of_its_own_images():
    features = torch.cat([at(0), at(90, 110), at(180)])
    prototypes = build_prototypes(features, torch.tensor([2, 0, 0, 1]), 3, 2)
    close(prototypes.class_prototypes, at(100, 180, 0))
    close(in_order(prototypes.group_prototypes[0]), at(90, 110))
    close(prototypes.group_prototypes[1:], torch.stack([at(180, 180), at(0, 0)]))


@pytest.mark.parametrize("num_groups", [1, 2, 3, 5])
def test_prototypes_have_unit_length_and_the_announced_shape(num_groups):
    features = 7 * torch.rand(8, 6, generator=torch.Generator().manual_seed(1))
    prototypes = build_prototypes(features, torch.tensor([0, 0, 0, 0, 1, 1, 1, 2]), 3, num_groups)
    assert prototypes.class_prototypes.shape == (3, 6)
    assert prototypes.group_prototypes.shape == (3, num_groups, 6)
    close(prototypes.class_prototypes.norm(dim=-1), torch.ones(3))
    close(prototypes.group_prototypes.norm(dim=-1), torch.ones(3, num_groups))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_identical_images_give_one_prototype_and_no_nan(count):
    class_prototype, groups = one_class(at(*[40] * count))
    close(class_prototype, at(40)[0])
    close(groups, at(40, 40, 40))


def test_ties_still_give_groups_that_share_out_all_images():
    """Four equally spaced images, two groups: three partitions are right by order of joining."""
    _, groups = one_class(at(0, 30, 60, 90), num_groups=2)
    three_and_one = [[at(30)[0], at(90)[0]], [at(0)[0], at(60)[0]]]
    valid = [torch.stack(pair) for pair in [list(at(15, 75)), *three_and_one]]
    assert any(torch.allclose(in_order(groups), pair, atol=1e-5) for pair in valid)
    assert torch.equal(groups, one_class(at(0, 30, 60, 90), num_groups=2)[1])


def test_a_class_without_an_image_is_an_input_error_that_names_it():
    with pytest.raises(InputError, match="class.* 1 .*no image"):
        build_prototypes(at(0, 90), torch.tensor([0, 2]), num_classes=3, num_groups=2)


class MeanColour(nn.Module):
    """Guide whose features are the mean of the normalised pixels per channel."""

    image_size = 8

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def features(self, pixels: Tensor) -> Tensor:
        assert pixels.shape[1:] == (3, 8, 8)
        return pixels.mean(dim=(2, 3))


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_features_are_those_of_squashed_and_normalised_images_in_order(tmp_path, batch_size):
    """A third of a 24x8 image is red: squashing keeps the share, a centre crop would lose it."""
    records = []
    for i, colour in enumerate([(255, 0, 0), (0, 0, 0), (102, 204, 51)]):
        image = Image.new("RGB", (24, 8))
        image.paste(colour, (0, 0, 8, 8))
        image.save(tmp_path / f"{i}.png")
        records.append(ImageRecord(tmp_path / f"{i}.png", f"{i}.png", 0, "c"))
    features = extract_features(MeanColour(), records, batch_size)
    shares = torch.tensor([[1, 0, 0], [0, 0, 0], [0.4, 0.8, 0.2]]) / 3
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    # uint8 rounding after the resize: up to 0.5/255 in a pixel
    torch.testing.assert_close(features, (shares - mean) / std, atol=0.01, rtol=0)
