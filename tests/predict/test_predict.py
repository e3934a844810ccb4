"""expansion.predict: a finished classifier on photos, as its training's evaluation saw them."""

from __future__ import annotations

import csv
import logging
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image

import train_expand
import train_original
from expansion.classifier.backbones import load_classifier
from expansion.classifier.recipe import Recipe
from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from expansion.images.pixels import Reading
from expansion.predict import __main__ as predict
from expansion.predict.finished_runs import find_runs
from expansion.training.trainer import eval_loader

pytestmark = pytest.mark.slow  # a classifier is trained and used

QUICK = "--budget steps --max_train_steps 3 --batch_size 8 -j 0"


@pytest.fixture(scope="module")
def arm(digits_dir, tmp_path_factory) -> Path:
    """Two finished runs of one arm on the digits; read only."""
    folder = tmp_path_factory.mktemp("runs")
    line = f"-d digits --data_dir {digits_dir} --shots 2 --seeds 1 2 --checkpoint_dir {folder}"
    train_original.main([*line.split(), *QUICK.split()])
    return next(folder.rglob("seed1")).parent


@pytest.fixture
def photos(tmp_path, digits_dir) -> Path:
    """A folder of three photos in two folders, with a broken one and what is none."""
    source = sorted((digits_dir / "digits" / "test").rglob("*.png"))
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for place, path in zip(
        ("a.png", "more/\u00e4 b.png", "more/c.png"), source[:300:100], strict=True
    ):
        shutil.copy(path, folder / place)
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no photo")
    return folder


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def evaluation(run: Path, dataset: str, data_dir: Path) -> torch.Tensor:
    """Probabilities of the test set, as the trainer evaluates."""
    options = yaml.safe_load((run / "options.yaml").read_text())
    sizes = {name: options[name] for name in ("arch", "image_size", "resize_size")}
    records = load_dataset(dataset, data_dir).records("test")
    loader = eval_loader(records, Recipe(**sizes, workers=0), Accelerator(cpu=True))
    model = load_classifier(run / "checkpoint.pth.tar")
    return torch.cat([model(inputs).softmax(dim=1) for inputs, _ in loader])


def table_of(rows: list[dict[str, str]], names: list[str]) -> torch.Tensor:
    return torch.tensor([[float(row[name]) for name in names] for row in rows])


def test_the_test_images_get_the_probabilities_of_the_training_evaluation(
    arm, digits_dir, tmp_path
):
    dataset = load_dataset("digits", digits_dir)
    records = dataset.records("test")[::17]
    names = list(dataset.class_names)
    paths = [str(record.path) for record in records]
    expected = []
    for place in (arm / "seed1", arm / "seed2"):
        predict.main([str(place), *paths, "--output", str(tmp_path / "p.csv"), "--batch_size", "7"])
        rows = read_table(tmp_path / "p.csv")
        assert [row["file"] for row in rows] == paths
        expected.append(evaluation(place, "digits", digits_dir)[::17])
        found = table_of(rows, names)
        torch.testing.assert_close(found, expected[-1], atol=1e-5, rtol=0)
        assert [row["class"] for row in rows] == [names[i] for i in found.argmax(dim=1)]
        assert all(row["probability"] == row[row["class"]] for row in rows)
    assert not torch.allclose(*expected, atol=1e-3)
    predict.main([str(arm), *paths, "--output", str(tmp_path / "mean.csv")])
    found = table_of(read_table(tmp_path / "mean.csv"), names)
    torch.testing.assert_close(found, torch.stack(expected).mean(dim=0), atol=1e-5, rtol=0)


def test_photos_are_found_in_depth_and_the_unreadable_are_named(
    arm, photos, tmp_path, capsys, caplog
):
    caplog.set_level(logging.INFO)
    output = tmp_path / "out" / "p.csv"
    predict.main([str(arm), str(photos), str(photos / "a.png"), "--output", str(output)])
    rows = read_table(output)
    names = ["a.png", "more/c.png", "more/\u00e4 b.png"]
    assert [row["file"] for row in rows] == [str(photos / name) for name in names]
    assert "skipped: cannot read the image" in caplog.text and "broken.jpg" in caplog.text
    assert "1 files that are no images are not looked at" in caplog.text
    assert "mean of 2 classifiers" in caplog.text and "seed1, seed2" in caplog.text
    assert "3 photos, 1 left out because they cannot be read" in caplog.text
    printed = capsys.readouterr().out
    assert "\u00e4 b.png" in printed and "photos per class: " in printed
    with Image.open(output.with_suffix(".png")) as picture:
        assert picture.width >= 150 + 116 and picture.height >= 116
    with pytest.raises(InputError, match="broken.jpg"):
        predict.main(
            [str(arm), str(photos), "--output", str(tmp_path / "no.csv"), "--on_error", "fail"]
        )
    assert not (tmp_path / "no.csv").exists()


