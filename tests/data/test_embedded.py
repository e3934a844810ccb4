"""The sets that come with the project: unpacked to what the array file holds, once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

import train_original
from expansion.common.config import PROJECT_ROOT
from expansion.data.datasets import load_dataset
from expansion.data.layouts import embedded
from expansion.data.layouts.embedded import EmbeddedLayout, read_embedded

MNIST = {"train": 20, "test": 200, "val": 100}  # images of each class


@pytest.fixture(scope="module")
def mnist_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mnist")
    load_dataset("mnist-few-shot", folder)
    return folder


@pytest.fixture
def layout_of(tmp_path, monkeypatch):
    """Function that embeds three images of the values 0, 2 and 4 and returns their layout."""
    monkeypatch.setattr(embedded, "PROJECT_ROOT", tmp_path)

    def make(side: int, **changes) -> EmbeddedLayout:
        (tmp_path / "assets").mkdir(exist_ok=True)
        values = np.array([0, 2, 4], np.uint8)
        pixels = np.ones((3, side, side), np.uint8) * values[:, None, None]
        np.savez(tmp_path / "assets" / "few.npz", images=pixels, labels=[7, 8, 7], splits=[0, 1, 0])
        return EmbeddedLayout(file="few.npz", splits=("train", "test"), **changes)

    return make


@pytest.mark.slow
def test_the_few_mnist_digits_are_three_splits_that_share_no_image(mnist_dir):
    contents = []
    for split, count in MNIST.items():
        paths = sorted((mnist_dir / "mnist-few-shot" / split).glob("*/*.png"))
        assert Counter(path.parent.name for path in paths) == dict.fromkeys("0123456789", count)
        contents += [path.read_bytes() for path in paths]
    assert len(set(contents)) == len(contents) == 3200


@pytest.mark.slow
def test_the_files_hold_the_pixels_of_the_array(mnist_dir):
    with np.load(PROJECT_ROOT / "assets/mnist-few-shot/mnist-few-shot.npz") as arrays:
        for index in (0, 1500, 3199):
            split = list(MNIST)[arrays["splits"][index]]
            folder = mnist_dir / "mnist-few-shot" / split / str(arrays["labels"][index])
            with Image.open(folder / f"{index:04d}.png") as image:
                assert (np.asarray(image) == arrays["images"][index]).all()


def test_settings_are_chosen_on_images_that_the_test_does_not_have(mnist_dir):
    final, choosing = (
        load_dataset(name, mnist_dir) for name in ("mnist-few-shot", "mnist-few-shot-val")
    )
    assert final.root == choosing.root and final.name != choosing.name
    names = [
        [record.file_name for record in dataset.records(split)]
        for dataset, split in ((final, "train"), (choosing, "train"))
    ]
    assert names[0] == names[1] and len(names[0]) == 200
    assert {r.file_name.split("/")[0] for r in final.records("test")} == {"test"}
    assert {r.file_name.split("/")[0] for r in choosing.records("test")} == {"val"}
    assert not final.remarks and not choosing.remarks  # both know the folder that they leave out


@pytest.mark.parametrize("name", ["digits", "mnist-few-shot", "mnist-few-shot-val"])
def test_the_settings_in_the_file_of_an_embedded_set_are_settings_of_the_scripts(
    name, mnist_dir, digits_dir, capsys
):
    data_dir = digits_dir if name == "digits" else mnist_dir
    words = ["-d", name, "--data_dir", str(data_dir), "--shots", "1", "--dry_run"]
    assert not train_original.main(words)
    assert "training images: 10 real" in capsys.readouterr().out


def test_white_and_size_are_as_the_layout_says(layout_of, tmp_path):
    read_embedded(layout_of(8, white=4), tmp_path / "data" / "few", "few")
    pixels = {
        path.relative_to(tmp_path / "data").as_posix(): np.asarray(Image.open(path))
        for path in (tmp_path / "data").rglob("*.png")
    }
    assert {name: (p.shape, p.min(), p.max()) for name, p in pixels.items()} == {
        "few/train/7/0000.png": ((32, 32), 0, 0),
        "few/test/8/0001.png": ((32, 32), 128, 128),  # half of 255, rounded to even
        "few/train/7/0002.png": ((32, 32), 255, 255),
    }
