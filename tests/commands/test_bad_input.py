"""Wrong input ends in one line with the remedy, exit code 2, before anything is written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import expand
import train_expand
import train_original
from dreamda.finetune import __main__ as finetune
from expansion.common.errors import InputError, run_command
from expansion.store.writer import ExpansionWriter
from tests.conftest import ROOT

GOOD = {
    "train": {"ant": ["1.png", "2.png"], "bee": ["1.png"]},
    "test": {"ant": ["1.png"], "bee": ["1.png"]},
}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Function that runs a main as the command line does: (exit code, one line of stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(main, *arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            run_command(lambda: main(list(arguments)))
        error = capsys.readouterr().err.strip()
        return stop.value.code, error

    return call


def expand_arguments(folder: Path, *more: str) -> list[str]:
    model = str(ROOT / "assets" / "tiny-sd-digits")
    return [
        "-d",
        str(folder),
        "--pretrained_model_name_or_path",
        model,
        "--output_dir",
        "out",
        *more,
    ]


def without(tree: dict, *path: str) -> dict:
    changed = json.loads(json.dumps(tree))
    place = changed
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return changed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-d", "no-such-set"], ["unknown dataset 'no-such-set'", "train/<class>"]),
        (["-d", "digit"], ["did you mean 'digits'"]),
        (["--method", "distdif"], ["unknown method 'distdif'", "distdiff"]),
        (["--split", "2", "--total_split", "2"], ["--split 2", "below"]),
        (["--split", "-1", "--total_split", "2"], ["--split -1"]),
        (["--split", "0", "--total_split", "0"], ["--total_split 0"]),
        (["--strength", "1.5"], ["strength 1.5"]),
        (["--num_inference_steps", "1"], ["leaves none to run"]),
        (["--batch_size", "0"], ["batch_size 0"]),
        (["--shots", "3"], ["--shots 3", "has only"]),
        (["--subset_file", "none.json"], ["--subset_file none.json", "--shots"]),
        (["--test_fraction", "0.3"], ["--test_fraction 0.3", "has a test split"]),
        (["--test_fraction", "3"], ["test_fraction 3.0", "between 0 and 1"]),
        (["--prompt_template", "a photo"], ["'a photo'", "{}"]),
        (["--pretrained_model_name_or_path", "./nowhere"], ["./nowhere", "does not exist"]),
        (["--device", "tpu"], ["--device tpu"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
    ],
)
def test_a_wrong_option_of_expand_is_named(arguments, words, run, make_folder):
    folder = make_folder("photos", GOOD)
    code, error = run(expand.main, *expand_arguments(folder, "--method", "img2img", *arguments))
    assert code == 2
    assert "\n" not in error and all(word in error for word in words), error
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--guidance_step", "26"], ["guidance_step 26", "25 executed"]),
        (["--guidance_step", "2", "--guidance_period", "3"], ["guidance_period 3", "at most"]),
        (["--optimize_targets", "class_prototype"], ["'class_prototype'", "global_prototype"]),
        (["--K", "0"], ["K 0"]),
        (["--constraint_value", "-1"], ["constraint_value -1"]),
        (["--encoder_weight_path", "nowhere.tar"], ["nowhere.tar", "train_original.py"]),
        ([], ["needs a guide", "--encoder_weight_path"]),
    ],
)
def test_a_wrong_option_of_distdiff_is_named(arguments, words, run, make_folder):
    folder = make_folder("photos", GOOD)
    guide = Path("guide.tar")
    guide.write_bytes(b"")
    given = (
        ["--encoder_weight_path", str(guide)] if arguments and "encoder" not in arguments[0] else []
    )
    code, error = run(
        expand.main, *expand_arguments(folder, "--method", "distdiff", *given, *arguments)
    )
    assert code == 2
    assert "\n" not in error and all(word in error for word in words), error
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], ["10 classes", "has 2"]),
        (["--arch", "resnet18"], ["resnet10_tiny", "not a resnet18"]),
        (["--arch", "resnet999"], ["resnet999"]),
    ],
)
def test_a_guide_that_does_not_fit_is_refused_before_anything_is_written(
    more, words, run, make_folder, guide_path
):
    folder = make_folder("photos", GOOD)
    guide = ["--encoder_weight_path", str(guide_path)]
    code, error = run(expand.main, *expand_arguments(folder, "--method", "distdiff", *guide, *more))
    assert code == 2
    assert "\n" not in error and all(word in error for word in words), error
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("rhoo: 3\n", ["bad.yaml", "'rhoo'", "'rho'"]),
        ("strength: high\n", ["bad.yaml", "strength", "float"]),
        ("optimize_targets: [a, b]\n", ["bad.yaml", "optimize_targets", "str"]),
        ("a: b: c\n", ["bad.yaml", "YAML"]),
        ("- 1\n", ["bad.yaml", "list"]),
        ("method: gan\n", ["unknown method 'gan'"]),
    ],
)
def test_a_wrong_yaml_file_is_named(content, words, run, make_folder):
    folder = make_folder("photos", GOOD)
    Path("bad.yaml").write_text(content)
    code, error = run(expand.main, *expand_arguments(folder, "--config", "bad.yaml"))
    assert code == 2
    assert "\n" not in error and all(word in error for word in words), error


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (without(GOOD, "train"), ["no folder train/"]),
        (without(GOOD, "test"), ["no folder test/"]),
        ({"train": {"ant": []}, "test": GOOD["test"]}, ["ant", "no images"]),
        ({"train": {"ant": ["1.png"]}, "test": GOOD["test"]}, ["'bee'", "not in"]),
        ({"train": {}, "test": {}}, ["no folder train/"]),
    ],
    ids=["no-train", "no-test", "empty-class", "class-only-in-test", "nothing"],
)
def test_a_wrong_folder_is_explained(tree, words, run, make_folder):
    folder = make_folder("photos", tree)
    folder.mkdir(exist_ok=True)
    code, error = run(train_original.main, "-d", str(folder), "-a", "resnet10_tiny")
    assert code == 2
    assert "\n" not in error and all(word in error for word in words), error
    assert not Path("checkpoint").exists()


@pytest.mark.parametrize("main", [expand.main, train_original.main])
def test_an_unreadable_image_is_named_or_skipped(main, run, make_folder):
    folder = make_folder("photos", GOOD)
    broken = folder / "train" / "ant" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    options = ["--image_size", "32", "--resize_size", "32", "-a", "resnet10_tiny", "--epochs", "1"]
    arguments = ["-d", str(folder), *options, "--seeds", "1", "--workers", "0"]
    if main is expand.main:
        steps = ["--num_inference_steps", "2", "--num_images_per_prompt", "1"]
        arguments = expand_arguments(folder, "--method", "img2img", *steps)
    code, error = run(main, *arguments)
    assert code == 2 and str(broken) in error and "--on_error skip" in error and "\n" not in error
    code, _ = run(main, *arguments, "--on_error", "skip")
    assert not code


def test_an_incomplete_model_folder_is_listed(run, make_folder):
    folder = make_folder("photos", GOOD)
    shutil.copytree(ROOT / "assets" / "tiny-sd-digits", "model")
    shutil.rmtree("model/tokenizer")
    next(Path("model/vae").glob("*.safetensors")).unlink()
    arguments = expand_arguments(
        folder, "--method", "img2img", "--pretrained_model_name_or_path", "model"
    )
    code, error = run(expand.main, *arguments)
    assert code == 2 and "tokenizer" in error and "vae/*.safetensors" in error and "\n" not in error


def test_a_damaged_weight_file_is_named(run, make_folder):
    folder = make_folder("photos", GOOD)
    shutil.copytree(ROOT / "assets" / "tiny-sd-digits", "model")
    weights = next(Path("model/unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    arguments = expand_arguments(
        folder, "--method", "img2img", "--pretrained_model_name_or_path", "model"
    )
    code, error = run(expand.main, *arguments)
    assert code == 2 and "model" in error and "\n" not in error
    assert not Path("out").exists()


def test_other_settings_in_a_begun_folder_are_shown(run, make_folder):
    folder = make_folder("photos", GOOD)
    arguments = expand_arguments(
        folder, "--method", "img2img", "--num_inference_steps", "2", "--num_images_per_prompt", "1"
    )
    assert not run(expand.main, *arguments)[0]
    before = sorted(p.name for p in Path("out").iterdir())
    code, error = run(expand.main, *arguments, "--strength", "0.6")
    assert code == 2 and "strength: 0.5 there, 0.6 now" in error and "\n" not in error
    assert sorted(p.name for p in Path("out").iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-a", "resnet5"], ["unknown arch 'resnet5'"]),
        (["--budget", "steps"], ["--max_train_steps"]),
        (["--image_size", "300"], ["resize_size 256"]),
        (["--val_fraction", "0.9"], ["val_fraction 0.9", "has only"]),
        (["a", "b", "0.1", "False", "0", "too much"], ["too many"]),
        (["photos", "resnet18", "fast"], ["lr", "float", "'fast'"]),
    ],
)
def test_a_wrong_option_of_training_is_named(arguments, words, run, make_folder):
    folder = make_folder("photos", GOOD)
    code, error = run(train_original.main, "-d", str(folder), *arguments)
    assert code == 2
    assert "\n" not in error and all(word in error for word in words), error
    assert not Path("checkpoint").exists()


def test_training_on_an_expansion_that_is_not_there_says_how_to_make_it(run, make_folder):
    folder = make_folder("photos", GOOD)
    code, error = run(train_expand.main, "-d", str(folder), "--exp", "img2img_5x")
    assert code == 2 and "photos_expansion/img2img_5x" in error and "expand.py" in error
    code, error = run(train_expand.main, "-d", str(folder))
    assert code == 2 and "--exp" in error


def test_a_full_disk_ends_in_one_line_and_leaves_no_partial_file(run, make_folder, monkeypatch):
    folder = make_folder("photos", GOOD)
    original = ExpansionWriter._write

    def full(self, pixels, row):
        if row["variant"] == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), row["file_name"])
        original(self, pixels, row)

    monkeypatch.setattr(ExpansionWriter, "_write", full)
    arguments = expand_arguments(
        folder, "--method", "img2img", "--num_inference_steps", "2", "--num_images_per_prompt", "2"
    )
    code, error = run(expand.main, *arguments)
    assert code == 2 and "No space left" in error.splitlines()[-1]
    assert not list(Path("out").rglob("*.partial"))
    monkeypatch.setattr(ExpansionWriter, "_write", original)
    assert not run(expand.main, *arguments)[0]
    assert len(list(Path("out").rglob("*_expand_*.png"))) == 6


def test_the_command_line_shows_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "expand.py", "-d", "nowhere"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    )


def test_a_defect_keeps_its_traceback():
    def defect():
        raise ValueError("not the user's mistake")

    with pytest.raises(ValueError, match="not the user"):
        run_command(defect)
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from_scratch"], ["--resolution"]),
        (["--pretrained_model_name_or_path", "./nowhere"], ["./nowhere", "does not exist"]),
        ([], ["nothing to start from"]),
    ],
)
def test_a_fine_tune_that_cannot_start_writes_nothing(arguments, words, run, make_folder):
    folder = make_folder("photos", GOOD)
    code, error = run(finetune.main, "-d", str(folder), "--output_dir", "tuned", *arguments)
    assert code == 2
    assert "\n" not in error and all(word in error for word in words), error
    assert not Path("tuned").exists()
