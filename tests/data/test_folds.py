"""Parts of a cross-validation on the training images (`--fold I/K`)."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from expansion.common.errors import InputError
from expansion.data.splits import fold_of, read_fold
from expansion.images.records import ImageRecord


def images(*counts: int, **contents: str) -> list[ImageRecord]:
    """So many images of each class; `contents` gives some, as c1_i0="x", the content of others."""
    return [
        ImageRecord(
            path=Path(f"/set/train/c{label}/i{i}.png"),
            file_name=f"train/c{label}/i{i}.png",
            label=label,
            class_name=f"c{label}",
            pixels=contents.get(f"c{label}_i{i}", f"own {label} {i}"),
        )
        for label, count in enumerate(counts)
        for i in range(count)
    ]


def names(records) -> list[str]:
    return [record.file_name for record in records]


def held(records, count: int, seed: int = 0) -> list[list[ImageRecord]]:
    return [fold_of(records, f"{number}/{count}", seed)[1] for number in range(1, count + 1)]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_parts_together_are_all_images_and_each_image_is_in_one(count):
    records = images(7, 5, 9)
    parts = held(records, count)
    assert sorted(name for part in parts for name in names(part)) == sorted(names(records))
    for number, part in enumerate(parts, 1):
        kept, again = fold_of(records, f"{number}/{count}", 0)
        assert again == part
        assert names(kept) == [name for name in names(records) if name not in names(part)]


def test_each_class_and_all_images_are_shared_out_evenly():
    for part in held(images(10, 10, 10), 5):
        assert Counter(record.label for record in part) == {0: 2, 1: 2, 2: 2}
    # Two images a class and five parts: the first of a class are not all in the same part.
    sizes = [len(part) for part in held(images(*[2] * 10), 5)]
    assert sizes == [4] * 5
    for part in held(images(11, 4, 6), 4):  # a part has n/K images of a class, rounded
        counts = Counter(record.label for record in part)
        assert 2 <= counts[0] <= 3 and counts[1] == 1 and 1 <= counts[2] <= 2


def test_images_of_equal_content_are_in_the_same_part_whatever_their_class():
    same = {"c0_i1": "x", "c0_i4": "x", "c1_i0": "x", "c2_i3": "y", "c1_i2": "y"}
    records = images(6, 6, 6, **same)
    for seed in range(20):
        parts = held(records, 3, seed)
        for content in "xy":
            assert sum(any(r.pixels == content for r in part) for part in parts) == 1
        for number, part in enumerate(parts, 1):
            kept, _ = fold_of(records, f"{number}/3", seed)
            assert not {r.pixels for r in kept} & {r.pixels for r in part}


def test_the_parts_do_not_depend_on_the_order_of_the_images():
    records = images(8, 5)
    shuffled = random.Random(0).sample(records, len(records))
    for one, other in zip(held(records, 4), held(shuffled, 4), strict=True):
        assert set(names(one)) == set(names(other))
        assert names(other) == [name for name in names(shuffled) if name in names(one)]


def test_another_seed_deals_otherwise_and_the_same_one_alike():
    records = images(10, 10)
    assert held(records, 5, 1) == held(records, 5, 1)
    assert [names(part) for part in held(records, 5, 1)] != [names(p) for p in held(records, 5, 2)]


def test_without_a_fold_all_images_are_for_training():
    records = images(3, 3)
    assert fold_of(records, None, 0) == (records, [])


@pytest.mark.parametrize(
    "text", ["0/5", "6/5", "1/1", "1/0", "a/b", "5", "", "1/5/2", "-1/5", "1.0/5", "1/ 5"]
)
def test_a_fold_that_is_none_is_told_with_the_right_form(text):
    with pytest.raises(InputError, match="write I/K, such as 1/5 for the first of five") as error:
        read_fold(text)
    assert f"--fold {text}" in str(error.value)
    with pytest.raises(InputError, match="write I/K"):
        fold_of(images(9, 9), text, 0)


def test_the_numbers_of_a_fold_are_read():
    assert read_fold("1/2") == (1, 2) and read_fold("10/12") == (10, 12)


def test_a_class_that_would_lack_images_for_training_is_named():
    alone = [fold_of(images(1, 6), f"{number}/3", 0) for number in (2, 3)]  # class 0 is in part 1
    assert [len(part) for _, part in alone] == [2, 2]
    with pytest.raises(InputError, match="--fold 1/3: no image of c0 is left for training"):
        fold_of(images(1, 6), "1/3", 0)
    copies = images(2, 6, c0_i0="x", c0_i1="x")  # two files, one image
    with pytest.raises(InputError, match="no image of c0 is left"):
        [fold_of(copies, f"{number}/2", 0) for number in (1, 2)]


def test_a_part_without_images_asks_for_fewer_parts():
    with pytest.raises(InputError, match="--fold 9/9: no image is in this part; give fewer parts"):
        fold_of(images(3, 3), "9/9", 0)
