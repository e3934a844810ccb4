"""Array files of CIFAR, MNIST, STL-10 and MedMNIST: unpacked once to folders, and read there."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from expansion.data.readers import arrays as array_readers
from expansion.data.readers.array_files import ArrayFiles, load_pickle, read_idx
from tests.helpers.stand_ins import (
    HURTFUL,
    cifar10,
    folders,
    idx,
    medmnist,
    pixels_of,
    save_pickle,
    stand_in,
)

DATASETS_DIR = os.environ.get("DATASETS_DIR")


def pixels(record) -> np.ndarray:
    return np.asarray(Image.open(record.path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_classes", "train", "test", "shape"),
    [
        ("cifar10", 3, 15, 3, (32, 32, 3)),
        ("cifar100", 2, 210, 2, (32, 32, 3)),
        ("cifar100_subset", 2, 200, 2, (32, 32, 3)),
        ("mnist", 10, 20, 10, (28, 28)),
        ("fashion-mnist", 10, 20, 10, (28, 28)),
        ("stl10", 3, 6, 3, (96, 96, 3)),
        ("pathmnist", 9, 900, 9, (28, 28, 3)),
        ("bloodmnist", 8, 8, 8, (28, 28, 3)),
        ("breastmnist", 2, 2, 2, (28, 28)),
    ],
)
def test_the_official_files_become_class_folders(tmp_path, name, num_classes, train, test, shape):
    root = stand_in(name, tmp_path)
    dataset = load_dataset(name, tmp_path)
    assert (dataset.name, dataset.root, len(dataset.class_names)) == (name, root, num_classes)
    for split, count in (("train", train), ("test", test)):
        records = dataset.records(split)
        assert len(records) == count
        assert set(Counter(r.label for r in records).values()) == {count // num_classes}
        assert all(dataset.class_names[r.label] == r.class_name for r in records)
        assert all(r.file_name.startswith(f"{split}/") for r in records)
        assert pixels(records[0]).shape == shape
    assert not [p for p in root.iterdir() if p.name.startswith(".")]


def test_cifar_pixels_and_labels_are_those_of_their_row(tmp_path):
    stand_in("cifar10", tmp_path)
    records = load_dataset("cifar10", tmp_path).records("train")
    row = pixels_of(3, (3072,), seed=2)[1]  # the third batch; image 7 of all
    (found,) = [r for r in records if r.path.stem == "000007"]
    assert found.class_name == "bird"
    assert np.array_equal(pixels(found)[..., 0], row[:1024].reshape(32, 32))
    assert np.array_equal(pixels(found)[..., 2], row[2048:].reshape(32, 32))


def test_the_columns_of_stl10_come_out_upright_with_labels_from_1(tmp_path):
    stand_in("stl10", tmp_path)
    dataset = load_dataset("stl10", tmp_path)
    expected = pixels_of(6, (96, 96, 3), seed=0)
    for record in dataset.records("train"):
        index = int(record.path.stem)
        assert record.label == index % 3
        assert np.array_equal(pixels(record), expected[index])
    assert dataset.class_names == ("airplane", "bird", "car")
    unlabeled = dataset.records("unlabeled")
    assert [r.file_name for r in unlabeled] == [f"unlabeled/000/{i:06d}.png" for i in range(2)]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("breastmnist", "breastmnist.npz"),
        ("cifar10", "*/data_batch_3"),
        ("cifar100", "*/test"),
        ("stl10", "*/unlabeled_X.bin"),
        ("fashion-mnist", "train-labels-idx1-ubyte*"),
    ],
)
def test_an_array_file_that_changed_since_it_was_unpacked_is_refused(tmp_path, name, file):
    root = stand_in(name, tmp_path)
    load_dataset(name, tmp_path)
    (path,) = (path for path in root.rglob(Path(file).name) if path.is_file())
    os.utime(path, ns=(1, 1))  # copied elsewhere: the content counts
    load_dataset(name, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=f"{path.name} is not the file .* to unpack again"):
        load_dataset(name, tmp_path)
    path.unlink()  # the images are there
    load_dataset(name, tmp_path)


def test_what_the_refusal_advises_unpacks_all_splits_anew(tmp_path):
    root = stand_in("stl10", tmp_path)
    before = [pixels(r) for r in load_dataset("stl10", tmp_path).records("unlabeled")]
    (path,) = (path for path in root.rglob("unlabeled_X.bin"))
    path.write_bytes(bytes(255 - value for value in path.read_bytes()))
    with pytest.raises(InputError, match="train, test, unlabeled. to unpack again"):
        load_dataset("stl10", tmp_path)
    (root / "unpacked.json").unlink()
    for split in ("train", "test", "unlabeled"):
        shutil.rmtree(root / split)
    after = [pixels(r) for r in load_dataset("stl10", tmp_path).records("unlabeled")]
    assert all(np.array_equal(old, 255 - new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_files_are_read_plain_or_gzipped_and_in_torchvisions_folder(tmp_path, end):
    idx(tmp_path / "mnist" / "MNIST" / "raw", end)
    dataset = load_dataset("mnist", tmp_path)
    assert dataset.prompt_names[:2] == ("zero", "one")
    record = dataset.records("train")[5]
    assert record.label == int(record.path.stem) % 10
    assert np.array_equal(pixels(record), pixels_of(20, (28, 28))[int(record.path.stem)])


def test_the_subset_is_drawn_by_seed_or_taken_from_its_archive(tmp_path):
    drawn = []
    for place in ("a", "b"):
        root = stand_in("cifar100_subset", tmp_path / place)
        if place == "b":
            folders(root / "CIFAR_10000", {"apple": 3, "aquarium_fish": 2}, ".png")
        drawn.append(load_dataset("cifar100_subset", tmp_path / place))
    assert Counter(r.label for r in drawn[0].records("train")) == {0: 100, 1: 100}
    indices = {int(r.path.stem) for r in drawn[0].records("train")}
    assert indices < set(range(210)) and indices != set(range(200))  # not just the first
    assert [r.file_name for r in drawn[1].records("train")][:1] == ["train/apple/image_0000.png"]
    assert len(drawn[1].records("train")) == 5 and len(drawn[1].records("test")) == 2
    shutil.rmtree(tmp_path / "a" / "cifar100_subset" / "train")
    again = load_dataset("cifar100_subset", tmp_path / "a")
    assert [r.file_name for r in again.records("train")] == [
        r.file_name for r in drawn[0].records("train")
    ]


def test_an_archive_of_other_classes_is_refused(tmp_path):
    root = stand_in("cifar100_subset", tmp_path)
    folders(root / "CIFAR_10000", {"apple": 3, "fish": 2}, ".png")
    with pytest.raises(InputError, match="CIFAR_10000.*aquarium_fish, fish"):
        load_dataset("cifar100_subset", tmp_path)


def test_unpacking_happens_once(tmp_path, monkeypatch):
    stand_in("cifar10", tmp_path)
    before = {
        r.path: r.path.stat().st_mtime_ns
        for r in load_dataset("cifar10", tmp_path).records("train")
    }
    monkeypatch.setattr(array_readers, "FORMATS", {})  # the files must not be opened again
    again = load_dataset("cifar10", tmp_path).records("train")
    assert {r.path: r.path.stat().st_mtime_ns for r in again} == before


def test_unpacking_twice_at_once_leaves_one_whole_copy(tmp_path):
    root = stand_in("cifar10", tmp_path)
    with ThreadPoolExecutor(2) as pool:
        found = list(
            pool.map(lambda _: load_dataset("cifar10", tmp_path).records("train"), range(2))
        )
    assert found[0] == found[1] and len(found[0]) == 15
    assert sorted(os.listdir(root)) == ["cifar-10-batches-py", "test", "train", "unpacked.json"]


def test_a_stop_while_unpacking_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    root = stand_in("cifar10", tmp_path)
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        original = array_readers._write

        def stop(images, *rest):
            original(images, *rest)
            raise KeyboardInterrupt

        context.setattr(array_readers, "_write", stop)
        load_dataset("cifar10", tmp_path)
    assert os.listdir(root) == ["cifar-10-batches-py"]
    assert len(load_dataset("cifar10", tmp_path).records("train")) == 15


def test_the_training_folder_comes_last_as_it_marks_the_end(tmp_path, monkeypatch):
    stand_in("stl10", tmp_path)
    moved = []
    original = array_readers.move_whole
    monkeypatch.setattr(
        array_readers, "move_whole", lambda a, b: (moved.append(b.name), original(a, b))
    )
    load_dataset("stl10", tmp_path)
    assert len(moved) == 3 and moved[-1] == "train"


def test_an_idx_file_that_is_shorter_than_its_header_says_is_named(tmp_path):
    idx(tmp_path / "mnist", "")
    cut(tmp_path / "mnist" / "t10k-images-idx3-ubyte")
    with pytest.raises(InputError, match="t10k-images.*: 7833 values, but .* 10 x 28 x 28"):
        load_dataset("mnist", tmp_path)


def test_a_set_that_was_unpacked_with_other_settings_is_refused(tmp_path):
    root = stand_in("cifar100_subset", tmp_path)
    load_dataset("cifar100_subset", tmp_path)
    root.rename(tmp_path / "cifar100")
    with pytest.raises(InputError, match="unpacked with other settings.*remove unpacked.json"):
        load_dataset("cifar100", tmp_path)


def test_folders_that_somebody_else_unpacked_are_read(tmp_path):
    for split in ("train", "test"):
        folders(tmp_path / "cifar10" / split, {"cat": 2, "airplane": 1}, ".png")
    dataset = load_dataset("cifar10", tmp_path)
    assert dataset.class_names == ("airplane", "cat")
    assert len(dataset.records("train")) == 3


def test_hurtful_class_names_get_safe_folders_and_stay_as_they_are(tmp_path):
    cifar10(tmp_path / "cifar10", HURTFUL)
    for _ in range(2):  # unpacked, and read again
        dataset = load_dataset("cifar10", tmp_path)
        assert dataset.class_names == HURTFUL
        records = dataset.records("train")
        assert all(int(r.path.stem) % len(HURTFUL) == r.label for r in records)
        assert len({r.path.parent.name.casefold() for r in records}) == len(HURTFUL)
        assert all(r.path.resolve().is_relative_to(tmp_path / "cifar10/train") for r in records)


class Attack:
    """An object whose unpickling would make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("place", ["alone", "inside"])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, place):
    attack = Attack(tmp_path / "harm")
    save_pickle(tmp_path / "batch", attack if place == "alone" else {"data": attack, "labels": [0]})
    with pytest.raises(InputError, match="batch: it wants to make"):
        load_pickle(tmp_path / "batch")
    assert not (tmp_path / "harm").exists()
    pickle.loads((tmp_path / "batch").read_bytes())
    assert (tmp_path / "harm").exists()  # the attack is a real one


