"""Every command and file that documents, scripts and configs name exists and works dry."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import expand
import parse_logs
import train_expand
import train_original
from baselines.diffusion_inversion import __main__ as diffusion_inversion
from baselines.textual_inversion import __main__ as textual_inversion
from distdiff import prototype_plot
from dreamda.finetune import __main__ as finetune
from dreamda.prompts import __main__ as prompts
from expansion.advise.config import AdviseConfig
from expansion.benchmarks import sampling as benchmark
from expansion.benchmarks import training as benchmark_training
from expansion.data import __main__ as check_command
from expansion.data import datasets as image_datasets
from expansion.data.prompts import preset_prompts
from expansion.export import __main__ as export
from expansion.measures import bias
from expansion.measures import command as evaluate
from expansion.predict import __main__ as predict
from expansion.report import paired
from expansion.reproduce import __main__ as reproduce
from expansion.reproduce import papers
from expansion.reproduce.scales import read_scale
from expansion.selection import command as filter_command
from expansion.store.selection import Selection
from expansion.study import config as study_config
from tests.conftest import ROOT
from tests.helpers.embeddings import stand_in_embeddings
from tests.helpers.stand_ins import WRITERS, folders, stand_in
from tests.rigs import fault_rig, fuzz

ENTRIES = {
    "expand.py": expand.main,
    "train_original.py": train_original.main,
    "train_expand.py": train_expand.main,
    "parse_logs.py": parse_logs.main,
}
# Options that show with these alone.
MORE_OPTIONS = {
    expand.main: [["--method", method] for method in expand.SAMPLERS],
    train_expand.main: [["--labels", labels] for labels in train_expand.OBJECTIVES],
}
PARSERS = {
    "baselines.textual_inversion": textual_inversion.parse,
    "baselines.diffusion_inversion": diffusion_inversion.parse,
    "distdiff.prototype_plot": prototype_plot.parse,
    "dreamda.finetune": finetune.parse,
    "dreamda.prompts": prompts.parse,
    "expansion.advise": lambda words: study_config.read_command_line(words, "", AdviseConfig),
    "expansion.benchmark": benchmark.parse,
    "expansion.benchmark_training": benchmark_training.parse_options,
    "expansion.export": export.parse,
    "expansion.reproduce": reproduce.parse,
    "expansion.study": lambda words: study_config.read_command_line(words, ""),
    "expansion.predict": predict.parse,
    "expansion.report.paired": paired.parse,
    "expansion.evaluate": evaluate.parse,
    "expansion.filter": filter_command.parse,
    "expansion.measures.bias": bias.parse,
}
# What must be known of a command's parsed options.
FOUND = {
    "baselines.textual_inversion": lambda parsed: parsed[0].output_dir,
    "baselines.diffusion_inversion": lambda parsed: parsed[0].output_dir,
    "distdiff.prototype_plot": lambda parsed: parsed.encoder_weight_path,
    "dreamda.finetune": lambda parsed: parsed[0].output_dir,
    "dreamda.prompts": lambda parsed: parsed.output,
    "expansion.advise": lambda parsed: parsed.peek("minutes"),
    "expansion.benchmark": lambda parsed: parsed.methods,
    "expansion.benchmark_training": lambda parsed: parsed.arch,
    "expansion.export": lambda parsed: parsed.merge,
    "expansion.reproduce": lambda parsed: (
        papers.read_tables(set(parsed[0]) - {"list"}) or parsed[0]
    ),
    "expansion.study": lambda parsed: parsed.peek("dataset"),
    "expansion.predict": lambda parsed: parsed.photos,
    "expansion.report.paired": lambda parsed: parsed.sets,
    "expansion.evaluate": lambda parsed: parsed.exp,
    "expansion.filter": lambda parsed: parsed.rule,
    "expansion.measures.bias": lambda parsed: parsed.sizes,
}


def python_commands(path: Path) -> list[str]:
    """The `python ...` commands of a file's shell blocks or comments, continuation lines joined."""
    text = path.read_text().replace("\\\\\n", "\\\n")
    lines = re.sub(r"\\\n(#|\s)*", " ", text).splitlines()
    commands = [
        re.search(
            r"^[#\s]*(python (?:\w+\.py|-m (?:baselines|distdiff|dreamda|expansion)\.).*)$", line
        )
        for line in lines
    ]
    return [c[1].split("  #")[0].strip() for c in commands if c]


