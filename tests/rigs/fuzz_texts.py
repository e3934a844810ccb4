"""Hostile YAML, prompts files and results, through the commands that read them."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

import expand
import parse_logs
import train_expand
import train_original
from dreamda.prompts import __main__ as prompt_writer
from dreamda.prompts.answers import parse_answer
from expansion.common import config as configs
from expansion.data import __main__ as check_command
from expansion.data.layouts import configs as dataset_configs
from expansion.data.prompts import PromptScope, read_prompts
from tests.conftest import TINY_MODEL
from tests.rigs.fuzz_inputs import file_name, hostile_json, hostile_yaml, odd_name
from tests.rigs.fuzz_rig import Attempt, Sandbox

EXPAND = {
    "method": "img2img", "num_images_per_prompt": 2, "strength": 0.5, "seed": 1, "batch_size": 4,
    "num_inference_steps": 4, "guidance_scale": 7.5, "prompt_template": "a {}", "dataset": "photos",
    "resolution": 8, "device": "cpu", "dtype": "float32", "shots": 1, "output_dir": "out",
    "subset_file": "out/subset.json", "data_dir": ".", "exp": "a", "total_split": 2, "split": 0,
    "prompts_file": None, "test_fraction": None, "on_error": "fail", "rho": 10, "noise_scale": 3,
    "pretrained_model_name_or_path": str(TINY_MODEL), "encoder_weight_path": "guide.tar",
}  # fmt: skip
TRAIN = {
    "dataset": "photos", "arch": "resnet10_tiny", "lr": 0.1, "batch_size": 4, "budget": "steps",
    "max_train_steps": 3, "augment": "default", "seeds": [1, 2], "labels": "seed", "exp": "a",
    "image_size": 32, "resize_size": 32, "pretrained": False, "weights": None, "tag": "t",
    "unlabeled_dir": None, "val_fraction": 0.0, "workers": 0, "checkpoint_dir": "out/runs",
}  # fmt: skip
DATASET = {
    "reader": "folder", "folder": "photos", "prompt_template": "a {}", "lower_case": True,
    "class_names": {"ant": "an ant"}, "crop_bottom": 0, "expand": {"strength": 0.2},
    "methods": {"img2img": {"seed": 3}}, "classifier": {"lr": 0.1}, "train_folder": "train",
    "drop_classes": ["x"], "class_order": "name", "test_fraction": None,
}  # fmt: skip
RESULTS = {
    "best_accuracy": 81.5, "last_accuracy": 80, "dataset": "digits", "arch": "resnet50", "seed": 1,
    "arm": "Original", "lr": 0.1, "steps": 300, "num_real": 20, "num_generated": 200,
    "pretrained": False, "acceptance_rate": 50.0, "real_images": "abc", "selected_accuracy": 80.0,
}  # fmt: skip
CLASSES = ("ant", "bee")


def photos(root: Path) -> None:
    """A small data set of two classes."""
    for split in ("train", "test"):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for i in range(2):
                pixels = np.full((8, 8, 3), 40 * i, dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")


def yaml_of_expand(draw: random.Random, sandbox: Sandbox) -> Attempt:
    photos(sandbox.place / "photos")
    some = dict(draw.sample(sorted(EXPAND.items()), draw.randrange(1, 8)))
    path = sandbox.place / "settings.yaml"
    path.write_bytes(hostile_yaml(draw, some, str(sandbox.mark)))
    method = draw.choice(([], ["--method", "img2img"], ["--method", "dreamda"]))
    where = ["-d", "photos", "--pretrained_model_name_or_path", str(TINY_MODEL)]
    return lambda: expand.main([*where, *method, "--config", str(path), "--dry_run"])


def yaml_of_training(draw: random.Random, sandbox: Sandbox) -> Attempt:
    photos(sandbox.place / "photos")
    some = dict(draw.sample(sorted(TRAIN.items()), draw.randrange(1, 8)))
    path = sandbox.place / "settings.yaml"
    path.write_bytes(hostile_yaml(draw, some, str(sandbox.mark)))
    main = draw.choice((train_original.main, train_expand.main))
    return lambda: main(["-d", "photos", "--config", str(path), "--dry_run"])


def yaml_of_dataset(draw: random.Random, sandbox: Sandbox) -> Attempt:
    """A file of `configs/datasets/`, with the folder that it describes."""
    photos(sandbox.place / "photos")
    folder = sandbox.place / "configs" / "datasets"
    folder.mkdir(parents=True)
    (folder / "set.yaml").write_bytes(hostile_yaml(draw, DATASET, str(sandbox.mark)))

    def attempt() -> int:
        place, dataset_configs.CONFIG_DIR = dataset_configs.CONFIG_DIR, folder.parent
        try:
            return check_command.main(["check", "set", "--data_dir", "."])
        finally:
            dataset_configs.CONFIG_DIR = place

    return attempt


def prompts_file(draw: random.Random, sandbox: Sandbox) -> Attempt:
    """Through the reader, or through the plan of expand.py."""
    names = {f"train/{name}/{i}.png": label for label, name in enumerate(CLASSES) for i in (0, 1)}
    scope = PromptScope(CLASSES, ("an ant", "bee"), names, list(names))
    path = sandbox.place / "prompts.json"
    if draw.random() < 0.5:
        content = {name: [f"a {name}", f"two {name}s"] for name in CLASSES}
        path.write_bytes(hostile_json(draw, content))
    else:
        lines = [{"file_name": name, "text": f"a {CLASSES[k]}"} for name, k in names.items()]
        odd = draw.randrange(len(lines))
        made = [hostile_json(draw, row) if i == odd else _line(row) for i, row in enumerate(lines)]
        path.write_bytes(b"\n".join(made))
    if draw.random() < 0.05:
        path.unlink()
        draw.choice((path.mkdir, lambda: path.symlink_to(path)))()
    if draw.random() < 0.5:
        return lambda: read_prompts(path, scope, "variant", 1).fingerprint()
    photos(sandbox.place / "photos")
    options = ["-d", "photos", "--method", "img2img", "--prompts_file", str(path), "--dry_run"]
    model = ["--pretrained_model_name_or_path", str(TINY_MODEL), "--output_dir", str(sandbox.out)]
    return lambda: expand.main([*options, *model])


def answers(draw: random.Random, sandbox: Sandbox) -> Attempt:
    """What a language model may say, and hostile settings of the prompt writer."""
    if draw.random() < 0.5:
        parts = ("1. ", "- ", '"', "\u201c", "**", "(12 words)", "\n", " ", "(", "</think>", "12)")
        text = "".join(
            draw.choice((*parts, "a photo of an ant", "x" * 50)) * draw.choice((1, 1, 1, 2000))
            for _ in range(draw.randrange(40))
        )
        return lambda: parse_answer(text, 3) and None
    photos(sandbox.place / "photos")
    path = sandbox.place / "settings.yaml"
    values = {"num_prompts": 3, "pattern": "{subject}, {light}", "scenes": ["a"], "lights": ["b"]}
    path.write_bytes(hostile_yaml(draw, values, str(sandbox.mark)))
    place = ["-d", "photos", "--output", str(sandbox.out / "prompts.json")]
    return lambda: prompt_writer.main([*place, "--config", str(path)])


def results(draw: random.Random, sandbox: Sandbox) -> Attempt:
    """Run folders with hostile results.yaml, through parse_logs.py."""
    top = sandbox.place / "runs"
    for arm in ("resnet50_unpretrained_lr0.1", file_name(draw), "resnet50_unpretrained_a_lr9e999"):
        for seed in ("seed1", "seed2"):
            run = top / "digits" / arm / seed
            run.mkdir(parents=True, exist_ok=True)
            content = hostile_yaml(draw, RESULTS, str(sandbox.mark))
            good = "".join(f"{key}: {value}\n" for key, value in RESULTS.items()).encode()
            (run / "results.yaml").write_bytes(content if draw.random() < 0.6 else good)
    _plant_odd_run(draw, top, sandbox)
    form = draw.choice((["--table"], ["--table", "--format", "csv"], ["--multi"]))
    form = draw.choice((form, ["--table", "--format", "latex"]))
    below = top if "--table" in form else next((top / "digits").iterdir())
    return lambda: parse_logs.main([str(below), *form])


def _plant_odd_run(draw: random.Random, top: Path, sandbox: Sandbox) -> None:
    action, run = draw.randrange(6), top / "digits" / "resnet50_unpretrained_lr0.1" / "seed1"
    if action == 0:
        (top / "a").symlink_to(top)
        (top / "b").symlink_to(top)
    elif action == 1:
        shutil.rmtree(run)
        run.symlink_to(sandbox.outside)
    elif action == 2:
        (run / "results.yaml").unlink()
        os.mkfifo(run / "results.yaml")
    elif action == 3:
        (run / "results.yaml").unlink()
        (run / "results.yaml").mkdir()


def load_settings(draw: random.Random, sandbox: Sandbox) -> Attempt:
    """`load_yaml` and `compose` alone, with every setting at once."""
    path = sandbox.place / "settings.yaml"
    path.write_bytes(hostile_yaml(draw, EXPAND, str(sandbox.mark)))
    schema = [expand.ExpandConfig, configs.import_object(expand.SAMPLERS["img2img"][0])]
    return lambda: configs.compose(schema, [configs.load_yaml(path)])


def template(draw: random.Random, sandbox: Sandbox) -> Attempt:
    """Odd text for options that become text, names and paths."""
    photos(sandbox.place / "photos")
    names = ("--prompt_template", "--exp", "--subset_file", "--negative_prompt", "--data_dir", "-d")
    option, text = draw.choice(names), odd_name(draw).replace("\x00", "").replace("-", "_")
    text = f"{text}{{}}" if option == "--prompt_template" else text
    options = ["-d", "photos", "--method", "img2img", "--shots", "1", "--dry_run"]
    model = ["--pretrained_model_name_or_path", str(TINY_MODEL)]
    return lambda: expand.main(
        [*options, *model, f"{option}={text}" if option[1] == "-" else f"-d{text}"]
    )


def _line(row: dict) -> bytes:
    return str(row).replace("'", '"').encode()