@pytest.mark.parametrize("target", ["builtins.eval", "os.system", "numpy.load", "codecs.decode"])
def test_no_function_is_fetched_from_a_pickle(tmp_path, target):
    module, name = target.rsplit(".", 1)
    (tmp_path / "batch").write_bytes(
        b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"X\x01\0\0\0a\x85R."
    )
    with pytest.raises(InputError, match=f"wants to make {target}"):
        load_pickle(tmp_path / "batch")


def test_a_python_2_pickle_with_bytes_as_keys_is_read(tmp_path):
    save_pickle(tmp_path / "batch", {b"data": np.arange(4, dtype=np.uint8), b"labels": [1, 2]})
    found = load_pickle(tmp_path / "batch")
    assert found["labels"] == [1, 2] and found["data"].tolist() == [0, 1, 2, 3]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("name", "file", "named"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_3", "data_batch_3: .*download it again"),
        ("cifar100", "cifar-100-python/meta", "meta: .*download it again"),
        ("mnist", "train-images-idx3-ubyte.gz", "train-images-idx3-ubyte.gz.*download it again"),
        ("stl10", "stl10_binary/test_X.bin", "test_X.bin: .* no whole images"),
        ("stl10", "stl10_binary/train_y.bin", "6 train images, but|labels from"),
        ("breastmnist", "breastmnist.npz", "breastmnist.npz: .*download it again"),
    ],
)
def test_a_file_that_is_cut_off_is_named(tmp_path, name, file, named):
    root = stand_in(name, tmp_path)
    if file.endswith("_y.bin"):
        (root / file).write_bytes(b"\1\2")
    else:
        cut(root / file)
    with pytest.raises(InputError, match=named):
        load_dataset(name, tmp_path)
    assert not (root / "train").exists()


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "stl10", "pathmnist"])
def test_missing_array_files_are_named(tmp_path, name):
    root = stand_in(name, tmp_path)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        path.unlink()
    with pytest.raises(InputError, match=f"{root} has no .*INSTALL.md"):
        load_dataset(name, tmp_path)


