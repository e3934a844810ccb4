"""Labels of array and MATLAB files: whole numbers of any type, or refused; the unused is told."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
from scipy.io import savemat

from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from tests.helpers.stand_ins import (
    cars,
    cifar10,
    draw,
    idx,
    medmnist,
    official_flowers,
    save_idx,
    stand_in,
)


def change_npz(tmp_path, **arrays):
    """BreastMNIST with other arrays, loaded."""
    root = stand_in("breastmnist", tmp_path)
    stored = dict(np.load(root / "breastmnist.npz"))
    np.savez(root / "breastmnist.npz", **{**stored, **arrays})
    return load_dataset("breastmnist", tmp_path)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, np.uint16, np.int8])
@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_whole_numbers_of_any_type_and_shape_are_labels(tmp_path, kind, shape):
    dataset = change_npz(tmp_path, train_labels=np.array([1, 0], dtype=kind).reshape(shape))
    assert {r.path.stem: r.label for r in dataset.records("train")} == {"000000": 1, "000001": 0}


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (np.array([0, 0.5]), r"1 labels are no class number, the first is 0\.5 of image 1"),
        (np.array([np.nan, 1]), "the first is nan of image 0"),
        (np.array([0, np.inf]), "the first is inf of image 1"),
        (np.array([0, 1e300]), "no class number, the first is 1e.300 of image 1"),
        (np.array([0, 2**63], dtype=np.uint64), "no class number"),
        (np.array([False, True]), "labels of type bool, no numbers"),
        (np.array(["0", "1"]), "labels of type <U1, no numbers"),
        (np.array([0, -1]), "train labels from -1 to 0, but there are 2 class names"),
        (np.array([1, 2]), "train labels from 1 to 2, .* of the numbers 0 to 1"),
        (np.array([0, 1, 1]), "2 train images, but 3 labels"),
        (np.array([[0, 1]]), r"labels of shape \(1, 2\)"),
    ],
)
def test_what_is_no_class_number_is_refused_in_one_line(tmp_path, labels, named):
    with pytest.raises(InputError, match=named) as caught:
        change_npz(tmp_path, train_labels=labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "images",
    [
        np.random.default_rng(0).random((2, 28, 28)),
        np.random.default_rng(0).random((2, 28, 28), dtype=np.float32) * 255,
        np.full((2, 28, 28), 4000, dtype=np.uint16),
        np.ones((2, 28, 28), dtype=bool),
        np.zeros((2, 3, 28, 28), dtype=np.uint8),
    ],
)
def test_pixels_of_other_ranges_and_orders_are_refused(tmp_path, images):
    with pytest.raises(InputError, match="expected train images as 8-bit values"):
        change_npz(tmp_path, train_images=images)


def test_what_an_npz_file_holds_beside_is_told_each_time(tmp_path):
    dataset = change_npz(tmp_path, weights=np.zeros(3), notes=np.array(1))
    expected = (
        "ignored: 2 val images of breastmnist.npz",
        "ignored: the arrays weights, notes of breastmnist.npz",
    )
    assert dataset.reader.remarks[-2:] == expected
    assert load_dataset("breastmnist", tmp_path).reader.remarks[-2:] == expected


@pytest.mark.slow
def test_training_images_beyond_those_that_are_drawn_are_told(tmp_path):
    stand_in("pathmnist", tmp_path)
    told = load_dataset("pathmnist", tmp_path).reader.remarks
    assert "ignored: 9 of 909 training images (train_per_class 100)" in told


def alter_batch(path, **values) -> None:
    path.write_bytes(pickle.dumps({**pickle.loads(path.read_bytes()), **values}, protocol=2))


@pytest.mark.parametrize("labels", [[2.0, 1.0, 0.0], [2, 1, 0]])
def test_a_batch_of_cifar_may_hold_its_labels_as_floats(tmp_path, labels):
    cifar10(tmp_path / "cifar10")
    alter_batch(tmp_path / "cifar10/cifar-10-batches-py/data_batch_2", labels=labels)
    records = load_dataset("cifar10", tmp_path).records("train")
    found = {int(r.path.stem): r.label for r in records}
    assert [found[i] for i in (3, 4, 5)] == [2, 1, 0]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"labels": [0, True, 2]}, "data_batch_2: a batch lacks"),
        ({"labels": [0, 1.5, 2]}, "data_batch_2: 1 labels are no class number"),
        ({"labels": [0, float("nan"), 2]}, "train labels from -1"),
        ({"labels": [0, 1]}, "data_batch_2: 3 images, but 2 labels"),
        ({"data": np.ones((3, 3072))}, "data_batch_2: a batch lacks 'data' of 3072 8-bit"),
        ({"data": np.ones((3, 3072), dtype=bool)}, "data_batch_2: a batch lacks 'data'"),
    ],
)
def test_a_batch_of_cifar_that_is_none_is_named(tmp_path, values, named):
    cifar10(tmp_path / "cifar10")
    alter_batch(tmp_path / "cifar10/cifar-10-batches-py/data_batch_2", **values)
    with pytest.raises(InputError, match=named):
        load_dataset("cifar10", tmp_path)


def test_batches_whose_lengths_only_fit_together_are_refused(tmp_path):
    cifar10(tmp_path / "cifar10")
    folder = tmp_path / "cifar10/cifar-10-batches-py"
    alter_batch(folder / "data_batch_1", labels=[0, 1])
    alter_batch(folder / "data_batch_2", labels=[2, 0, 1, 2])
    with pytest.raises(InputError, match="data_batch_1: 3 images, but 2 labels"):
        load_dataset("cifar10", tmp_path)


def test_a_further_batch_of_cifar_is_told(tmp_path):
    cifar10(tmp_path / "cifar10")
    folder = tmp_path / "cifar10/cifar-10-batches-py"
    shutil.copy(folder / "data_batch_1", folder / "data_batch_6")
    told = load_dataset("cifar10", tmp_path).reader.remarks
    assert "ignored: data_batch_6, no file of CIFAR-10" in told


def test_class_names_of_arrays_are_stripped_and_must_differ(tmp_path):
    cifar10(tmp_path / "cifar10", ["cat ", "dog\u00a0", "cow"])
    assert load_dataset("cifar10", tmp_path).class_names == ("cat", "dog", "cow")
    cifar10(tmp_path / "b/cifar10", ["cat ", "cat", "cow"])
    with pytest.raises(InputError, match="a class name occurs twice"):
        load_dataset("cifar10", tmp_path / "b")


def test_one_archive_in_two_places_is_refused(tmp_path):
    for place in ("MNIST/raw", "FashionMNIST/raw"):
        idx(tmp_path / "mnist" / place)
    with pytest.raises(InputError, match="twice: FashionMNIST/raw/.*, MNIST/raw/.*; remove one"):
        load_dataset("mnist", tmp_path)


def test_images_where_the_labels_should_be_are_refused(tmp_path):
    idx(tmp_path / "mnist", "")
    save_idx(tmp_path / "mnist/train-labels-idx1-ubyte", np.zeros((20, 2, 2)))
    with pytest.raises(InputError, match="only one label per image"):
        load_dataset("mnist", tmp_path)


@pytest.mark.slow
def test_labels_of_a_matlab_file_may_be_floats_in_a_column(tmp_path):
    root = tmp_path / "oxford_flowers_official"
    official_flowers(root)
    before = load_dataset("oxford_flowers_official", tmp_path).records("train")
    labels = np.array([[1.0], [10], [2], [2], [10], [1], [77], [77]])
    savemat(root / "imagelabels.mat", {"labels": labels})
    assert load_dataset("oxford_flowers_official", tmp_path).records("train") == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ([1, 10, 2, 2, 10, 1, 77, 0.5], "expected a whole number, got 0.5"),
        ([1, 10, 2, 2, 10, 1, 77, np.nan], "expected a whole number, got nan"),
        ([1, 10, 2, 2, 10, 1, 0, -1], "class 0 of image 7, -1 of image 8, .* start at 1"),
        ([1, 10], "image 3, 7, but .* has 2 labels"),
    ],
)
def test_a_label_of_a_matlab_file_that_is_no_class_is_refused(tmp_path, labels, named):
    root = tmp_path / "oxford_flowers_official"
    official_flowers(root)
    savemat(root / "imagelabels.mat", {"labels": np.array(labels)})
    with pytest.raises(InputError, match=named):
        load_dataset("oxford_flowers_official", tmp_path)


@pytest.mark.slow
def test_a_vector_that_lists_an_image_twice_or_for_both_splits_is_told_or_refused(tmp_path):
    root = tmp_path / "oxford_flowers_official"
    official_flowers(root)
    savemat(root / "setid.mat", {"trnid": [1, 2, 2, 3, 7], "tstid": [8, 6, 5], "valid": [4]})
    told = load_dataset("oxford_flowers_official", tmp_path).reader.remarks
    assert told == ("ignored: 1 row of images listed already: jpg/image_00002.jpg",)
    savemat(root / "setid.mat", {"trnid": [1, 2, 3, 7], "tstid": [1, 8], "valid": [4]})
    with pytest.raises(InputError, match="for training and for testing: jpg/image_00001.jpg"):
        load_dataset("oxford_flowers_official", tmp_path)


@pytest.mark.slow
def test_two_classes_of_one_name_are_refused_in_matlab_files(tmp_path):
    cars(tmp_path / "stanford_cars", ["Acura RL 2012", "Acura RL 2012 "])
    with pytest.raises(InputError, match="cars_meta.mat: the class '2012 Acura RL' occurs twice"):
        load_dataset("stanford_cars", tmp_path)


@pytest.mark.slow
def test_file_names_of_annotations_are_stripped(tmp_path):
    cars(tmp_path / "stanford_cars")
    rows = np.empty(2, dtype=[("fname", object), ("class", object)])
    rows[:] = [("00001.jpg ", 1.0), (" ./00002.jpg", 2)]
    savemat(tmp_path / "stanford_cars/devkit/cars_train_annos.mat", {"annotations": rows})
    draw(tmp_path / "stanford_cars/cars_train/00001.jpg")
    names = [r.file_name for r in load_dataset("stanford_cars", tmp_path).records("train")]
    assert names == ["cars_train/00001.jpg", "cars_train/00002.jpg"]


def test_an_npz_file_of_one_label_per_row_is_still_read(tmp_path):
    medmnist(tmp_path / "medmnist/bloodmnist", 8)
    dataset = load_dataset("bloodmnist", tmp_path)
    assert [r.label for r in dataset.records("train")] == list(range(8))
