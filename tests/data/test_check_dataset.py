"""The check command: counts, sizes, unreadable files, duplicates, and what a wrong layout lacks."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import expand
import train_expand
import train_original
from expansion.common.errors import InputError
from expansion.data.__main__ import main
from expansion.data.datasets import load_dataset
from expansion.images.records import ImageRecord
from expansion.store.manifest import read_manifest
from tests.conftest import ROOT
from tests.helpers.stand_ins import HURTFUL, cars, cifar10, draw, folders, stand_in


@pytest.fixture
def check(capsys):
    """Function that runs the check: (exit code, its report)."""

    def run(*arguments: object) -> tuple[int, str]:
        code = main(["check", *map(str, arguments)])
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def good(tmp_path) -> Path:
    """A folder in which nothing is wrong: 3 + 2 training and 2 test images of 20 pixels."""
    root = tmp_path / "set"
    for split, counts in (("train", (3, 2)), ("test", (1, 1))):
        for name, count in zip(("ant", "yin_yang"), counts, strict=True):
            for i in range(count):
                draw(root / split / name / f"{i}.png", size=20)
    return root


def header_only(path: Path, side: int) -> None:
    """The start of a PNG file that claims so many pixels a side."""
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    for kind, payload in ((b"IHDR", header), (b"IDAT", zlib.compress(b""))):
        content += struct.pack(">I", len(payload)) + kind + payload
        content += struct.pack(">I", zlib.crc32(kind + payload))
    path.write_bytes(content)


def test_a_good_dataset_is_counted_by_class_and_split(check, good):
    code, text = check(good)
    lines = [line.split() for line in text.splitlines()]
    assert code == 0
    assert ["0", "3", "1", "ant", "ant", "ant"] in lines
    assert ["1", "2", "1", "yin_yang", "yin", "yang", "yin_yang"] in lines
    assert ["all", "5", "2", "2", "classes"] in lines
    assert "width 20 to 20, height 20 to 20; most often 20x20 (7)" in text
    assert "modes: RGB 7" in text and "unreadable: 0 of 7" in text
    assert "note:" not in text and text.endswith("0 problems\n")


@pytest.mark.slow
def test_names_are_shown_as_in_prompts_and_as_folders(check, tmp_path):
    cars(tmp_path / "stanford_cars")
    code, text = check("stanford_cars", "--data_dir", tmp_path)
    name = "2012 Ram C/V Cargo Van Minivan"
    assert code == 0 and f"{name}  {name}  2012 Ram C-V Cargo Van Minivan" in text


def test_unreadable_images_are_named_and_fail(check, good):
    broken = good / "train" / "ant" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    code, text = check(good)
    assert (
        code == 1
        and "unreadable: 1 of 7" in text
        and f"problem: cannot read the image {broken}" in text
    )


def test_an_image_in_both_splits_is_a_problem_and_twice_in_training_a_note(check, good):
    train, test = good / "train", good / "test"
    shutil.copy(train / "ant" / "0.png", train / "ant" / "copy.png")
    code, text = check(good)
    assert code == 0 and "note: 1 training images occur more than once: train/ant/0.png = " in text
    Image.open(train / "ant" / "1.png").save(test / "ant" / "same.bmp")  # the pixels count
    code, text = check(good)
    assert code == 1
    assert (
        "problem: 1 of 3 test images are training images too: train/ant/1.png = test/ant/same.bmp"
        in text
    )
    shutil.copy(train / "ant" / "2.png", train / "yin_yang" / "ant.png")
    assert "problem: 1 training images bear several labels" in check(good)[1]


def test_a_class_without_test_images_and_copies_among_them_are_noted(check, good):
    shutil.copy(good / "test" / "ant" / "0.png", good / "test" / "ant" / "copy.png")
    shutil.rmtree(good / "test" / "yin_yang")
    code, text = check(good)
    assert code == 0 and "note: no test image of yin_yang" in text
    assert "note: 1 test images occur more than once: test/ant/0.png = test/ant/copy.png" in text


def test_one_class_alone_is_a_problem(check, good):
    for split in ("train", "test"):
        shutil.rmtree(good / split / "ant")
    code, text = check(good)
    assert code == 1 and "only the class yin_yang" in text


@pytest.mark.slow
def test_a_missing_test_split_is_told_beside_the_training_counts(check, tmp_path):
    cars(tmp_path / "stanford_cars", labelled_test=False)
    code, text = check("stanford_cars", "--data_dir", tmp_path)
    assert code == 1 and "all    4      0" in text and "cars_test_annos_withlabels.mat" in text


@pytest.mark.parametrize("name", ["no-such-set", "dtd", "cifar10"])
def test_a_wrong_layout_ends_in_one_line_that_says_what_lacks(check, tmp_path, name):
    (tmp_path / "dtd").mkdir()
    (tmp_path / "cifar10").mkdir()
    code, text = check(name, "--data_dir", tmp_path)
    words = {
        "no-such-set": "unknown dataset",
        "dtd": "labels/train1.txt",
        "cifar10": "data_batch_1",
    }
    assert code == 1 and text.startswith("problem: ") and text.count("\n") == 1
    assert words[name] in text


def test_a_tiny_image_is_named_and_a_huge_one_refused_without_reserving_memory(check, good):
    draw(good / "train" / "ant" / "dot.png", size=1)
    assert "note: 1 images have a side below 16 pixels: train/ant/dot.png" in check(good)[1]
    huge = good / "train" / "ant" / "huge.png"
    header_only(huge, 20_000)
    code, text = check(good)
    assert code == 1 and f"cannot read the image {huge}" in text and "decompression bomb" in text
    tracemalloc.start()
    with pytest.raises(InputError, match="huge.png"):
        ImageRecord(huge, "huge.png", 0, "ant").load()
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bits_keep_their_brightness(tmp_path, suffix):
    values = np.array([[0, 257 * 40], [257 * 128, 65535]], dtype=np.uint16)
    path = tmp_path / f"image{suffix}"
    if suffix == ".pgm":
        path.write_bytes(b"P5 2 2 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    found = np.asarray(ImageRecord(path, path.name, 0, "a").load())
    assert found[..., 0].tolist() == [[0, 40], [128, 255]]


def test_a_palette_with_transparency_shows_its_colours_on_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 30, 40, 250])
    image.putdata([0, 1])
    image.save(tmp_path / "image.png", transparency=0)
    found = ImageRecord(tmp_path / "image.png", "image.png", 0, "a").load()
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (30, 40, 250)]


@pytest.mark.slow
def test_the_check_runs_as_a_command(good):
    done = subprocess.run(
        [sys.executable, "-m", "expansion.image_datasets", "check", str(good)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.endswith("0 problems\n") and not done.stderr


def test_training_on_one_class_is_refused(tmp_path):
    for split in ("train", "test"):
        folders(tmp_path / "set" / split, {"ant": 2})
    with pytest.raises(InputError, match="only the class 'ant'; a classifier needs two"):
        train_original.main(["-d", str(tmp_path / "set"), "--dry_run"])


@pytest.mark.parametrize("command", ["expand", "train"])
def test_a_folder_of_class_folders_is_split_by_the_option(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    folders(tmp_path / "raw", {"ant": 10, "bee": 10})
    arguments = ["-d", str(tmp_path / "raw"), "--dry_run"]
    main_of = train_original.main
    if command == "expand":
        model = str(ROOT / "assets" / "tiny-sd-digits")
        arguments += ["--method", "img2img", "--pretrained_model_name_or_path", model]
        main_of = expand.main
    with pytest.raises(InputError, match="give --test_fraction 0.3"):
        main_of(arguments)
    subset = ["--shots", "2", "--subset_file", "subset.json"]
    assert not main_of([*arguments, "--test_fraction", "0.2", *subset])
    shown = capsys.readouterr().out
    assert ("real images: 4 in 2" if command == "expand" else "4 real + 0 generated") in shown
    assert not Path("subset.json").exists()  # --dry_run writes no results


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stanford_cars", "cifar10"])
def test_hurtful_class_names_go_through_expansion_and_training(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    if name == "cifar10":
        cifar10(tmp_path / "data" / "cifar10", HURTFUL)
    else:
        cars(tmp_path / "data" / "stanford_cars", HURTFUL)
    model = str(ROOT / "assets" / "tiny-sd-digits")
    arguments = ["-d", name, "--num_images_per_prompt", "1", "--subset_file", "subset.json"]
    arguments += ["--shots", "1", "--pretrained_model_name_or_path", model]
    assert not expand.main([*arguments, "--method", "img2img", "--num_inference_steps", "2"])
    dataset = load_dataset(name)
    assert sorted(dataset.class_names) == sorted(HURTFUL)
    classes = {r.file_name: r.class_name for r in dataset.records("train")}
    rows = read_manifest(tmp_path / "data" / f"{name}_expansion" / "img2img_1x")
    assert sorted(row["class"] for row in rows) == sorted(HURTFUL)
    assert all(row["class"] == classes[row["source"]] for row in rows)
    assert all(
        dataset.prompt_names[dataset.class_names.index(r["class"])] in r["prompt"] for r in rows
    )
    training = ["-d", name, "--exp", "img2img_1x", "--subset_file", "subset.json", "--seeds", "1"]
    training += ["-a", "resnet10_tiny", "--image_size", "32", "--resize_size", "36"]
    training += ["--budget", "steps", "--max_train_steps", "2", "--workers", "0"]
    train_expand.main(training)
    assert list(Path("checkpoint").rglob("results.yaml"))


@pytest.mark.slow
def test_the_expanded_images_bear_the_labels_of_their_classes(tmp_path, monkeypatch):
    """As training sees them: read_expansion gives each variant the label of its real image."""
    from expansion.store.expanded_set import read_expansion

    monkeypatch.chdir(tmp_path)
    stand_in("oxford_pets", tmp_path / "data")
    model = str(ROOT / "assets" / "tiny-sd-digits")
    arguments = ["-d", "oxford_pets", "--method", "img2img", "--num_inference_steps", "2"]
    arguments += ["--num_images_per_prompt", "1", "--pretrained_model_name_or_path", model]
    assert not expand.main(arguments)
    dataset = load_dataset("oxford_pets")
    sources = {r.file_name: r for r in dataset.records("train")}
    found = read_expansion(Path("data/oxford_pets_expansion/img2img_1x"), sources)
    assert len(found) == 6 and {r.label for r in found} == {0, 1, 2}
    assert all(r.label == sources[r.source].label for r in found)
