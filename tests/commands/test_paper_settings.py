"""What scripts and dataset files announce of the papers' tables is what they use."""

from __future__ import annotations

import math
import os
import re
import subprocess
from pathlib import Path

import pytest

import expand
import train_original
from expansion.classifier.recipe import Recipe, Schedule
from expansion.common.config import load_yaml
from expansion.reproduce import __main__ as reproduce
from expansion.reproduce.nodes import PlanOptions
from expansion.reproduce.papers import read_tables
from expansion.reproduce.planning import plan_tables
from expansion.reproduce.scales import read_scale
from expansion.training.softmatch_config import SoftMatchConfig
from tests.conftest import ROOT
from tests.helpers.stand_ins import stand_in

SHARED = {"demo", "gpu_check", "results", "test", "environment", "single_exp"}
SCRIPTS = sorted(p for p in (ROOT / "scripts").glob("*.sh") if p.stem not in SHARED)
SEMI_SUPERVISED = "--unlabeled_dir data/stl10/unlabeled"

# Script -> the tables whose cells of its dataset it makes.
BOTH = "dreamda/table3 dreamda/table3_pretrained"
TABLES = {
    "caltech-101": "distdiff",
    "caltech-101-faces": f"{BOTH} dreamda/table5",
    "cifar100_subset": "distdiff/fig3 distdiff/fig4",
    "dtd": "distdiff/fig4",
    "imagenette": "distdiff/table2",
    "oxford_pets": "dreamda",
    "pathmnist": "distdiff/table2 distdiff/fig7",
    "shenzhen": BOTH,
    "stanford_cars": f"distdiff/table2 distdiff/table15 distdiff/fig4 {BOTH} dreamda/table5",
    "stl10": BOTH,
}
# Datasets without a table of the papers: script -> methods with their number of variants.
UNPUBLISHED = {
    "fgvc_aircraft": {"distdiff": 5, "dreamda": 10},
    "oxford_flowers": {"distdiff": 5, "dreamda": 10},
}
SCRATCH = ("resnet50", "0.1", "False")


def calls_of(script: Path, folder: Path, **environment: str) -> list[list[str]]:
    """The words of every `python` command that a script runs, one GPU given."""
    fake, calls = folder / "python", folder / "calls"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$*" >> "$CALLS"\n')
    fake.chmod(0o755)
    environ = {**os.environ, "PYTHON": str(fake), "GPUS": "0", "CALLS": str(calls), **environment}
    done = subprocess.run(["sh", str(script)], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in calls.read_text().splitlines()]


def after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_every_script_finds_its_environment_by_itself():
    for path in [*SCRIPTS, ROOT / "scripts/exps/tables.sh"]:
        text = path.read_text()
        assert ". scripts/environment.sh" in text or path.stem in UNPUBLISHED, path
        assert "PYTHON:-" not in text


def test_every_script_has_its_settings_listed_here():
    assert {path.stem for path in SCRIPTS} == {*TABLES, *UNPUBLISHED}


@pytest.mark.parametrize("name", TABLES)
def test_a_dataset_s_script_makes_all_its_cells_of_the_tables_that_it_names(name, tmp_path):
    (words,) = calls_of(ROOT / "scripts" / f"{name}.sh", tmp_path)
    assert words[:2] == ["-m", "expansion.reproduce"]
    names, config = reproduce.parse(words[2:])
    assert (names, config.datasets) == (TABLES[name].split(), (name,))
    assert config.devices == ("0",)
    # No other table has a cell of this dataset, and each of these has one.
    having = {
        table.name
        for table in read_tables(["all"])
        if any(spec.dataset == name for spec in table.specs.values())
    }
    named = {table.name for table in read_tables(names)}
    assert having <= named and (named == having or names in (["distdiff"], ["dreamda"]))


@pytest.mark.parametrize("name", UNPUBLISHED)
def test_the_script_of_a_dataset_without_results_uses_what_its_header_announces(name, tmp_path):
    script = ROOT / "scripts" / f"{name}.sh"
    calls = calls_of(script, tmp_path)
    assert (ROOT / "configs" / "datasets" / f"{name}.yaml").is_file()
    assert all(name in " ".join(words) for words in calls)
    assert calls[-1] == ["parse_logs.py", f"checkpoint/{name}", "--table"]
    expansions = [words for words in calls if words[0] == "expand.py"]
    made = {after(w, "--method"): int(after(w, "--num_images_per_prompt")) for w in expansions}
    assert made == UNPUBLISHED[name]
    header = "".join(line for line in script.read_text().splitlines(True) if line[0] == "#")
    for method, count in made.items():
        assert re.search(rf"{method} {count}x", header.lower())
    assert {tuple(w[2:5]) for w in calls if w[0] == "train_original.py"} == {SCRATCH}
    runs = [w for w in calls if w[0] == "train_expand.py"]
    assert [after(w, "--labels") for w in runs] == ["seed", "seed", "amst"]