def test_labels_beyond_the_class_names_are_refused(tmp_path):
    medmnist(tmp_path / "medmnist" / "breastmnist", 3)
    with pytest.raises(InputError, match="train labels from 0 to 2, but there are 2 class names"):
        load_dataset("breastmnist", tmp_path)


def test_images_of_several_labels_are_refused(tmp_path):
    root = stand_in("breastmnist", tmp_path)
    arrays = dict(np.load(root / "breastmnist.npz"))
    np.savez(root / "breastmnist.npz", **{**arrays, "train_labels": np.zeros((2, 14), np.uint8)})
    with pytest.raises(InputError, match="only one label per image"):
        load_dataset("breastmnist", tmp_path)


def test_what_is_unpacked_names_each_class_with_number_and_folder(tmp_path):
    root = stand_in("fashion-mnist", tmp_path)
    load_dataset("fashion-mnist", tmp_path)
    rows = json.loads((root / "unpacked.json").read_text())["classes"]
    assert rows[0] == {"id": 0, "name": "T-shirt/top", "folder": "T-shirt-top"}
    assert [row["id"] for row in rows] == list(range(10))


@pytest.mark.skipif(DATASETS_DIR is None, reason="needs the real files: set DATASETS_DIR")
def test_the_real_fashion_mnist_files_are_read():
    found = read_idx(ArrayFiles(Path(DATASETS_DIR) / "fashion-mnist")).splits
    for split, each in (("train", 6000), ("test", 1000)):
        images, labels = found[split]
        assert images.shape == (10 * each, 28, 28)
        assert Counter(labels.tolist()) == dict.fromkeys(range(10), each)
    assert found["test"][1][:4].tolist() == [9, 2, 1, 1]  # ankle boot, pullover, two trousers
