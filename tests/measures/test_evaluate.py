"""`python -m expansion.evaluate` on digits: its files, its cache, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from expansion.images.content import readable_records
from expansion.measures import command
from expansion.measures.features import embedding
from expansion.measures.features.cache import FeatureCache, key_of
from expansion.measures.features.embedding import Embedder
from expansion.measures.features.networks import load_network
from expansion.measures.judges import find_original, parts_of
from expansion.measures.sets import halves
from expansion.store.expanded_set import read_expansion
from tests.conftest import ROOT
from tests.measures.conftest import varied, write_set

pytestmark = pytest.mark.slow  # sets are made, learnt from and measured


@pytest.fixture(scope="module")
def small_set(measured_digits, digits) -> Path:
    """Two variants of two digits of each class."""
    records = [r for i, r in enumerate(digits.records("train")) if i % 20 < 2]
    folder = measured_digits / "data" / "digits_expansion" / "small"
    return write_set(folder, records, 2, varied)


@pytest.fixture
def line(measured_digits, small_set, tmp_path) -> list[str]:
    """The command on the small set, with a cache of its own."""
    places = {"data_dir": "data", "checkpoint_dir": "checkpoint"}
    options = [f"--{name}={measured_digits / place}" for name, place in places.items()]
    return ["-d", "digits", "--exp", "small", *options, "--cache_dir", str(tmp_path / "cache")]


@pytest.fixture
def network(measured_digits, digits):
    run = find_original(str(measured_digits / "checkpoint"), "digits")
    return load_network("run", str(run), digits, "cpu")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refusal(arguments: list[str]) -> str:
    with pytest.raises(InputError) as error:
        command.main(arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_image_has_its_line_and_the_set_is_left_as_it_was(line, small_set, digits, capsys):
    before = tree(small_set)
    sources = {r.file_name: r for r in digits.records("train")}
    images = [r.file_name for r in read_expansion(small_set, sources)]
    command.main(line)
    after = tree(small_set)
    content = json.loads(after.pop("evaluation.json"))
    rows = [json.loads(text) for text in after.pop("evaluation.jsonl").splitlines()]
    assert after == before
    assert [row["file_name"] for row in rows] == images
    assert [r.file_name for r in read_expansion(small_set, sources)] == images
    assert {"sha256", "own_probability", "source_distance", "test_nearest"} <= set(rows[0])
    assert content["figures"]["images"] == 40 and content["settings"]["num_test"] == 597
    assert content["settings"]["network"].startswith("run-")
    out = capsys.readouterr().out.splitlines()
    titles = ["set", "small", "(half of the real)", "(training images)", "(another class)"]
    assert [text[: len(title)] for text, title in zip(out, titles, strict=False)] == titles


def test_loaders_of_folders_see_the_images_alone(line, small_set):
    from torchvision.datasets import ImageFolder

    command.main(line)
    assert len(ImageFolder(small_set).samples) == 40


def test_the_same_images_give_the_same_files_and_nothing_is_embedded_again(
    line, small_set, monkeypatch
):
    command.main(line)
    first = tree(small_set)
    monkeypatch.setattr(embedding, "embed_images", None)
    command.main(line)
    assert tree(small_set) == first


def test_a_command_that_was_killed_goes_on_where_it_was(line, network, digits, tmp_path):
    records, _ = readable_records(digits.records("train"), "fail")
    embedder = Embedder(network, tmp_path / "cache", 16)
    whole = Embedder(network, tmp_path / "other", 16).embed(records)

    class Killed(BaseException):
        pass

    def kill_at(count: int):
        done = []

        def advance(number: int) -> None:
            done.append(number)
            if sum(done) >= count:
                raise Killed

        return advance

    with pytest.raises(Killed):
        embedder.embed(records, kill_at(100))
    assert 90 < len(records) - embedder.missing(records) <= 112
    found = embedder.embed(records)
    np.testing.assert_allclose(found.features, whole.features, rtol=1e-4, atol=1e-5)
    assert embedder.missing(records) == 0


def test_equal_images_are_embedded_once_and_other_readings_of_one_anew(network, digits, tmp_path):
    records, _ = readable_records(digits.records("train")[:3], "fail")
    embedder = Embedder(network, tmp_path, 2)
    found = embedder.embed([*records, records[0]])
    assert (found.features[3] == found.features[0]).all()
    assert embedder.missing(records) == 0
    cut = dataclasses.replace(records[0], crop_bottom=4)
    assert key_of(cut) != key_of(records[0]) and embedder.missing([cut]) == 1


def test_features_of_another_network_in_a_cache_are_refused(line, tmp_path):
    command.main(line)
    (folder,) = (tmp_path / "cache" / "features").iterdir()
    FeatureCache(tmp_path / "cache", "run-of-another").add(
        [b"k" * 32], np.zeros((1, 7)), np.zeros((1, 10))
    )
    (part,) = (tmp_path / "cache" / "features" / "run-of-another").iterdir()
    shutil.copy(part, folder / part.name)
    assert "features of another network (run-of-another)" in refusal(line)


def test_a_damaged_part_of_the_cache_is_made_again_and_a_pickle_is_not_read(line, tmp_path):
    command.main(line)
    (folder,) = (tmp_path / "cache" / "features").iterdir()
    parts = sorted(folder.iterdir())
    parts[0].write_bytes(parts[0].read_bytes()[:1000])
    np.savez(folder / "pickled.npz", network=np.array([object()]), keys=np.zeros((1, 32)))
    command.main(line)
    assert len(list(folder.iterdir())) == len(parts) + 2


@pytest.mark.parametrize("place", ["network", "cache"])
def test_features_that_are_not_finite_are_refused_and_not_kept(
    place, line, network, digits, tmp_path
):
    records, _ = readable_records(digits.records("train")[:3], "fail")
    if place == "network":
        broken = dataclasses.replace(
            network, embed=lambda pixels: (torch.full((len(pixels), 4), torch.nan), None)
        )
        embedder = Embedder(broken, tmp_path, 2)
        with pytest.raises(InputError, match=f"not finite for the image {records[0].file_name}"):
            embedder.embed(records)
        assert embedder.missing(records) == 3
    else:
        embedder = Embedder(network, tmp_path, 2)
        embedder.cache.add([key_of(records[0])], np.full((1, 4), np.nan), None)
        with pytest.raises(InputError, match="not finite; remove it"):
            embedder.embed(records)


def test_a_class_with_fewer_than_two_images_is_refused(line, measured_digits, digits):
    records = [r for i, r in enumerate(digits.records("train")) if i % 20 == 0]
    folder = measured_digits / "data" / "digits_expansion" / "one"
    write_set(folder, records, 1, varied)
    assert "fewer than two images of class 0, 1" in refusal([*line[:3], "one", *line[4:]])


def test_one_real_image_of_each_class_is_too_few_to_compare_with(line, measured_digits, digits):
    records = [r for i, r in enumerate(digits.records("train")) if i % 20 == 0]
    folder = measured_digits / "data" / "digits_expansion" / "of_one"
    write_set(folder, records, 2, varied)
    of_one = [*line[:3], "of_one", *line[4:]]
    assert "half of these real images of each class" in refusal([*of_one, "--reference", "train"])
    command.main([*of_one, "--dry_run"])


def test_a_set_of_another_dataset_is_refused(line, measured_digits, make_folder):
    root = make_folder("photos", {"train": {"ant": ["1.png"], "bee": ["2.png"]}})
    records = load_dataset(str(root), test_fraction=None).records("train")
    folder = measured_digits / "data" / "digits_expansion" / "foreign"
    write_set(folder, records, 2, lambda record, number: Image.new("RGB", (8, 8)))
    found = refusal([*line[:4], "foreign", *line[4:]])
    assert "made from another dataset than digits" in found and "ant/1.png" in found


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--exp", "none"], "none does not exist; make it with expand.py"),
        (["--exp", "small", "small"], "names a set twice"),
        (["--paper_images", "41"], "has 40 images; two numbers cannot stand in one table"),
        (["--features", "vgg"], "unknown features 'vgg'"),
        (["--features", "inception"], "which file of weights"),
        (["--features", "inception:none.pth"], "none.pth does not exist"),
        (["--features", "run:none"], "run folder none does not exist"),
        (["--checkpoint_dir", "none"], "train one with train_original.py -d digits"),
        (["--cross_fit", "1"], "give 0, or 2 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(line, more, words):
    assert words in refusal([*line, *more])


def test_the_command_ends_in_a_line_and_status_2(line, small_set):
    done = subprocess.run(
        [sys.executable, "-m", "expansion.evaluate", *line, "--exp", "none"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_run_that_learnt_from_generated_images_is_no_judge(line, measured_digits, tmp_path):
    run = find_original(str(measured_digits / "checkpoint"), "digits")
    copy = shutil.copytree(run, tmp_path / "seed1")
    text = (copy / "options.yaml").read_text()
    (copy / "options.yaml").write_text(text.replace("num_generated: 0", "num_generated: 40"))
    assert "learnt from generated images as well" in refusal([*line, "--features", f"run:{copy}"])


def test_a_dry_run_says_what_is_to_be_embedded_and_writes_nothing(line, small_set, capsys):
    for name in ("evaluation.json", "evaluation.jsonl"):
        (small_set / name).unlink(missing_ok=True)
    before = tree(small_set)
    command.main([*line, "--dry_run"])
    out = capsys.readouterr().out
    assert "small: 40 images, 40 of them to be embedded" in out
    assert tree(small_set) == before
    command.main(line)
    command.main([*line, "--dry_run"])
    assert "small: 40 images, 0 of them to be embedded" in capsys.readouterr().out


def test_the_papers_columns_name_their_number_of_images(line, small_set, capsys):
    command.main([*line, "--paper_images", "30"])
    header, row, half, copied, _ = capsys.readouterr().out.splitlines()[:5]
    assert header.split()[-2:] == ["Frechet@30", "MMD@30"]
    assert float(row.split()[-2]) > 0
    assert half.split()[-2:] == ["-", "-"]  # of real images that are not all of the training's
    figures = json.loads((small_set / "evaluation.json").read_text())["figures"]
    assert figures["paper_num_images"] == 30


def test_cross_fitted_classifiers_have_not_seen_the_sources(line, small_set, tmp_path, capsys):
    """They are trained once, and know the training images less well than who learnt from them."""
    command.main(line)
    whole = json.loads((small_set / "evaluation.json").read_text())
    options = [*line, "--cross_fit", "2", "--cross_fit_steps", "20"]
    command.main(options)
    found = json.loads((small_set / "evaluation.json").read_text())
    runs = list((tmp_path / "cache" / "cross_fit").glob("*/part*/seed*/results.yaml"))
    assert len(runs) == 2
    copied = [each["zero_lines"]["(training images)"]["recognised"] for each in (whole, found)]
    assert copied[1] < copied[0]
    assert "each trained without the real images" in capsys.readouterr().out
    times = [path.stat().st_mtime_ns for path in runs]
    command.main(options)
    assert [path.stat().st_mtime_ns for path in runs] == times
    assert found == json.loads((small_set / "evaluation.json").read_text())


def test_parts_of_real_images_are_of_equal_size_in_every_class(digits):
    parts = parts_of(digits.records("train"), 4)
    counts = {}
    for record in digits.records("train"):
        key = record.class_name, parts[record.file_name]
        counts[key] = counts.get(key, 0) + 1
    assert set(counts.values()) == {5} and len(counts) == 40
    with pytest.raises(InputError, match="one training image alone"):
        parts_of(digits.records("train")[:1], 2)
    with pytest.raises(InputError, match="--cross_fit 50: no class has so many training images"):
        parts_of(digits.records("train"), 50)


def test_halves_have_all_images_once_and_half_of_each_class(digits):
    first, second = halves(digits.records("test"), 0)
    names = {r.file_name for r in first} | {r.file_name for r in second}
    assert len(names) == len(first) + len(second) == 597
    for label in range(10):
        sizes = [sum(r.label == label for r in half) for half in (first, second)]
        assert sizes[1] - sizes[0] in (0, 1)