DOCUMENTS = sorted(
    p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
)
COMMANDS = sorted(
    {
        command
        for path in [
            *(ROOT / document for document in DOCUMENTS),
            *ROOT.glob("*.py"),
            *ROOT.glob("dreamda/*.py"),
            *ROOT.glob("*/*/__main__.py"),
            *ROOT.glob("expansion/benchmarks/*.py"),
            *ROOT.glob("configs/*/*.yaml"),
            *ROOT.glob("configs/papers/*/*.yaml"),
        ]
        for command in python_commands(path)
    }
)


@pytest.fixture
def workplace(tmp_path, monkeypatch, make_folder, digits_dir) -> Path:
    """A working folder with small stand-ins for all that the documents' commands refer to."""
    tree = {
        split: {"ant": ["1.jpg", "2.jpg"], "yin_yang": ["1.jpg"]} for split in ("train", "test")
    }
    make_folder("data/caltech-101", tree)
    make_folder("path/to/folder", tree)
    for name in ("classes", "images"):
        folders(tmp_path / "path" / "to" / name, {"ant": 5, "yin_yang": 5})
    (tmp_path / "data" / "digits").symlink_to(digits_dir / "digits")
    for dataset in ("caltech-101", "folder", "digits"):
        runs = tmp_path / "checkpoint" / dataset
        for run in ("resnet50_unpretrained_lr0.1", "resnet50_unpretrained_distdiff_5x_lr0.1"):
            (runs / run / "seed1").mkdir(parents=True)
            (runs / run / "seed1" / "results.yaml").write_text(
                "best_accuracy: 50.0\nlast_accuracy: 40.0\n"
            )
            (runs / run / "seed1" / "model_best.pth.tar").write_bytes(b"")
    (tmp_path / "GUIDE").write_bytes(b"")
    (tmp_path / "my_study.yaml").write_text("num_images_per_prompt: 3\n")
    (tmp_path / "prompts").mkdir()
    prompts_of = {"ant": ["an ant", "one ant"], "yin_yang": ["a yin yang"]}
    (tmp_path / "prompts" / "folder.json").write_text(json.dumps(prompts_of))
    for name, shots in (
        ("caltech-101", "distdiff_5x"),
        ("folder", "distdiff_10x"),
        ("digits", "distdiff_10x"),
        ("digits", "img2img_10x"),
        ("caltech-101", "dreamda_10x"),
        ("folder", "dreamda_10x"),
        ("folder", "dreamda_20x"),
        ("folder", "lecf_5x"),
    ):
        _expansion(tmp_path / "data" / f"{name}_expansion" / shots, name)
    for kind, name, *shots in (
        ("textual_inversion", "words", "--shots", 2),
        ("diffusion_inversion", "inverted"),
    ):
        folder = tmp_path / "checkpoint" / f"digits-{name}"
        stand_in_embeddings(folder, kind, digits_dir, *shots)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def _expansion(folder: Path, dataset: str) -> None:
    """A set of one generated image, made from a training image of `dataset`."""
    from PIL import Image

    from expansion.data.datasets import few_shot, load_dataset

    root = "path/to/folder" if dataset == "folder" else dataset
    base = folder.parents[1]
    location = str(base.parent / root) if dataset == "folder" else dataset
    record = few_shot(load_dataset(location, base).records("train"), 1)[0]
    (folder / "c").mkdir(parents=True)
    image = folder / "c" / "1_expand_0.png"
    Image.new("RGB", (8, 8)).save(image)
    kept = {"c/1_expand_0.png": hashlib.sha256(image.read_bytes()).hexdigest()}
    Selection(dataset, folder.name, "no copies", {}, {}, kept, {}).write(folder / "selected.json")
    row = {"file_name": "c/1_expand_0.png", "class": record.class_name}
    row |= {"source": record.file_name, "variant": 0}
    (folder / "manifest.0-of-1.1.jsonl").write_text(json.dumps(row) + "\n")


def test_the_documents_hold_commands():
    assert len(COMMANDS) > 10
    assert {command.split()[1] for command in COMMANDS} >= {"-m", *ENTRIES}


