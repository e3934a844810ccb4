"""Sets of images that another tool made are arms like any other."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

import parse_logs
import train_expand
import train_original
from expansion.common.errors import InputError
from expansion.images.records import ImageRecord
from expansion.measures import command as evaluate
from expansion.report.gallery import Budget, variants_beside_real
from expansion.report.sets import ExpandedSet, read_set
from expansion.store.expanded_set import read_expansion
from expansion.store.other_sets import read_other_set

CLASSES = {"ant": 0, "bee": 1, "3": 2}


def image(path: Path, colour: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (colour, 10, 200)).save(path)
    return path


def read(folder: Path, sources: tuple[str, ...] = ()) -> list[tuple[str, int, str | None]]:
    known = {name: ImageRecord(Path(name), name, 1, "bee") for name in sources}
    return [(r.file_name, r.label, r.source) for r in read_other_set(folder, CLASSES, known)]


@pytest.mark.parametrize("parent", ["", "train/"])
def test_folders_give_the_classes(tmp_path, parent):
    """Named as the classes, or as expand.py names the folders of a set."""
    image(tmp_path / f"{parent}2_3/c.png")
    image(tmp_path / f"{parent}ant/b.png")
    image(tmp_path / f"{parent}bee/deep/a.jpg")
    expected = [("2_3/c.png", 2, ""), ("ant/b.png", 0, ""), ("bee/deep/a.jpg", 1, "")]
    assert read(tmp_path) == [(parent + name, *rest) for name, *rest in expected]


def test_a_metadata_file_gives_classes_and_real_images(tmp_path):
    image(tmp_path / "images/1.png"), image(tmp_path / "images/2.png")
    rows = [
        {"file_name": "images/1.png", "label": "bee", "source": "train/bee/x.jpg"},
        {"file_name": "./images//2.png", "label": 3, "source": "elsewhere.jpg"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read(tmp_path, ("train/bee/x.jpg",))
    assert found == [("images/1.png", 1, "train/bee/x.jpg"), ("images/2.png", 2, "")]


def test_a_table_gives_the_classes(tmp_path):
    image(tmp_path / "1.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\n1.png,ant\n")
    assert read(tmp_path) == [("1.png", 0, "")]


@pytest.mark.parametrize(
    "rows, message",
    [
        (["1.png,wasp"], "'wasp' .*is no class of the dataset, which has 'ant', 'bee', '3'"),
        (["1.png,0"], "'0' .*is no class"),  # a number is no label
        (["../1.png,bee"], "'../1.png' is outside the folder"),
        (["/etc/1.png,bee"], "is outside the folder"),
        (["2.png,bee"], "the image 2.png is not there"),
        (["1.png,bee", "1.png,ant"], "1.png is listed as 'bee' and as 'ant'"),
        ([",bee"], "expected file_name and label"),
        ([], "holds no expanded set and no images"),
    ],
)
def test_a_list_that_cannot_be_right_is_refused(tmp_path, rows, message):
    image(tmp_path / "1.png")
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *rows]) + "\n")
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_a_folder_that_is_no_class_or_empty_is_refused(tmp_path):
    image(tmp_path / "ant/1.png")
    (tmp_path / "bee").mkdir()
    with pytest.raises(InputError, match="class folder .*bee holds no images"):
        read(tmp_path)
    image(tmp_path / "bee/1.png"), image(tmp_path / "wasps/1.png")
    with pytest.raises(InputError, match="'wasps' .*is no class of the dataset"):
        read(tmp_path)


def test_what_expand_py_began_is_never_taken_for_another_tool_s(tmp_path):
    image(tmp_path / "ant/1.png")
    (tmp_path / "plan.json").write_text('{"num_images_per_prompt": 1, "real_images": []}')
    with pytest.raises(InputError, match="holds no expanded set; make it first"):
        read_expansion(tmp_path, {})
    with pytest.raises(InputError, match="holds no expanded set; make it first"):
        read_expansion(tmp_path / "absent", {})


TRAIN = "--shots 2 --seeds 1 --budget steps --max_train_steps 4"


@pytest.fixture
def theirs(digits_dir, tmp_path) -> Path:
    """Four rotated scans of each digit, in class folders."""
    for label in range(10):
        for path in sorted((digits_dir / "digits" / "train" / str(label)).glob("*.png"))[:4]:
            target = tmp_path / "theirs" / str(label) / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).rotate(9).save(target)
    return tmp_path / "theirs"


def train(digits_dir, tmp_path, *options: object) -> None:
    line = f"-d digits --data_dir {digits_dir} --checkpoint_dir {tmp_path / 'checkpoint'} {TRAIN}"
    train_expand.main([*line.split(), *map(str, options)])


@pytest.mark.slow
def test_another_tool_s_set_is_trained_on_measured_and_shown(digits_dir, tmp_path, theirs, capsys):
    place = f"-d digits --data_dir {digits_dir}"
    runs = tmp_path / "checkpoint"
    train_original.main(f"{place} --checkpoint_dir {runs} {TRAIN}".split())
    train(digits_dir, tmp_path, "--expanded_dir", theirs)
    (results,) = runs.glob("digits/*theirs*/seed1/results.yaml")
    assert "num_generated: 40" in results.read_text()
    evaluate.main(f"{place} --exp {theirs} --checkpoint_dir {runs}".split())
    assert re.search(r"theirs +40 ", capsys.readouterr().out)
    page = tmp_path / "page.html"
    parse_logs.main([str(runs), "--table", "--format", "html", "--output", str(page)])
    assert page.read_text().count("variant by theirs of an image of") >= 10


@pytest.mark.parametrize(
    "options, message",
    [
        (["--replace_probability", 0.5], "replace_probability cannot be used"),
        (["--max_variants", 2], "leave out --max_variants"),
    ],
)
def test_what_needs_the_real_images_of_a_set_is_refused(
    digits_dir, tmp_path, theirs, options, message
):
    with pytest.raises(InputError, match=message):
        train(digits_dir, tmp_path, "--expanded_dir", theirs, *options)


def test_a_copy_of_a_test_image_is_refused(digits_dir, tmp_path, theirs):
    test_image = sorted((digits_dir / "digits" / "test" / "5").glob("*.png"))[0]
    Image.open(test_image).convert("RGB").save(theirs / "5" / "leak.png", compress_level=1)
    with pytest.raises(InputError, match="1 images are copies of images .* tested on: 5/leak"):
        train(digits_dir, tmp_path, "--expanded_dir", theirs)


def test_held_out_images_may_be_among_the_unknown_ones(digits_dir, tmp_path, theirs, caplog):
    train(digits_dir, tmp_path, "--expanded_dir", theirs, "--dry_run")
    assert "held-out ones may be among them" in caplog.text


def list_of(folder: Path, rows: list[tuple[str, str, str]]) -> None:
    lines = [{"file_name": n, "label": label, "source": source} for n, label, source in rows]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


@pytest.fixture
def listed(digits_dir, theirs) -> list[tuple[str, str, str]]:
    """A metadata file that names the real image of each of `theirs`; returns its rows."""
    names = sorted(path.relative_to(theirs).as_posix() for path in theirs.rglob("*.png"))
    rows = [(name, name.split("/")[0], f"train/{name}") for name in names]
    list_of(theirs, rows)
    return rows


def test_images_of_real_ones_that_are_not_trained_on_are_left_out(
    digits_dir, tmp_path, theirs, listed, caplog
):
    with caplog.at_level("INFO"):
        train(digits_dir, tmp_path, "--expanded_dir", theirs, "--shots", 10)
    (left_out,) = re.findall(r"(\d+) images are left out, of real images that are not", caplog.text)
    results = next((tmp_path / "checkpoint").glob("digits/*theirs*/seed1/results.yaml")).read_text()
    assert f"num_generated: {40 - int(left_out)}" in results and int(left_out) > 4


def test_images_of_test_images_are_left_out(digits_dir, tmp_path, theirs, listed):
    test_image = sorted((digits_dir / "digits" / "test" / "5").glob("*.png"))[0]
    made = theirs / "5" / "turned.png"
    Image.open(test_image).rotate(5).save(made)
    list_of(theirs, [*listed, ("5/turned.png", "5", f"test/5/{test_image.name}")])
    train(digits_dir, tmp_path, "--expanded_dir", theirs, "--shots", 20)
    results = next((tmp_path / "checkpoint").glob("digits/*theirs*/seed1/results.yaml")).read_text()
    assert "num_generated: 40" in results


def test_a_copy_of_a_test_image_is_refused_though_all_real_images_are_named(
    digits_dir, tmp_path, theirs, listed
):
    test_image = sorted((digits_dir / "digits" / "test" / "5").glob("*.png"))[0]
    shutil.copy(test_image, theirs / listed[-1][0])
    with pytest.raises(InputError, match="copies of images .* tested on"):
        train(digits_dir, tmp_path, "--expanded_dir", theirs, "--shots", 20)


def test_images_without_a_real_one_stand_beside_those_of_expand_py_class_by_class(tmp_path):
    rows = {}
    for number, class_name in enumerate(["ant", "bee"]):
        name = image(tmp_path / f"ours/{class_name}/1.png").relative_to(tmp_path / "ours")
        row = {"file_name": str(name), "class": class_name, "label": number, "variant": 0}
        rows[f"train/{class_name}/1.jpg", 0] = {**row, "source": f"train/{class_name}/1.jpg"}
        image(tmp_path / f"theirs/{class_name}/x.png")
    ours = ExpandedSet(tmp_path / "ours", "insects", {}, {}, rows, None, 0)
    gallery = variants_beside_real([ours, read_set(tmp_path / "theirs", "insects")], Budget())
    assert [class_name for class_name, _ in gallery.rows] == ["ant", "bee"]
    for _, columns in gallery.rows:
        assert [len(column) for column in columns] == [1, 1]
        assert all(column[0].data for column in columns)


def test_a_set_that_names_real_images_shows_each_beside_its_own(tmp_path):
    for number in range(4):
        image(tmp_path / f"theirs/{number}.png")
    list_of(tmp_path / "theirs", [(f"{n}.png", "ant", f"train/ant/{n % 2}.jpg") for n in range(4)])
    found = read_set(tmp_path / "theirs", "insects")
    for real in (0, 1):
        rows = [found.variant(f"train/ant/{real}.jpg", "ant", k) for k in range(3)]
        names = [row and row["file_name"] for row in rows]
        assert names == [f"{real}.png", f"{real + 2}.png", None]


def test_another_label_than_that_of_the_real_image_is_told(tmp_path, caplog):
    image(tmp_path / "1.png")
    list_of(tmp_path, [("1.png", "ant", "train/bee/x.jpg")])
    assert read(tmp_path, ("train/bee/x.jpg",)) == [("1.png", 0, "train/bee/x.jpg")]
    assert "1 images have another label than their real image, such as 1.png: 'ant'" in caplog.text


def test_a_divided_folder_is_refused(tmp_path):
    image(tmp_path / "train/ant/1.png"), image(tmp_path / "test/ant/1.png")
    with pytest.raises(InputError, match="is divided into test, train; give the folder for train"):
        read(tmp_path)
