"""Official archives are recognised where they lie, so that nobody splits them by chance."""

from __future__ import annotations

import shutil

import pytest

from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from tests.helpers.stand_ins import WRITERS, folders, stand_in

pytestmark = pytest.mark.slow  # a stand-in of every dataset

ALIKE = {"caltech-101-faces": "caltech-101", "cifar100_subset": "cifar100"}  # but for their names


def names_of(dataset, split: str) -> list[tuple[str, int]]:
    return [(record.file_name, record.label) for record in dataset.records(split)]


@pytest.mark.parametrize("name", sorted(set(WRITERS) - set(ALIKE)))
def test_an_archive_given_by_its_path_is_read_as_the_dataset_that_it_is(tmp_path, name):
    root = stand_in(name, tmp_path / "data")
    by_name, by_path = load_dataset(name, tmp_path / "data"), load_dataset(str(root))
    assert by_path.remarks[0].startswith(f"recognised as {name}: ")
    assert (by_path.config, by_path.class_names) == (by_name.config, by_name.class_names)
    assert by_path.prompt_names == by_name.prompt_names
    for split in ("train", "test"):
        assert names_of(by_path, split) == names_of(by_name, split)


@pytest.mark.parametrize("name", ["cub-200-2011", "dtd", "stanford_cars", "cifar10", "mnist"])
def test_an_official_split_is_not_replaced_by_one_of_chance(tmp_path, name):
    root = stand_in(name, tmp_path)
    with pytest.raises(InputError, match=f"has a test split .recognised as {name}.*leave the opt"):
        load_dataset(str(root), test_fraction=0.3)


@pytest.mark.parametrize(
    ("name", "part"),
    [("cub-200-2011", "images"), ("dtd", "images"), ("stanford_cars", "cars_test")],
)
def test_a_part_of_an_archive_leads_to_the_whole(tmp_path, name, part):
    root = stand_in(name, tmp_path)
    with pytest.raises(InputError, match=f"{part} is no dataset of its own, .*give {root}$"):
        load_dataset(str(root / part), test_fraction=0.3)


@pytest.mark.parametrize("name", ["cub-200-2011", "dtd", "cifar10", "oxford_flowers_official"])
def test_a_folder_around_an_archive_leads_to_it(tmp_path, name):
    root = stand_in(name, tmp_path / "around")
    with pytest.raises(InputError, match=f"is no dataset of its own, .*give {root}$"):
        load_dataset(str(tmp_path / "around"), test_fraction=0.3)


def test_the_class_folders_of_caltech_may_be_split_otherwise_and_that_is_said(tmp_path):
    root = stand_in("caltech-101", tmp_path)
    dataset = load_dataset(str(root / "101_ObjectCategories"), test_fraction=0.3)
    assert len(dataset.class_names) == 4
    assert "is a part of caltech-101, caltech-101-faces, which is split" in dataset.remarks[0]


def test_files_of_two_datasets_are_told_apart_by_the_name_of_the_folder_or_refused(tmp_path):
    root = stand_in("mnist", tmp_path)
    odd = root.rename(tmp_path / "numbers")
    with pytest.raises(InputError, match="laid out as fashion-mnist and as mnist; .* rename it"):
        load_dataset(str(odd))
    shutil.copytree(odd, tmp_path / "Fashion_MNIST")
    dataset = load_dataset(str(tmp_path / "Fashion_MNIST"))
    assert dataset.remarks[0].startswith("recognised as fashion-mnist")
    assert dataset.class_names[9] == "Ankle boot"


def test_unpacked_arrays_are_recognised_without_their_archive(tmp_path):
    root = stand_in("cifar10", tmp_path)
    before = names_of(load_dataset(str(root)), "train")
    shutil.rmtree(root / "cifar-10-batches-py")
    moved = root.rename(tmp_path / "elsewhere")
    dataset = load_dataset(str(moved))
    assert "recognised as cifar10" in dataset.remarks[0] and names_of(dataset, "train") == before


def test_folders_of_anything_else_are_recognised_as_nothing(tmp_path):
    for split in ("train", "test"):
        folders(tmp_path / "set" / split, {"no": 2, "yes": 2})
    (tmp_path / "set" / "classes.txt").write_text("no\nyes\n")
    assert load_dataset(str(tmp_path / "set")).remarks == ()
