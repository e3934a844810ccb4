"""Class names and file names into paths: no collision, no escape, unchanged where safe."""

from __future__ import annotations

import hashlib
import os
import random
import unicodedata
from pathlib import Path, PureWindowsPath

import pytest

from expansion.data.naming import folder_names, image_stems, ordered_folders
from expansion.images.records import ImageRecord
from expansion.images.variants import variant_name

SAFE = [
    "accordion",
    "BACKGROUND_Google",
    "Felis catus",
    "cat.v2",
    "a-b_c (1)",
    "\u72d7",
    "\U0001f600",
    "-rf",
]
# Every group's members come out alike unless they are told apart.
CLASHES = [
    [
        "2012 Ram C/V Cargo Van Minivan",
        "2012 Ram C-V Cargo Van Minivan",
        "2012 Ram C\\V Cargo Van Minivan",
    ],
    ["F/A-18", "F:A-18", "F?A-18", "F-A-18"],
    ["Ant", "ant", "ANT", "\uff21nt"],
    ["caf\u00e9", "cafe\u0301", "CAF\u00c9"],
    ["\ufb01n", "fin"],
    ["stra\u00dfe", "strasse"],
    ["..", ".", "", " ", "...", "_", ". ."],
    ["../../etc", "..\\..\\etc", "/etc", "-etc", "\\etc"],
    ["polka-dotted", "polka-dotted.", "polka-dotted. ", " polka-dotted"],
    ["CON", "con", "_CON"],
    ["nul.txt", "_nul.txt", "NUL.txt"],
    ["a\x00b", "a\nb", "a-b", "a\x7fb"],
    ["x" * 300, "x" * 301, "x" * 120, "X" * 300],
    ["\u72d7" * 300, "\u72d7" * 299 + "\u732b"],
    ["\U0001f600" * 90, "\U0001f600" * 91],
    [".hidden", "hidden", "_hidden"],
]
HURTFUL = [name for group in CLASHES for name in group]
WINDOWS_DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{p}{i}" for p in ("com", "lpt") for i in range(1, 10)),
}


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def assert_distinct_and_safe(names: list[str], folder: Path) -> None:
    assert len({folded(name) for name in names}) == len(names)
    for name in names:
        assert name == os.path.basename(name) and PureWindowsPath(name).parts == (name,)
        assert Path(os.path.abspath(folder / name)).parent == folder
        assert not name.startswith(".") and name == name.rstrip(". ") and name.isprintable()
        assert name.split(".")[0].lower() not in WINDOWS_DEVICES
        assert len(name.encode()) <= 200
        (folder / name).mkdir()
    assert len(list(folder.iterdir())) == len(names)


@pytest.mark.parametrize(
    "names", [*CLASHES, HURTFUL + SAFE], ids=lambda names: ascii(names[0])[:20]
)
def test_class_folders_are_distinct_single_components_inside_the_folder(names, tmp_path):
    folders = folder_names(names)
    assert set(folders) == set(names)
    assert_distinct_and_safe(list(folders.values()), tmp_path)


def test_a_name_that_ends_like_the_hash_of_another_stays_distinct(tmp_path):
    bait = [
        f"a-b-{short_hash('a/b')}",
        f"A-B-{short_hash('a:b').upper()}",
        f"a-b-{short_hash('a/b')}-0",
    ]
    folders = folder_names(["a/b", "a:b", *bait])
    assert_distinct_and_safe(list(folders.values()), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_names_of_hurtful_characters_never_collide(seed, tmp_path):
    draw = random.Random(seed)
    alphabet = "aA./\\-_: \u00e9\u00c9e\u0301\uff21*0"
    names = {"".join(draw.choices(alphabet, k=draw.randrange(6))) for _ in range(300)}
    assert_distinct_and_safe(list(folder_names(sorted(names)).values()), tmp_path)


def test_safe_names_stay_as_they_are():
    assert folder_names(SAFE) == {name: name for name in SAFE}
    assert ordered_folders(sorted(SAFE)) == {name: name for name in SAFE}


def test_only_the_unsafe_part_of_a_name_changes():
    folders = folder_names(["2012 Ram C/V Cargo Van Minivan", "F/A-18", "CON", "polka-dotted"])
    assert list(folders.values()) == [
        "2012 Ram C-V Cargo Van Minivan",
        "F-A-18",
        "_CON",
        "polka-dotted",
    ]


def test_folders_do_not_depend_on_the_order_of_the_classes():
    assert folder_names(HURTFUL[::-1]) == folder_names(HURTFUL)


def test_folders_of_classes_in_another_order_than_by_name_begin_with_their_number():
    names = [f"Class {i}" for i in range(12)]  # by name, 10 and 11 come before 2
    folders = list(ordered_folders(names).values())
    assert folders[0] == "00_Class 0" and folders[-1] == "11_Class 11"


def records(*file_names: str) -> list[ImageRecord]:
    return [ImageRecord(Path(f), f, 0, f.split("/")[1]) for f in file_names]


def test_stems_keep_their_dots_and_lose_one_suffix():
    stems = image_stems(records("train/cat/a.v2.final.jpg", "train/cat/b"), {"cat": "cat"})
    assert stems == {"train/cat/a.v2.final.jpg": "cat/a.v2.final", "train/cat/b": "cat/b"}


@pytest.mark.parametrize(
    "files",
    [
        ["train/cat/1.jpg", "train/cat/1.png", "train/cat/1.JPG"],
        ["train/cat/1.jpg", "train/cat/day/1.jpg", "train/cat/night/1.jpg"],
        ["train/cat/IMG.jpg", "train/cat/img.jpg"],
        ["train/cat/a.b.jpg", "train/cat/a.b.c.jpg", "train/cat/a.jpg"],
        ["train/cat/1.jpg", "train/cat/1_expand_0.jpg", "train/cat/1_expand_0_expand_0.jpg"],
        ["train/cat/con.jpg", "train/cat/_con.jpg", f"train/cat/{'y' * 250}.jpg"],
        ["train/cat/1.jpg", "train/cat/1.png", f"train/cat/1-{short_hash('train/cat/1.jpg')}.jpg"],
    ],
)
def test_variants_of_all_images_of_a_class_are_distinct_files(files, tmp_path):
    stems = image_stems(records(*files), {"cat": "The Cat"})
    assert set(stems) == set(files)
    names = [variant_name(stem, k) for stem in stems.values() for k in (0, 1, 10, 100)]
    assert {os.path.dirname(name) for name in names} == {"The Cat"}
    (tmp_path / "The Cat").mkdir()
    assert_distinct_and_safe([os.path.basename(name) for name in names], tmp_path / "The Cat")


def test_equal_stems_in_two_classes_need_no_hash():
    stems = image_stems(records("train/cat/1.jpg", "train/dog/1.jpg"), {"cat": "cat", "dog": "dog"})
    assert list(stems.values()) == ["cat/1", "dog/1"]
    assert variant_name("cat/1", 7) == "cat/1_expand_7.png"