def test_stl10_s_arms_learn_from_40_labels_and_the_unlabelled_images(tmp_path, monkeypatch, capsys):
    """Its commands are accepted; the plan goes through the unlabelled images."""
    tables = read_tables(["dreamda/table3"])
    plan = plan_tables(tables, read_scale("paper"), Path("out"), PlanOptions(datasets=("stl10",)))
    commands = [c for node in plan.nodes.values() for c in node.commands]
    training = [c.arguments for c in commands if c.call.startswith("train_")]
    for command in commands:
        wants_images = command.call.startswith(("train_", "expand"))
        assert not wants_images or after(list(command.arguments), "--shots") == "4"
    for words in training:
        assert SEMI_SUPERVISED in " ".join(words)
        assert after(list(words), "--unlabeled_ratio") == "7"
    folder = stand_in("stl10", tmp_path / "data") / "stl10_binary"
    for file in ("train_X.bin", "train_y.bin"):
        (folder / file).write_bytes((folder / file).read_bytes() * 2)  # 4 images a class
    monkeypatch.chdir(tmp_path)
    plain = next(words for words in training if "--exp" not in words and "--augment" not in words)
    assert train_original.main([*plain, "--dry_run"]) is None
    assert "unlabelled images: 2, gone through" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["img2img", "distdiff", "dreamda"])
def test_scripts_take_each_method_with_prompts_and_options(method, tmp_path):
    chosen = {"METHODS": method, "PROMPTS": "some.json", "OPTIONS": "--shots 2"}
    calls = calls_of(ROOT / "scripts" / "oxford_flowers.sh", tmp_path, **chosen)
    (expansion,) = (words for words in calls if words[0] == "expand.py")
    assert after(expansion, "--method") == method and after(expansion, "--shots") == "2"
    assert ("--prompts_file" in expansion) == (method == "dreamda")
    assert all("--shots" in words for words in calls[:-1])


def test_an_unknown_method_is_named(tmp_path):
    script = ROOT / "scripts" / "oxford_flowers.sh"
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    environ = {**os.environ, "PYTHON": str(fake), "METHODS": "gan"}
    done = subprocess.run(["sh", str(script)], env=environ, capture_output=True, text=True)
    assert done.returncode == 2 and "unknown method gan" in done.stderr


def strength_of(dataset: str, method: str) -> float:
    guide = ["--encoder_weight_path", "guide"] if method == "distdiff" else []
    return expand.parse(["-d", dataset, "--method", method, *guide])[1].strength


def test_pathmnist_s_two_rows_have_one_strength():
    """DistDiff's Table 2: img2img is the row "SD"."""
    assert strength_of("pathmnist", "img2img") == strength_of("pathmnist", "distdiff") == 0.2
    assert strength_of("pathmnist", "dreamda") == 0.8
    assert strength_of("caltech-101", "img2img") == strength_of("caltech-101", "distdiff") == 0.5


SHARED_SETTINGS = ("strength", "num_inference_steps", "guidance_scale", "solver", "resize_mode")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "datasets").glob("*.yaml")), ids=lambda path: path.stem
)
def test_what_a_dataset_says_of_distdiff_s_start_holds_for_its_baseline(path):
    """img2img is DistDiff without guidance, so both must denoise alike to be compared."""
    methods = load_yaml(path).values.get("methods") or {}
    of_both = [
        {key: value for key, value in (methods.get(name) or {}).items() if key in SHARED_SETTINGS}
        for name in ("img2img", "distdiff")
    ]
    assert of_both[0] == of_both[1]


@pytest.mark.parametrize(
    "num_labeled, num_unlabeled, ratio, epoch",
    [
        (40, 100_000, 1.0, 100_000),  # STL-10: an epoch of 40 would end after 40 of them
        (40, 100_000, 7.0, 14_286),
        (440, 100_000, 7.0, 14_286),
        (5_000, 3_000, 1.0, 5_000),
        (10, 15, 7.0, 10),
    ],
)
@pytest.mark.parametrize("batch_size", [3, 64])
def test_an_epoch_of_semi_supervised_training_goes_through_both_sets(
    num_labeled, num_unlabeled, ratio, epoch, batch_size
):
    config = SoftMatchConfig(unlabeled_ratio=ratio)
    assert config.epoch_images(num_labeled, num_unlabeled) == epoch
    recipe = Recipe(epochs=2, batch_size=batch_size)
    sizes = Schedule(recipe, epoch).batch_sizes
    share = config.unlabeled_share(num_labeled, num_unlabeled)
    seen = sum(round(share * size) for size in sizes)
    assert sum(sizes) >= 2 * num_labeled
    assert seen >= 0.9 * 2 * num_unlabeled  # but for the rounding of each batch


def test_the_plan_says_how_often_unlabelled_images_are_seen(tmp_path, capsys, monkeypatch):
    """80 unlabelled images beside 4 labelled ones, by the defaults: 100 times, not 5."""
    folder = stand_in("stl10", tmp_path / "data") / "stl10_binary"
    pixels = (folder / "unlabeled_X.bin").read_bytes()
    (folder / "unlabeled_X.bin").write_bytes(pixels * 40)
    monkeypatch.chdir(tmp_path)
    line = "-d stl10 --shots 1 --unlabeled_dir data/stl10/unlabeled --dry_run"
    train_original.main(line.split())
    found = capsys.readouterr().out
    assert "unlabelled images: 80, gone through 100 times\n" in found
    assert f"optimiser steps: {100 * math.ceil(80 / 64)} of up to 64 images" in found
    train_original.main([*line.split(), "--budget", "steps", "--max_train_steps", "1"])
    assert "gone through 0.8 times; give more steps to see them all" in capsys.readouterr().out


def test_the_plan_of_stl10_by_defaults_covers_the_unlabelled_images():
    """4 labels a class: 156,300 steps of 64 + 64 images instead of 100 of 40 + 40."""
    config = SoftMatchConfig()
    steps = Schedule(Recipe(), config.epoch_images(40, 100_000)).batch_sizes
    assert len(steps) == 100 * math.ceil(100_000 / 64)
    assert config.passes(40, 100_000, sum(steps)).endswith("gone through 100 times")
