"""The plot of prototypes: what it shows, and that the command shows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from distdiff import prototype_plot
from distdiff.prototype_panels import points_of, principal_plane, unit
from distdiff.prototypes import build_prototypes, extract_features
from expansion.classifier.backbones import load_classifier
from expansion.common.errors import InputError
from expansion.data.datasets import few_shot, load_dataset
from expansion.pictures.figures import COLOURS
from expansion.pictures.scatter import Points, scatter_panels
from tests.helpers.expanded_sets import write_set


def test_the_plane_is_that_of_the_largest_eigenvalues_of_the_covariance():
    vectors = np.random.default_rng(0).normal(size=(40, 6)) * [3, 1, 0.5, 2, 0.1, 0.2]
    plane = principal_plane(vectors)
    values, axes = np.linalg.eigh(np.cov(vectors.T))
    expected = np.abs(axes[:, [-1, -2]].T)
    np.testing.assert_allclose(np.abs(plane.axes), expected, atol=1e-8)
    np.testing.assert_allclose(plane.shares, values[[-1, -2]] / values.sum())
    assert all(row[np.abs(row).argmax()] > 0 for row in plane.axes)
    np.testing.assert_allclose(plane.places(vectors).mean(axis=0), 0, atol=1e-9)


def test_features_without_a_plane_are_refused():
    with pytest.raises(InputError, match="the 3 real images span no plane"):
        principal_plane(np.outer([0.0, 1.0, 2.0], np.ones(4)))


def test_a_panel_shows_images_and_the_prototypes_that_guide():
    torch.manual_seed(0)
    real, labels = torch.randn(30, 5), torch.arange(30) % 2
    made, made_labels = torch.randn(8, 5), torch.arange(8) % 2
    plane = principal_plane(unit(real))
    panel = points_of(plane, [(real, labels), (made, made_labels)], 2, 3)
    assert [points.title for points in panel] == [
        "generated", "real", "group prototype", "class prototype",
    ]  # fmt: skip
    assert [len(points.places) for points in panel] == [8, 30, 6, 2]
    expected = build_prototypes(real, labels, 2, 3)
    np.testing.assert_allclose(
        panel[3].places, plane.places(expected.class_prototypes.numpy()), atol=1e-6
    )
    second = plane.places(expected.group_prototypes[1].numpy())
    np.testing.assert_allclose(panel[2].places[3:], second, atol=1e-6)
    assert panel[2].groups.tolist() == [0, 0, 0, 1, 1, 1]
    alone = points_of(plane, [(real, labels)], 2, 1)
    assert [points.title for points in alone] == ["real", "group prototype", "class prototype"]


def test_every_group_is_drawn_in_its_colour_in_every_panel():
    points = Points(np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([0, 3]), "o", "real", 300)
    picture = scatter_panels([("K = 1", [points]), ("K = 2", [points])], ["a"], ("x", "y"))
    for colour in (COLOURS[0], COLOURS[3]):
        is_it = np.abs(np.asarray(picture) / 255 - to_rgb(colour)).max(axis=2) < 0.02
        columns = np.flatnonzero(is_it.any(axis=0))
        assert columns.min() < picture.width / 2 < columns.max()


@pytest.fixture(scope="module")
def expanded(digits_dir, tmp_path_factory) -> Path:
    """One variant of three real images of each digit, the real image in negative."""
    records = few_shot(load_dataset("digits", digits_dir).records("train"), 3)
    folder = tmp_path_factory.mktemp("sets") / "negative"
    return write_set(folder, (
        (r, 0, f"{r.class_name}/{i}.png", 255 - np.asarray(r.load())) for i, r in enumerate(records)
    ))  # fmt: skip


def words(digits_dir: Path, guide: Path, output: Path, *more: object) -> list[str]:
    line = f"-d digits --data_dir {digits_dir} --encoder_weight_path {guide} --output {output}"
    return [*line.split(), "--device", "cpu", *map(str, more)]


def test_the_command_writes_a_picture_of_some_classes(
    digits_dir, guide_path, expanded, tmp_path, capsys, monkeypatch
):
    seen = []

    def spy(panels, names, labels):
        seen.append((panels, names))
        return scatter_panels(panels, names, labels)

    monkeypatch.setattr(prototype_plot, "scatter_panels", spy)
    output = tmp_path / "prototypes.png"
    options = ("--classes", "8", "3", "--exp", expanded, "--K", "1", "2")
    prototype_plot.main(words(digits_dir, guide_path, output, *options))
    assert capsys.readouterr().out == f"{output}: 40 real and 6 generated images\n"
    with Image.open(output) as image:
        assert image.format == "PNG" and image.width > image.height
    ((panels, names),) = seen
    assert [title for title, _ in panels] == ["K = 1", "K = 2"] and names == ["eight", "three"]
    # The first panel's class prototype of the threes, computed from their images alone.
    threes = [r for r in load_dataset("digits", digits_dir).records("train") if r.label == 3]
    eights = [r for r in load_dataset("digits", digits_dir).records("train") if r.label == 8]
    guide = load_classifier(guide_path)
    both = [
        torch.nn.functional.normalize(extract_features(guide, part)) for part in (threes, eights)
    ]
    plane = principal_plane(torch.cat(both).double().numpy())
    mean = torch.nn.functional.normalize(both[0].mean(0), dim=0).double().numpy()
    place = plane.places(mean[None])[0]
    np.testing.assert_allclose(np.abs(panels[0][1][-1].places[1]), np.abs(place), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--classes", "eigth"), "unknown class 'eigth'"),
        (("--classes", *"0123456"), "classes: give at most 6"),
        (("--classes", "1", "1"), "classes names one twice"),
        (("--K", "0"), "K: give one or more positive numbers"),
        (("--exp", "none_such"), "holds no expanded set"),
        (("--max_variants", "1"), "max_variants is for the images of a set"),
        (("--output", "plot.pdf"), "give a name that ends in .png"),
        (("--encoder_weight_path", "no.pth"), "encoder_weight_path no.pth does not exist"),
    ],
)
def test_what_cannot_be_drawn_is_said(digits_dir, guide_path, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        prototype_plot.main(words(digits_dir, guide_path, tmp_path / "a.png", *options))
    assert not list(tmp_path.glob("*.png"))