@pytest.mark.parametrize("top", [1, 2, 100])
def test_the_printed_table_has_the_most_probable_classes(arm, photos, tmp_path, capsys, top):
    output = tmp_path / "p.csv"
    predict.main([str(arm), str(photos / "a.png"), "--output", str(output), "--top", str(top)])
    (row,) = read_table(output)
    line = next(x for x in capsys.readouterr().out.splitlines() if "a.png" in x)
    assert line.count("%") == min(top, 10) and f" {row['class']} " in line


def finished(folder: Path, arm: Path, **changes: object) -> Path:
    """A copy of seed1 whose options.yaml says otherwise; None removes a key."""
    shutil.copytree(arm / "seed1", folder)
    options = yaml.safe_load((folder / "options.yaml").read_text()) | changes
    text = yaml.safe_dump({key: value for key, value in options.items() if value is not None})
    (folder / "options.yaml").write_text(text)
    return folder


def no_weights(monkeypatch) -> None:
    def refuse(*given, **options):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(torch, "load", refuse)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("nowhere", "run folder .*nowhere does not exist"),
        ("empty", "empty holds no run; give a folder of train_original.py"),
        ("above", "above holds no run of its own; give one of .*above/arm$"),
        ("begun", "begun is not finished: it has no results.yaml"),
        ("all_begun", "none of the 2 runs in .*all_begun is finished"),
        ("no_weights", "no_weights has no checkpoint.pth.tar"),
        ("no_size", "options.yaml does not say image_size"),
        ("odd_size", "image_size: expected int, got 'big'"),
        ("odd_reading", "reading: expected background and value_range"),
        ("odd_colour", "'notacolour' is no colour"),
        ("odd_crop", "crop_bottom: expected a number of rows, got -1"),
        ("unlike", "were trained on images prepared differently"),
    ],
)
def test_a_run_that_cannot_be_used_is_refused_before_weights_load(
    arm, photos, tmp_path, monkeypatch, run, message
):
    monkeypatch.chdir(tmp_path)
    no_weights(monkeypatch)
    Path("empty").mkdir()
    shutil.copytree(arm, "above/arm")
    for seed in ("begun", "all_begun/seed1", "all_begun/seed2"):
        finished(tmp_path / seed, arm)
        (tmp_path / seed / "results.yaml").unlink()
    (finished(tmp_path / "no_weights", arm) / "checkpoint.pth.tar").unlink()
    finished(tmp_path / "no_size", arm, image_size=None)
    finished(tmp_path / "odd_size", arm, image_size="big")
    finished(tmp_path / "odd_reading", arm, reading={"colour": "white"})
    finished(tmp_path / "odd_colour", arm, reading={"background": "notacolour"})
    finished(tmp_path / "odd_crop", arm, crop_bottom=-1)
    finished(tmp_path / "unlike" / "seed1", arm)
    finished(tmp_path / "unlike" / "seed2", arm, crop_bottom=2)
    with pytest.raises(InputError, match=message):
        predict.main([run, str(photos)])
    assert not Path("predictions.csv").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["photos/none.png"], "photo photos/none.png does not exist"),
        (["empty"], "no photo in empty"),
        (["photos", "--output", "photos/p.csv"], "lies in the photos' folder photos"),
        (["photos/a.png", "--output", "photos/a.csv"], "its picture over the photo photos/a.png"),
        (["photos", "--output", "p.txt"], "give a name that ends in .csv"),
        (["photos", "--output", "folder.csv"], "folder.csv is a folder"),
        (["photos", "--top", "0"], "--top 0"),
        (["photos", "--batch_size", "-1"], "--batch_size -1"),
        (["photos", "--crop_bottom", "-1"], "--crop_bottom -1"),
        (["photos", "--device", "cuda:77"], "--device cuda:77 cannot be used"),
    ],
)
def test_wrong_photos_and_options_are_refused_before_weights_load(
    arm, photos, tmp_path, monkeypatch, given, message
):
    monkeypatch.chdir(tmp_path)
    no_weights(monkeypatch)
    Path("empty").mkdir()
    Path("folder.csv").mkdir()
    with pytest.raises(InputError, match=message):
        predict.main([str(arm), *given])


def test_photos_of_which_none_can_be_read_end_in_one_line(arm, photos, tmp_path):
    broken = str(photos / "broken.jpg")
    with pytest.raises(InputError, match="none of the 1 photos can be read"):
        predict.main([str(arm), broken, "--output", str(tmp_path / "p.csv")])
    assert not (tmp_path / "p.csv").exists()


def test_seeds_of_other_classes_are_not_averaged(arm, photos, tmp_path):
    shutil.copytree(arm, tmp_path / "arm")
    path = tmp_path / "arm" / "seed2" / "checkpoint.pth.tar"
    state = torch.load(path, weights_only=True)
    for names, message in (
        ([f"digit {i}" for i in range(10)], "or they are called otherwise"),
        (["a", "b"], "knows 10 classes and names 2"),
        (None, "knows 10 classes and names none"),
    ):
        torch.save({**state, "class_names": names}, path)
        with pytest.raises(InputError, match=message):
            predict.main([str(tmp_path / "arm"), str(photos / "a.png")])


