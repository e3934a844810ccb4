"""A dry run refuses what the run would refuse, in the same line, and says nothing of it is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import train_expand
import train_original
from expansion.classifier.backbones import Classifier
from expansion.classifier.recipe import Recipe
from expansion.common import progress
from expansion.common.errors import InputError
from expansion.common.progress import training_bar
from expansion.training.checks import check_training
from expansion.training.trainer import Trainer

CLASSES = ("ant", "bee")


@pytest.fixture
def dataset(make_folder, tmp_path) -> Path:
    tree = {name: [f"{i}.png" for i in range(4)] for name in CLASSES}
    root = make_folder("set", {"train": tree, "test": tree})
    (tmp_path / "set_2x" / "ant").mkdir(parents=True)
    rows = []
    for i in range(4):
        file = f"ant/{i}_expand_0.png"
        (tmp_path / "set_2x" / file).write_bytes((root / f"train/ant/{i}.png").read_bytes())
        rows.append({"file_name": file, "class": "ant", "source": f"train/ant/{i}.png"})
        rows[-1]["variant"] = 0
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "set_2x" / "manifest.0-of-1.1.jsonl").write_text(text)
    return root


def run(dataset: Path, *options: object) -> None:
    folder = dataset.parent
    line = f"-d {dataset} --checkpoint_dir {folder / 'runs'} --workers 0 --seeds 1 --lr 0.05"
    line += " -a resnet10_tiny --image_size 32 --resize_size 36 --batch_size 4"
    line += " --budget steps --max_train_steps 4"
    words = [*line.split(), *map(str, options)]
    if "--labels" in words:
        train_expand.main([*words, "--expanded_dir", str(folder / "set_2x")])
    else:
        train_original.main(words)


def train_set(dataset: Path) -> Path:
    """Weights that do not fit, and a text in place of weights."""
    torch.save(Classifier("resnet18", 2, 32).state_dict(), dataset.parent / "other.pth")
    (dataset.parent / "text.pth").write_text("no weights")
    return dataset.parent


REFUSED = [
    ("-a resnet999", "unknown arch 'resnet999'; did you mean"),
    ("-a googlenet", "arch googlenet is not supported"),
    ("-a vit_b_16 --image_size 30 --resize_size 30", "vit_b_16 cannot take images of 30 pixels"),
    ("-a vgg16 --image_size 8 --resize_size 8", "vgg16 cannot take images of 8 pixels"),
    ("--pretrained", "no pretrained weights for resnet10_tiny; use --no-pretrained"),
    ("-a resnet18 --pretrained --weights V7", "weights V7 is neither a file nor a name"),
    ("--pretrained --weights {0}/other.pth", "other.pth does not fit a resnet10_tiny"),
    ("--pretrained --weights {0}/text.pth", "text.pth is no readable"),
    ("--pretrained --weights {0}/none.pth", "no pretrained weights for resnet10_tiny"),
    ("--mixed_precision fp16", "--mixed_precision fp16 needs a GPU"),
    ("-a resnet50 --batch_size 1", "batch_size 1: batch normalisation of resnet50 cannot train"),
    ("--labels soft --batch_size 1", "batch_size 1: real and generated images share it"),
    ("--labels soft --max_train_steps 1", "max_train_steps 1: these labels take"),
]


@pytest.mark.slow
@pytest.mark.parametrize("options, words", REFUSED, ids=lambda text: text[:30])
@pytest.mark.parametrize("how", ["--dry_run", "--no-dry_run"])
def test_a_dry_run_and_the_run_refuse_the_same_before_anything_is_written(
    dataset, monkeypatch, capsys, options, words, how
):
    if "fp16" in options:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Trainer, "__init__", None)  # it is never come to
    folder = train_set(dataset)
    with pytest.raises(InputError, match=words):
        run(dataset, *options.format(folder).split(), how)
    assert not (folder / "runs").exists() and not capsys.readouterr().out


def test_a_compiler_is_looked_for_in_a_dry_run_too(dataset, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InputError, match="--compile needs a C"):
        run(dataset, "--compile", "--dry_run")


@pytest.mark.slow
def test_a_dry_run_says_done_only_of_what_the_run_would_leave_alone(dataset, capsys):
    run(dataset, "--dry_run")
    assert capsys.readouterr().out.endswith("seed 1 to do\n")
    run(dataset)
    run(dataset, "--dry_run")
    assert capsys.readouterr().out.endswith("seed 1 done\n")
    for how in ("--dry_run", "--no-dry_run"):
        with pytest.raises(InputError, match="max_train_steps: 4 there, 9 now"):
            run(dataset, "--max_train_steps", 9, how)
    assert "done" not in capsys.readouterr().out


@pytest.mark.slow
def test_seeds_of_other_settings_are_found_before_the_first_one_trains(dataset, monkeypatch):
    run(dataset, "--seeds", 2)
    monkeypatch.setattr(Trainer, "__init__", None)
    with pytest.raises(InputError, match="seed2 was begun with other settings"):
        run(dataset, "--seeds", 1, 2, "--max_train_steps", 9)


def test_no_seed_at_all_is_no_success(dataset, tmp_path):
    (tmp_path / "none.yaml").write_text("seeds: []\n")
    with pytest.raises(InputError, match="seeds is an empty list"):
        line = f"-d {dataset} --config {tmp_path / 'none.yaml'} -a resnet10_tiny --image_size 32"
        train_original.main(line.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes, num_images, num_processes, words",
    [
        ({"batch_size": 3}, 100, 4, "batches of 3 images .* some of the 4 processes without any"),
        ({"batch_size": 64}, 3, 4, "batches of 3 images .* 4 processes without any"),
        ({"batch_size": 4, "augment": "mixup"}, 100, 4, "give at least 8 for 4 processes"),
        ({"batch_size": 4, "arch": "resnet50"}, 100, 4, "resnet50 cannot train .* --batch_size 8"),
        ({"batch_size": 4, "arch": "vit_b_32"}, 100, 4, ""),  # it has no batch normalisation
        ({"batch_size": 8, "arch": "resnet50"}, 100, 4, ""),
        ({"arch": "regnet_x_400mf"}, 100, 1, ""),
        ({"arch": "clip_vit_b32"}, 100, 1, ""),
    ],
)
def test_every_process_needs_images_enough(changes, num_images, num_processes, words):
    recipe = Recipe(**{"arch": "resnet10_tiny", "image_size": 32, "resize_size": 32, **changes})
    if words:
        with pytest.raises(InputError, match=words):
            check_training(recipe, 2, num_images, num_processes)
    else:
        check_training(recipe, 2, num_images, num_processes)


class Bar:
    """In place of a progress bar."""

    made: list[Bar] = []

    def __init__(self, **options: object):
        self.options, self.n, self.initial, self.updates = options, 0, 0, []
        self.made.append(self)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, number: int) -> None:
        self.n += number
        self.updates.append(number)

    def set_postfix(self, **_: object) -> None:
        pass


@pytest.fixture
def bars(monkeypatch) -> list[Bar]:
    monkeypatch.setattr(progress, "SteadyBar", Bar)
    monkeypatch.setattr(Bar, "made", [])
    return Bar.made


def shown(bars: list[Bar]) -> list[tuple[object, object, int]]:
    return [(bar.options["desc"], bar.options["total"], bar.n) for bar in bars]


@pytest.mark.slow
def test_bars_of_a_training_have_a_total_and_name_the_seed(dataset, bars):
    run(dataset, "--seeds", 1, 2, 9)
    expected = ["Original, seed 1 of 3", "Original, seed 2 of 3", "Original, seed 3 of 3 (9)"]
    assert shown(bars) == [(title, 4, 4) for title in expected]
    run(dataset, "--seeds", 1)
    assert len(bars) == 3  # a run that was done before has none


@pytest.mark.slow
def test_bars_of_self_training_name_the_stages(dataset, bars):
    run(dataset, "--labels", "amst", "--rounds", 2, "--max_train_steps", 8)
    titles = [f"set_2x_amst, seed 1 of 1, stage {stage}" for stage in ("1 of 3", "2 of 3")]
    assert shown(bars) == [
        *[(title, total, total) for title, total in zip(titles, (2, 4), strict=True)],
        *[(f"{title}, round 2", total, total) for title, total in zip(titles, (2, 4), strict=True)],
        ("set_2x_amst, seed 1 of 1, stage 3 of 3", 4, 4),
    ]


def test_a_bar_does_not_count_an_earlier_runs_steps_as_quick_ones(bars):
    with training_bar("run", False, "", 10) as advance:
        advance(7, {})
        advance(8, {"test_accuracy": 50.0})
    (bar,) = bars
    assert (bar.initial, bar.updates, bar.n) == (6, [1, 1], 8)