def test_every_dataset_file_has_its_check_among_the_commands():
    checked = {shlex.split(command)[4] for command in COMMANDS if "image_datasets check" in command}
    assert checked >= set(WRITERS)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_works_under_dry_run(command, workplace, capsys):
    words = [w for w in shlex.split(command)[1:] if not w.startswith(("{", "&"))]
    if words[1] in ("expansion.data", "expansion.image_datasets"):
        _check(words[2:], workplace)
        return
    if words[0] == "-m":
        assert FOUND[words[1]](PARSERS[words[1]](_from_project(words[2:])))
        return
    entry, arguments = words[0], _from_project(words[1:])
    if entry != "parse_logs.py":
        arguments.append("--dry_run")
    if "digits" in arguments and "distdiff" in arguments:
        arguments += ["--encoder_weight_path", "GUIDE"]
    assert not ENTRIES[entry](arguments)
    assert capsys.readouterr().out


def _check(words: list[str], workplace: Path) -> None:
    """Run the check of a dataset, on its stand-in if it is a named one."""
    name = words[1]
    if name in WRITERS:
        stand_in(name, workplace / "checked")
        words = [*words, "--data_dir", "checked"]
    # The split folders of the workplace share their images, which the check must tell.
    assert check_command.main(words) == (1 if name == "path/to/folder" else 0)