def test_a_seed_that_is_not_finished_is_left_out_and_named(arm, photos, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    shutil.copytree(arm, tmp_path / "arm")
    (tmp_path / "arm" / "seed1" / "results.yaml").unlink()
    line = [str(tmp_path / "arm"), str(photos / "a.png"), "--output", str(tmp_path / "p.csv")]
    predict.main(line)
    assert "not finished, so left out: seed1" in caplog.text
    predict.main([str(arm / "seed2"), *line[1:3], str(tmp_path / "alone.csv")])
    assert (tmp_path / "p.csv").read_text() == (tmp_path / "alone.csv").read_text()


def test_the_reading_of_the_datasets_images_is_kept_and_used(tmp_path, monkeypatch, caplog):
    """Transparent images on black with a white line below that is cut off."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        for i, name in enumerate(("left", "right")):
            folder = tmp_path / "data" / "marked" / split / name
            folder.mkdir(parents=True)
            for j in range(2):
                image = Image.new("RGBA", (32, 40), (0, 0, 0, 0))
                image.paste("white", (16 * i, j, 16 * i + 16, 16 + j))
                image.paste("white", (0, 32, 32, 40))
                image.save(folder / f"{j}.png")
    text = "reader: folder\ncrop_bottom: 8\nbackground: black\n"
    (tmp_path / "marked.yaml").write_text(text)
    monkeypatch.setattr("expansion.data.layouts.configs.CONFIG_DIR", tmp_path / "configs")
    shutil.copytree(predict.Path(train_original.__file__).parent / "configs", tmp_path / "configs")
    shutil.copy(tmp_path / "marked.yaml", tmp_path / "configs" / "datasets")
    line = "-d marked -a resnet10_tiny --image_size 32 --resize_size 32 --seeds 1"
    train_original.main([*line.split(), *QUICK.split()])
    run = next(Path("checkpoint").rglob("seed1"))
    view = find_runs(run).view
    assert view.reading == Reading("black") and view.crop_bottom == 8
    tests = [str(record.path) for record in load_dataset("marked", "data").records("test")]
    caplog.set_level(logging.INFO)
    predict.main([str(run), *tests])
    assert "the lowest 8 rows of every photo are cut off" in caplog.text
    rows = read_table(Path("predictions.csv"))
    found = table_of(rows, ["left", "right"])
    torch.testing.assert_close(found, evaluation(run, "marked", Path("data")), atol=1e-5, rtol=0)
    predict.main([str(run), *tests, "--crop_bottom", "0"])
    assert not torch.allclose(
        found, table_of(read_table(Path("predictions.csv")), ["left", "right"]), atol=1e-5
    )


def test_a_run_of_an_older_version_is_used_with_a_warning(arm, photos, tmp_path, caplog):
    old = finished(tmp_path / "old", arm, reading=None, crop_bottom=None)
    predict.main([str(old), str(photos / "a.png"), "--output", str(tmp_path / "p.csv")])
    assert "of an older version and does not say how images are read" in caplog.text


@pytest.mark.parametrize("kind", ["amst", "softmatch", "clip"])
def test_runs_of_other_objectives_and_backbones_are_used_as_well(
    kind, digits_dir, photos, tmp_path, whole_set, monkeypatch
):
    common = f"-d digits --data_dir {digits_dir} --checkpoint_dir {tmp_path} --seeds 1 --shots 2"
    line = [*common.split(), *QUICK.split()]
    if kind == "softmatch":
        train_original.main([*line, "--unlabeled_dir", str(photos / "more")])
    elif kind == "clip":
        monkeypatch.setattr(
            "expansion.classifier.clip_backbone.TOWERS",
            {"clip_vit_b32": _small_tower()},
        )
        train_original.main(
            [*line, "-a", "clip_vit_b32", "--image_size", "32", "--resize_size", "40"]
        )
    else:
        options = ["--expanded_dir", str(whole_set), "--labels", "amst", "--on_incomplete", "use"]
        train_expand.main([*line, *options])
    run = next(tmp_path.rglob("results.yaml")).parent
    tests = load_dataset("digits", digits_dir).records("test")[:40]
    output = tmp_path / "p.csv"
    predict.main([str(run), *(str(r.path) for r in tests), "--output", str(output)])
    names = list(load_dataset("digits", digits_dir).class_names)
    found = table_of(read_table(output), names)
    expected = evaluation(run, "digits", digits_dir)[:40]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def _small_tower():
    from expansion.classifier.clip_backbone import Tower

    fields = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 8,
        "image_size": 32,
        "projection_dim": 8,
    }
    return Tower("no/hub", fields)


def test_classes_called_as_other_columns_keep_columns_of_their_own(tmp_path):
    names = ["file", 'cat, "big"', "class"]
    row = predict.Prediction(Path("a.png"), [0.1, 0.7, 0.2], None)
    predict.write_table(tmp_path / "p.csv", [row], names)
    (found,) = read_table(tmp_path / "p.csv")
    assert found == {
        "file": "a.png",
        "class": 'cat, "big"',
        "probability": "0.7",
        "class file": "0.1",
        'cat, "big"': "0.7",
        "class class": "0.2",
    }
