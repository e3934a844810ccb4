"""Paired sheets: one row for a real image, beside it what several sets made of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from expansion.pictures.figures import ROWS_A_PAGE
from expansion.report import paired
from expansion.report.sets import read_set
from expansion.store.expanded_set import Asked
from tests.helpers.expanded_sets import write_set
from tests.helpers.stand_ins import folders

# What the sets have made of every real image: red, by number darker, or blue.
SETS = {"red": (200, 0, 0), "blue": (0, 0, 200)}


@pytest.fixture
def sets(tmp_path) -> list[Path]:
    """Two sets of two variants of the images of two classes, of one colour each."""
    for split in ("train", "test"):
        folders(tmp_path / "photos" / split, {"ant": 3, "bee": 2})
    return [write(tmp_path, name) for name in SETS]


def write(tmp_path: Path, name: str, more_seed: int = 0, shots: int = 3) -> Path:
    colour = np.array(SETS.get(name, (0, 200, 0)))
    records = load_dataset(str(tmp_path / "photos")).records("train")
    records = [r for r in records if int(Path(r.file_name).stem[-4:]) < shots]
    variants = (
        (r, k, f"{r.class_name}/{Path(r.file_name).stem}_expand_{k}.png",
         np.full((8, 8, 3), colour * (2 - k) // 2, np.uint8))
        for r in records for k in range(2)
    )  # fmt: skip
    folder = write_set(tmp_path / "sets" / name, variants)
    path = folder / "manifest.0-of-1.1.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["seed"] += more_seed
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = {"dataset": str(tmp_path / "photos"), "root": "../../photos", "data_dir": "data"}
    Asked(2, [record.file_name for record in records], facts).write(folder)
    return folder


def colours(images: list[Image.Image]) -> list[tuple[int, ...]]:
    return [image.getpixel((4, 4)) for image in images]


def test_a_row_has_the_real_image_and_one_number_of_every_set(sets):
    rows = paired.paired_rows([read_set(folder) for folder in sets], [], 1, 2)
    assert [label for label, _ in rows] == ["ant", "bee"]
    for _, images in rows:
        assert colours(images[1:]) == [(200, 0, 0), (0, 0, 200), (100, 0, 0), (0, 0, 100)]
    real = {
        r.file_name: r for r in load_dataset(str(sets[0].parents[1] / "photos")).records("train")
    }
    assert rows[0][1][0].tobytes() == real["train/ant/image_0000.jpg"].load().tobytes()


def test_the_command_writes_the_sheet_with_names_above(sets, tmp_path, capsys):
    output = tmp_path / "pairs.png"
    words = [*map(str, sets), "--output", str(output), "--classes", "bee", "--rows", "2"]
    paired.main(words)
    assert capsys.readouterr().out == f"{output}: 2 real images, 2 sets\n"
    with Image.open(output) as sheet:
        left = [150 + 4 + j * (paired.CELL + 4) + 50 for j in (1, 2)]
        assert [sheet.getpixel((x, 20 + 4 + 50)) for x in left] == [(200, 0, 0), (0, 0, 200)]
        assert sheet.height == 20 + 2 * (paired.CELL + 4) + 4 < 20 + ROWS_A_PAGE * paired.CELL
    read = [read_set(folder) for folder in sets]
    assert paired.headings(read, 1) == ["real", "red", "blue"]
    assert paired.headings(read, 2) == ["real", "red 0", "blue 0", "red 1", "blue 1"]
    assert paired.headings([read[0], read[0]], 1) == ["real", "sets/red", "sets/red"]


def test_only_real_images_that_all_sets_have_are_shown(sets, tmp_path):
    few = write(tmp_path, "few", shots=1)
    rows = paired.paired_rows([read_set(sets[0]), read_set(few)], [], 5, 1)
    assert [label for label, _ in rows] == ["ant", "bee"]


def test_other_noise_is_refused(sets, tmp_path):
    other = write(tmp_path, "other", more_seed=1)
    with pytest.raises(InputError, match="other began from other noise than .*red; make them with"):
        paired.main([str(sets[0]), str(other)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("RED", "give two or more expanded sets"),
        ("RED BLUE --classes bea", "unknown class 'bea'; did you mean 'bee'"),
        ("RED BLUE --variants 3", "no real image has 3 variants in each of"),
        ("RED BLUE --rows 0", "rows 0: give 1 or more"),
        ("RED BLUE --output a.jpg", "give a name that ends in .png"),
        ("RED EMPTY", "no real image has 1 variants in each of"),
    ],
)
def test_what_cannot_be_laid_out_is_said(sets, tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    words = words.replace("RED", str(sets[0])).replace("BLUE", str(sets[1]))
    with pytest.raises(InputError, match=message):
        paired.main(words.replace("EMPTY", str(tmp_path / "empty")).split())


def test_a_missing_image_and_other_real_images_are_said(sets):
    (sets[1] / "ant" / "image_0000_expand_0.png").unlink()
    with pytest.raises(
        InputError, match="image_0000_expand_0.png is missing; run its expand.py command"
    ):
        paired.paired_rows([read_set(folder) for folder in sets], [], 1, 1)
    path = sets[1] / "manifest.0-of-1.1.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "source_sha256": "1"}) + "\n" for row in rows))
    (sets[0] / "manifest.0-of-1.1.jsonl").write_text(
        "".join(json.dumps({**row, "source_sha256": "2"}) + "\n" for row in rows)
    )
    with pytest.raises(InputError, match="was made of other real images than"):
        paired.paired_rows([read_set(folder) for folder in sets], [], 1, 1)
