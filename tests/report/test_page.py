"""The page about a folder of runs: what it says, that it is one file, names that would do harm."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import parse_logs
from expansion.common.errors import InputError
from expansion.metrics.predictions import Predictions
from expansion.report import gallery
from expansion.report.recognised import read_recognised, recognised_share
from expansion.report.sets import read_set
from expansion.store.selection import Selection

HOSTILE = '<script>alert(1)</script>" onerror="alert(2)'
CLASSES = ("cat", HOSTILE, "\u72ac $x$")


def predictions(num_wrong: int, num_test: int = 60, classes=CLASSES) -> Predictions:
    """The first images are wrong, of every class alike."""
    labels = np.arange(num_test) % len(classes)
    chosen = np.where(np.arange(num_test) < num_wrong, (labels + 1) % len(classes), labels)
    probabilities = np.full((num_test, len(classes)), 0.1 / (len(classes) - 1), np.float32)
    probabilities[np.arange(num_test), chosen] = 0.9
    files = tuple(f"test/{i}.png" for i in range(num_test))
    return Predictions(files, labels, probabilities, tuple(classes))


class Root:
    """Runs, written as the trainer writes them."""

    def __init__(self, folder: Path):
        self.folder = folder

    def run(self, arm: str, seed: int, wrong: int, num_test: int = 60, keep=True, **facts) -> Path:
        """A finished run; `keep` says whether it has predictions."""
        exp = "" if arm == "Original" else f"_{arm.replace('/', '')}"
        place = self.folder / "pets" / f"resnet18_unpretrained{exp}_lr0.1" / f"seed{seed}"
        place.mkdir(parents=True)
        found = predictions(wrong, num_test)
        if keep:
            found.save(place / "predictions.npz")
        accuracy = 100 * float(found.hits.mean())
        results = {
            "best_accuracy": accuracy, "last_accuracy": accuracy, "steps": 20, "seconds": 5.0,
            "arm": arm, "dataset": "pets", "arch": "resnet18", "pretrained": False, "seed": seed,
            "lr": 0.1, "num_real": 6, "num_generated": 0, "num_test": num_test, **facts,
        }  # fmt: skip
        (place / "results.yaml").write_text(yaml.safe_dump(results))
        lines = "step,test_loss,test_accuracy\n10,1.5,40\n20,1.0,50\n"
        (place / "curves.csv").write_text(lines)
        command = {"command": f"python train_original.py --exp {arm}", "commit": "0123abcd"}
        (place / "options.yaml").write_text(yaml.safe_dump({**results, "made_with": command}))
        return place

    def arm(self, arm: str, wrong: list[int], **facts) -> list[Path]:
        return [self.run(arm, seed, each, **facts) for seed, each in enumerate(wrong, start=1)]

    def page(self, *options: str) -> str:
        target = self.folder / "page.html"
        command = [str(self.folder), "--table", "--format", "html", "--output", str(target)]
        parse_logs.main([*command, *options])
        return target.read_text(encoding="utf-8")


@pytest.fixture
def root(tmp_path):
    return Root(tmp_path / "runs")


@pytest.fixture
def study(root):
    """Original 50 %, RandAugment 66.7 %, and a set that makes it 90 %, with RandAugment 80 %."""
    root.arm("Original", [30, 30, 30])
    root.arm("randaugment", [20, 20, 20], augment="randaugment")
    root.arm("set_2x", [6, 6, 6], num_generated=12)
    root.arm("set_2x_randaugment", [12, 12, 12], num_generated=12, augment="randaugment")
    return root


def write_set(root: Root, real_dir: Path, name: str, seed: int = 1, **identity) -> Path:
    """Two variants of one image of each class, and the real images."""
    folder = root.folder / "expanded" / name
    folder.mkdir(parents=True)
    rows, sources = [], []
    for label, class_name in enumerate(CLASSES):
        source = f"train/{class_name.replace('/', '_')}/a.png"
        sources.append(source)
        if not (real_dir / source).exists():
            (real_dir / source).parent.mkdir(parents=True)
            Image.new("RGB", (200, 100), "red").save(real_dir / source)
        for k in range(2):
            file_name = f"{label}_{k}.png"
            Image.new("RGB", (20, 20), "blue").save(folder / file_name)
            row = {"file_name": file_name, "label": label, "class": class_name, "source": source}
            rows.append({**row, "variant": k, "seed": seed + k})
    lines = [json.dumps(row) for row in rows] + ['{"event": "unit", "images": 6, "seconds": 90}']
    (folder / "manifest.0-of-1.abc.jsonl").write_text("\n".join(lines) + "\n")
    facts = {"dataset": str(real_dir), "data_dir": "data", "root": str(real_dir)}
    asked = {"num_images_per_prompt": 2, "real_images": sources, "unet_rows_per_image": 50}
    (folder / "plan.json").write_text(json.dumps({**asked, **facts}))
    known = {"method": name, "settings": {"strength": 0.5}, **identity}
    (folder / "expansion.yaml").write_text(yaml.safe_dump(known))
    return folder


class Reader(HTMLParser):
    """Tags, attributes that lead elsewhere, images and visible texts of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.links, self.names, self.alts, self.text = set(), [], set(), [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            self.names.add(name)
            if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
                self.links.append(value)
            if name == "alt":
                self.alts.append(value)

    def handle_data(self, data):
        self.text += f"{data} "


@pytest.mark.slow
def test_the_page_begins_with_the_verdict_that_is_printed(study, capsys):
    page = study.page()
    printed = capsys.readouterr().out.splitlines()
    text = Reader(page).text
    assert printed[0].startswith(
        "With 60 test images and 3 seeds: set_2x is better than real images alone by 40.0 points "
        "(95 % interval "
    )
    assert printed[1] == f"page: {study.folder / 'page.html'}"
    first, second = re.split(r"(?<=\)\.) ", printed[0])
    assert first in text and second in text
    assert second.startswith(
        "Against the strongest arm without generated images, real images + RandAugment, it is "
        "better by 23.3 points"
    )
    assert "set_2x + RandAugment" in text and "best of 2 arms" in text


def test_the_best_arm_is_measured_against_the_strongest_without_generated_images(root, capsys):
    root.arm("Original", [30, 31, 29])
    root.arm("randaugment", [6, 7, 5], augment="randaugment")
    root.arm("set_2x", [7, 5, 6], num_generated=12)
    root.page()
    told = capsys.readouterr().out
    assert "set_2x is better than real images alone by 40.0 points" in told
    assert "real images + RandAugment, it cannot be told apart: it has 0.0 points" in told


def test_where_nothing_can_be_told_the_page_says_how_many_test_images_would_do(root, capsys):
    for seed in (1, 2, 3):
        root.run("Original", seed, 6, num_test=15)
        root.run("set_2x", seed, 5, num_test=15, num_generated=12)
    text = Reader(root.page()).text
    told = capsys.readouterr().out
    assert told.startswith(
        "With 15 test images and 3 seeds it cannot be told whether generated images help. The best "
        "arm, set_2x, has +6.7 points on real images alone (95 % interval "
    )
    needed = re.search(r"about ([\d,]+) test images would be needed instead of 15", text)
    # One of 15 images changes: the mean's variance is 1/225 with 15 images and 1 / (15 n) with n.
    # So t sqrt(1 / (15 n)) is less than 1/15 where n > 15 t^2, which is 60.1 with t(n - 1) = 2.00.
    assert 61 <= int(needed[1].replace(",", "")) <= 62
    assert "train_original.py --augment randaugment" in text


def test_one_seed_gives_no_verdict_and_no_number_of_images_that_would(root, capsys):
    root.run("Original", 1, 6, num_test=15)
    root.run("set_2x", 1, 5, num_test=15, num_generated=12)
    text = Reader(root.page()).text
    assert "With 15 test images and 1 seed it cannot be told" in capsys.readouterr().out
    assert "would be needed instead" not in text
    assert "One seed: the interval is over the test images alone" in text


@pytest.mark.slow
def test_an_arm_that_is_worse_is_called_so(root, capsys):
    root.arm("Original", [6, 6, 6])
    root.arm("set_2x", [30, 30, 30], num_generated=12)
    assert 'class="verdict says-worse"' in root.page()
    assert "set_2x is worse than real images alone by 40.0 points" in capsys.readouterr().out


def test_runs_of_older_versions_are_shown_without_an_interval(root, capsys):
    root.arm("Original", [30, 30], keep=False)
    root.arm("set_2x", [6, 6], num_generated=12, keep=False)
    text = Reader(root.page()).text
    told = capsys.readouterr().out
    assert "set_2x has +40.0 points against real images alone, without an interval" in told
    assert "no interval" in text and "no predictions.npz" in text
    assert "Classes and confusion are left out" in text and "better by" not in text


@pytest.mark.slow
def test_without_real_images_alone_or_generated_ones_the_page_says_what_to_run(root, capsys):
    root.run("set_2x", 1, 5, num_generated=12)
    root.page()
    assert "run train_original.py" in capsys.readouterr().out
    root.run("Original", 1, 5, num_test=60)
    for path in (root.folder / "pets").glob("*set_2x*/seed1/results.yaml"):
        path.unlink()
    root.page()
    assert "run train_expand.py" in capsys.readouterr().out


def test_nothing_on_the_page_comes_from_elsewhere(study, tmp_path):
    folder = write_set(study, tmp_path / "photos", "first")
    study.run("first", 1, 6, num_generated=6, expanded_set={"folder": str(folder)})
    page = study.page()
    found = Reader(page)
    assert found.links and all(re.match(r"data:(image/|,)|#", link) for link in found.links)
    plain = re.sub(r"data:image/[^\"]*", "", page)
    assert not re.search(r"https?:|//[a-z]|@import|@font-face", plain)
    assert set(re.findall(r"url\((.)", plain)) <= {"#"}
    assert not found.tags & {"script", "link rel", "iframe", "object", "embed", "base", "form"}


@pytest.mark.slow
def test_names_that_would_do_harm_are_text_everywhere(study, tmp_path):
    folder = write_set(study, tmp_path / "photos", "first")
    study.run(HOSTILE, 1, 3, num_generated=6, expanded_set={"folder": str(folder)})
    study.run(
        "first_amst", 1, 3, num_generated=6, labels="amst", expanded_set={"folder": str(folder)}
    )
    rows = [
        {"file_name": f"{k}_0.png", "seed_label": k, "pseudo_label": 1, "accepted": k == 1}
        for k in range(3)
    ]
    lines = [json.dumps({**row, "confidence": 0.8}) for row in rows]
    for run in study.folder.glob("pets/*first_amst*/seed1"):
        (run / "pseudo_labels.jsonl").write_text("\n".join(lines))
    page = study.page()
    found = Reader(page)
    assert "script" not in found.tags and not any(name.startswith("on") for name in found.names)
    assert "<script" not in page.lower()
    assert f"real image of {HOSTILE}" in found.alts
    assert f"variant of an image of cat, rejected as {HOSTILE}" in found.alts
    assert HOSTILE in found.text and "\u72ac $x$" in found.text
    assert "Of 3 generated images, self-training (seed 1) accepts 1, 0 of them" in found.text


@pytest.mark.slow
def test_the_images_that_a_selection_keeps_and_drops_are_shown_with_the_reason(study, tmp_path):
    folder = write_set(study, tmp_path / "photos", "first")
    kept = {f"{label}_0.png": "0" * 64 for label in range(3)}
    dropped = {f"{label}_1.png": "own_probability below 0.5" for label in range(3)}
    rule = "own_probability at least 0.5"
    path = tmp_path / "chosen.json"
    Selection("pets", "first", rule, {}, {}, kept, dropped).write(path)
    information = {"folder": str(folder), "selection_file": str(path)}
    study.run("first_chosen", 1, 6, num_generated=3, selection=rule, expanded_set=information)
    found = Reader(study.page())
    assert "Kept and dropped by a selection: first_chosen" in " ".join(found.text.split())
    assert f"Of 6 images 3 are kept: {rule}." in found.text
    assert "Dropped: 3 own_probability below 0.5." in found.text
    for title in ("kept", "dropped"):
        assert f"{title} variant of an image of cat" in found.alts
        assert f"{title} variant of an image of {HOSTILE}" in found.alts
    # Another selection under that name is not the one that the arm learnt from.
    Selection("pets", "first", "no copies", {}, {}, kept, dropped).write(path)
    found = Reader(study.page())
    assert f"Kept: {rule}." in found.text and "is gone or another one now" in found.text
    assert "kept variant of an image of cat" not in found.alts


@pytest.mark.slow
def test_variants_stand_beside_their_real_image_with_the_same_noise(study, tmp_path):
    folders = [write_set(study, tmp_path / "photos", name) for name in ("first", "second")]
    text = Reader(study.page()).text
    assert "began from the same noise" in text
    gallery_ = gallery.variants_beside_real([read_set(f) for f in folders], gallery.Budget())
    assert gallery_.headings == ["real", "first", "second"]
    assert [name for name, _ in gallery_.rows] == list(CLASSES)
    assert [len(images) for images in gallery_.rows[0][1]] == [1, 2, 2]
    real, (variant, _), _ = gallery_.rows[0][1]
    assert real[0].data.startswith("data:image/jpeg") and not real[0].small
    assert variant.data.startswith("data:image/png") and variant.small
    other = write_set(study, tmp_path / "photos", "third", seed=7)
    gallery_ = gallery.variants_beside_real(
        [read_set(folders[0]), read_set(other)], gallery.Budget()
    )
    assert "noise is not the same" in gallery_.notes[-1]


def test_images_beyond_the_budget_are_left_out_and_counted(study, tmp_path):
    folder = write_set(study, tmp_path / "photos", "first")
    found = gallery.variants_beside_real([read_set(folder)], gallery.Budget(4 * 5000))
    assert len(found.rows) == 2 and "2 of 3 classes are shown" in found.notes[0]


def test_a_set_whose_real_images_are_gone_says_so(study, tmp_path):
    folder = write_set(study, tmp_path / "photos", "first")
    (tmp_path / "photos").rename(tmp_path / "moved")
    found = gallery.variants_beside_real([read_set(folder)], gallery.Budget())
    assert found.headings == ["first"] and "Real images are not shown: " in found.notes[0]


@pytest.mark.slow
def test_costs_settings_and_commands_are_named(study, tmp_path):
    folder = write_set(study, tmp_path / "photos", "first")
    study.run("first", 1, 6, num_generated=6, expanded_set={"folder": str(folder)})
    text = " ".join(Reader(study.page()).text.split())
    assert "first 6 90 s 300 0.0 MB" in text  # images, time, U-Net rows, disk
    assert "real images alone 20 3 15 s" in text  # steps, runs, time of all
    assert "python train_original.py --exp set_2x" in text and "commit 0123abcd" in text
    assert "strength 0.5" in text


@pytest.mark.slow
def test_a_rehearsal_with_the_tiny_model_says_so_at_the_top(study, tmp_path):
    from expansion.diffusion.model_files import model_fingerprint
    from expansion.report.origins import TINY_MODEL

    tiny = model_fingerprint(str(TINY_MODEL))
    write_set(study, tmp_path / "photos", "other", model="sha256:0")
    assert "REHEARSAL" not in study.page()
    write_set(study, tmp_path / "photos", "tiny", model=tiny)
    page = study.page()
    assert page.index("REHEARSAL") < page.index("With 60 test images")


@pytest.mark.slow
def test_what_is_recognised_is_read_and_nonsense_is_not(study, tmp_path):
    folder = write_set(study, tmp_path / "photos", "first")
    assert "finds out" in Reader(study.page()).text
    found = {"images": 6, "recognised": 3, "by_class": {"cat": [0, 2], HOSTILE: [1, 2]}}
    content = {**found, "seed": 2, "test_accuracy": 87.5}
    (folder / "recognised.json").write_text(json.dumps(content))
    text = " ".join(Reader(study.page()).text.split())
    assert "50.0 %" in text and f"cat : 0 of 2; {HOSTILE} : 1 of 2" in text and "87.5 %" in text
    for nonsense in ('{"images": "6"}', "[]", json.dumps({**found, "by_class": {"cat": [1]}})):
        (folder / "recognised.json").write_text(nonsense)
        assert read_recognised(read_set(folder)) is None


@pytest.mark.slow
def test_a_classifier_of_real_images_counts_what_it_recognises(study, tmp_path):
    import torch

    from expansion.classifier.backbones import Classifier, classifier_state

    folder = write_set(study, tmp_path / "photos", "first")
    run = study.folder / "pets" / "resnet18_unpretrained_lr0.1" / "seed2"
    torch.manual_seed(0)
    classifier = Classifier("resnet10_tiny", 3, 32)
    with torch.no_grad():
        classifier.head.bias[1] += 100  # whatever it sees
    torch.save(
        {**classifier_state(classifier), "class_names": list(CLASSES)}, run / "checkpoint.pth.tar"
    )
    options = {"num_generated": 0, "seed": 2, "arch": "resnet10_tiny", "image_size": 32}
    (run / "options.yaml").write_text(yaml.safe_dump({**options, "resize_size": 36}))
    found = recognised_share(run, read_set(folder), "cpu")
    assert (found["recognised"], found["images"]) == (2, 6)
    assert found["by_class"] == {"cat": [0, 2], HOSTILE: [2, 2], "\u72ac $x$": [0, 2]}
    (run / "options.yaml").write_text(yaml.safe_dump({**options, "num_generated": 6}))
    with pytest.raises(InputError, match="learnt from generated images"):
        recognised_share(run, read_set(folder), "cpu")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--format", "html"], "needs --output"),
        (["--output", "page.html"], "needs --format html"),
        (["--format", "html", "--output", "FOLDER"], "is a folder; give a file"),
        (["--format", "html", "--output", ""], "--output"),
        (["--format", "html", "--output", "page.html", "--matrix", "dataset", "arm"], "--matrix"),
    ],
)
def test_a_page_that_cannot_be_made_is_refused(study, tmp_path, options, words):
    options = [str(tmp_path) if word == "FOLDER" else word for word in options]
    with pytest.raises(InputError, match=words):
        parse_logs.main([str(study.folder), "--table", *options])


def test_a_page_path_below_a_file_is_refused_before_anything_is_read(study, tmp_path):
    (tmp_path / "file").write_text("")
    options = ["--table", "--format", "html", "--output", str(tmp_path / "file" / "page.html")]
    with pytest.raises(InputError, match="file"):
        parse_logs.main([str(study.folder), *options])


def test_runs_of_different_test_sets_make_no_page(study):
    study.run("other_2x", 1, 5, num_test=59, num_generated=12)
    with pytest.raises(InputError, match="different test sets"):
        study.page()