def _from_project(words: list[str]) -> list[str]:
    return [str(ROOT / w) if w.startswith(("configs/", "assets/")) else w for w in words]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("configs/*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.name}"
)
def test_every_yaml_file_resolves(path, workplace):
    kind = path.parent.name
    if kind == "papers":
        assert read_scale(path.stem).file.title
    elif kind == "studies":
        asked = study_config.read_command_line(["digits", "--config", str(path)], "")
        assert study_config.settle(asked, "tiny").arms
    elif kind == "datasets" and path.stem not in {*WRITERS, "digits"}:
        assert image_datasets.dataset_config(path.stem)  # it has no stand-in whose images were read
    elif kind == "datasets":
        if path.stem != "digits" and not (workplace / "data" / WRITERS[path.stem][0]).exists():
            stand_in(path.stem, workplace / "data")
        assert not train_original.main(["-d", path.stem, "--dry_run"])
        own_methods = image_datasets.dataset_config(path.stem).methods or {}
        for method in {"img2img", *own_methods}:
            guide = ["--encoder_weight_path", "GUIDE"] if method == "distdiff" else []
            assert not expand.main(["-d", path.stem, "--method", method, "--dry_run", *guide])
    elif kind == "classifiers":
        assert not train_original.main(["-d", "digits", "--config", str(path), "--dry_run"])
    elif kind == "prompts":
        named = ["cat" in prompt for prompt in preset_prompts(path.stem, "cat")]
        assert named  # edits name no class, all other prompts do
        assert not any(named) if path.stem.startswith("diffusemix") else all(named)
    elif kind == "dreamda" and path.stem != "default":
        parse = prompts.parse if path.stem in ("prompts", "lecf") else finetune.parse
        assert parse(["--config", str(path)])
    else:
        arguments = ["-d", "digits", "--config", str(path), "--dry_run"]
        if kind == "dreamda":
            arguments += ["--method", "dreamda"]
        if kind == "distdiff":
            arguments += ["--encoder_weight_path", "GUIDE"]
        assert not expand.main(arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        ["exps/train_original.sh", "caltech-101", "resnet50", "0.1", "False", "0"],
        ["exps/expand_diff.sh", "5", "0", "3"],
        ["exps/expand_img2img.sh", "5", "0", "3"],
        ["exps/train_expand.sh", "caltech-101", "resnet50", "0.1", "distdiff_5x", "False", "0"],
    ],
    ids=lambda words: words[0],
)
def test_the_papers_scripts_run_under_sh_and_bash(script, workplace):
    guide = (
        workplace / "checkpoint/caltech-101/resnet50_unpretrained_lr0.1/seed1/model_best.pth.tar"
    )
    environ = {**os.environ, "PYTHON": sys.executable, "GUIDE": str(guide)}
    arguments = [*script[1:], "--data_dir", str(workplace / "data"), "--dry_run"]
    for shell in ("sh", "bash"):
        done = subprocess.run(
            [shell, f"scripts/{script[0]}", *arguments],
            cwd=ROOT,
            env=environ,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "caltech-101" in done.stdout


def single_exp(script: Path, workplace: Path, *words: str, **environ: str) -> tuple[list[str], str]:
    """What a script hands to `python`: its words, and its stdin."""
    fake = workplace / "python"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$CALL"\n[ -t 0 ] || cat > "$CALL.stdin"\n')
    fake.chmod(0o755)
    call = workplace / "call"
    clean = {k: v for k, v in os.environ.items() if k not in ("MODEL", "LR", "GPUS", "METHODS")}
    done = subprocess.run(
        ["sh", str(script), *words],
        env={**clean, "PYTHON": str(fake), "CALL": str(call), **environ},
        cwd=workplace,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return call.read_text().splitlines(), call.with_name("call.stdin").read_text()


SINGLE_EXP = ROOT / "scripts" / "single_exp.sh"
STUDY = ["-m", "expansion.study"]


def test_the_command_takes_a_folder_from_where_it_is_typed(workplace):
    words, _ = single_exp(SINGLE_EXP, workplace, "path/to/classes", "--yes", "--seeds", "1")
    assert words == [*STUDY, str(workplace / "path/to/classes"), "--yes", "--seeds", "1"]


def test_the_papers_variables_become_options(workplace):
    words, _ = single_exp(SINGLE_EXP, workplace)
    assert words == [*STUDY, "caltech-101", "--scale", "paper", "--methods", "distdiff"]
    environ = {
        "DATASET": "stl10", "MODEL": "resnet18", "LR": "0.2", "METHODS": "distdiff dreamda",
        "GPUS": "0 1", "EXPAND_NUM": "7", "DREAMDA_NUM": "20", "GUIDE": "g.pth.tar",
    }  # fmt: skip
    words, stdin = single_exp(SINGLE_EXP, workplace, **environ)
    (workplace / "stdin.yaml").write_text(stdin)
    assert words[-2:] == ["--config", "/dev/stdin"]
    words[-1] = str(workplace / "stdin.yaml")
    asked = study_config.read_command_line(words[2:], "")
    settings = study_config.settle(asked, "tiny")
    config = settings.config
    assert (config.dataset, config.arch, config.lr) == ("stl10", "resnet18", 0.2)
    assert (config.methods, config.devices) == (("distdiff", "dreamda"), ("0", "1"))
    assert (config.num_images_per_prompt, config.guide) == (7, "g.pth.tar")
    assert settings.method_options["dreamda"] == {"num_images_per_prompt": 20}


def test_a_failed_shard_fails_the_whole_experiment(workplace):
    fake = workplace / "python"
    fake.write_text('#!/bin/sh\necho "$@" >> calls\ncase "$*" in *"--split 1"*) exit 3;; esac\n')
    fake.chmod(0o755)
    (workplace / "scripts").symlink_to(ROOT / "scripts")
    script = (
        (ROOT / "scripts/exps/tables.sh").read_text().replace('cd "$(dirname "$0")/../.."', ":")
    )
    (workplace / "tables.sh").write_text(script)
    environ = {**os.environ, "PYTHON": str(fake), "GPUS": "0 1"}
    done = subprocess.run(
        ["bash", "tables.sh"], cwd=workplace, env=environ, capture_output=True, text=True
    )
    calls = (workplace / "calls").read_text()
    assert done.returncode == 1 and "a shard failed" in done.stderr
    assert "--split 0" in calls and "train_expand.py" not in calls


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_names_exists(document):
    text = (ROOT / document).read_text()
    named = re.findall(
        r"(?<!\w)(?:assets|baselines|configs|scripts|expansion|distdiff|dreamda|tests)/[\w./-]*\w",
        text,
    )
    named = set(named) - set(papers.table_names())
    missing = [name for name in named if not (ROOT / name).exists() and "name.yaml" not in name]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_option_that_a_document_names_exists(document, capsys):
    known = {"--num_processes", "--multi_gpu", "--output-dir", "--local-dir", "--quick", "--wrap"}
    for entry in ENTRIES.values():
        for extra in MORE_OPTIONS.get(entry, [[]]):
            with pytest.raises(SystemExit):
                entry([*extra, "--help", "all"])
    for parse in (*PARSERS.values(), check_command.main, fault_rig.main, fuzz.main):
        for layer in ([], ["all"]):
            with pytest.raises(SystemExit):
                parse(["--help", *layer])
    known |= set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    named = set(re.findall(r"(?<![\w-])--\w[\w-]*", (ROOT / document).read_text()))
    assert named <= known
