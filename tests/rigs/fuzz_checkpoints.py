"""Hostile checkpoints: classifiers as torch pickles, and Stable Diffusion folders."""

from __future__ import annotations

import copy
import functools
import io
import json
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

import expand
from expansion.classifier.backbones import Classifier, classifier_state, load_classifier
from expansion.diffusion.conditioning import PromptEncoder
from expansion.diffusion.model_files import check_model_folder, model_fingerprint, model_resolution
from expansion.diffusion.stable_diffusion import ddim_scheduler, default_resolution, load_pipeline
from tests.conftest import TINY_MODEL
from tests.rigs.fuzz_inputs import damaged, hostile_json, odd_value
from tests.rigs.fuzz_rig import Attempt, Sandbox, payload
from tests.rigs.fuzz_texts import photos

EVIL = "import os\nos.mkdir({mark!r})\nclass Evil:\n    pass\n"


def classifier(draw: random.Random, sandbox: Sandbox) -> Attempt:
    """A file given as guide, or as `--weights` of a new classifier."""
    path = sandbox.place / "model_best.pth.tar"
    path.write_bytes(hostile_classifier(draw, sandbox))
    if draw.random() < 0.3:
        return lambda: (
            Classifier("resnet10_tiny", 3, 32, pretrained=True, weights=str(path)) and None
        )
    count = draw.choice((None, 2))
    return lambda: (
        load_classifier(path, num_classes=count).features(torch.zeros(1, 3, 32, 32)) is None
    )


def hostile_classifier(draw: random.Random, sandbox: Sandbox) -> bytes:
    action = draw.randrange(9)
    content: Any = copy.deepcopy(_good_classifier())
    if action == 0:
        return damaged(draw, _saved(content))
    if action == 1:
        content = draw.choice((payload(sandbox.mark), [payload(sandbox.mark)]))
        return draw.choice((pickle.dumps, _saved, _saved_old))(content)
    if action == 2:
        content["state_dict"]["head.bias"] = payload(sandbox.mark)
        return draw.choice((_saved, _saved_old))(content)
    if action == 3:
        return _repacked(draw, _saved(content), sandbox)
    if action == 4:
        content[draw.choice(sorted(content))] = odd_value(draw)
    elif action in (5, 6):
        state = content["state_dict"]
        key = draw.choice([*sorted(state), "head.bias", "head.weight"])
        state[key] = draw.choice((lambda: odd_value(draw), lambda: _odd_tensor(draw)))()
    elif action == 7:
        state = content["state_dict"]
        for key in draw.sample(sorted(state), 5):
            del state[key]
        if draw.random() < 0.5:
            content = state
    else:
        content = odd_value(draw)
    return _saved(content)


@functools.cache
def _good_classifier() -> dict:
    return classifier_state(Classifier("resnet10_tiny", 2, 32))


def _odd_tensor(draw: random.Random) -> torch.Tensor:
    return draw.choice(
        (
            lambda: torch.zeros(()),
            lambda: torch.zeros(0),
            lambda: torch.zeros(1).expand(10**10),
            lambda: torch.zeros(1).expand(10**6, 128),
            lambda: torch.zeros(2, dtype=torch.complex64),
            lambda: torch.zeros(2, dtype=torch.bool),
            lambda: torch.zeros(2, device="meta"),
            lambda: torch.eye(2).to_sparse(),
            lambda: torch.full((2,), float("nan")),
            lambda: torch.zeros(3, 3, 3),
        )
    )()


def _saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _saved_old(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _repacked(draw: random.Random, content: bytes, sandbox: Sandbox) -> bytes:
    """The zip file of a checkpoint with another pickle in it, or names that lead out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            body = old.read(name)
            if name.endswith("data.pkl") and draw.random() < 0.7:
                odd = (
                    pickle.dumps(payload(sandbox.mark), 2),
                    b"(" * 100_000,
                    b".",
                    damaged(draw, body),
                )
                body = draw.choice(odd)
            new.writestr(f"../{name}" if draw.random() < 0.05 else name, body)
    return buffer.getvalue()


def diffusion_plan(draw: random.Random, sandbox: Sandbox) -> Attempt:
    """A hostile checkpoint folder, as the plan sees it."""
    folder = hostile_folder(draw, sandbox)
    photos(sandbox.place / "photos")
    options = ["-d", "photos", "--method", "img2img", "--dry_run", "--output_dir", str(sandbox.out)]

    def attempt() -> None:
        expand.main([*options, "--pretrained_model_name_or_path", str(folder)])
        model_fingerprint(str(folder))

    return attempt


def diffusion_load(draw: random.Random, sandbox: Sandbox) -> Attempt:
    """A hostile checkpoint folder, loaded and put to its first use."""
    folder = hostile_folder(draw, sandbox)

    def attempt() -> None:
        check_model_folder(str(folder))
        model_resolution(str(folder))
        pipeline = load_pipeline(str(folder))
        default_resolution(pipeline)
        ddim_scheduler(pipeline).set_timesteps(4)
        PromptEncoder(pipeline)(["a photo of a cat"], None)

    return attempt


def hostile_folder(draw: random.Random, sandbox: Sandbox) -> Path:
    """A copy of the tiny checkpoint in which something is wrong."""
    folder = sandbox.place / "model"
    shutil.copytree(TINY_MODEL, folder, ignore=shutil.ignore_patterns("*.md", "*.png"))
    draw.choice((_odd_json, _odd_json, _odd_weights, _odd_index, _odd_entry))(draw, folder, sandbox)
    return folder


def _odd_json(draw: random.Random, folder: Path, sandbox: Sandbox) -> None:
    del sandbox
    path = draw.choice(sorted(p for p in folder.rglob("*.json") if p.is_file()))
    path.write_bytes(hostile_json(draw, json.loads(path.read_text())))


def _odd_weights(draw: random.Random, folder: Path, sandbox: Sandbox) -> None:
    path = draw.choice(sorted(folder.rglob("*.safetensors")))
    content = path.read_bytes()
    header = (
        b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
        (10**8).to_bytes(8, "little") + b"{}",
        _safetensors({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}),
        _safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 2**62]}}),
        _safetensors({}),
        _safetensors([]),
        pickle.dumps(payload(sandbox.mark)),
        _without_a_tensor(draw, content),
    )
    path.write_bytes(draw.choice((*header, damaged(draw, content), content[:-100])))
    if draw.random() < 0.2:
        path.rename(path.with_name("pytorch_model.bin"))
        torch.save([payload(sandbox.mark)], path.with_name("diffusion_pytorch_model.bin"))


def _safetensors(header: Any) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(16)


def _without_a_tensor(draw: random.Random, content: bytes) -> bytes:
    """The same file with a tensor renamed, or of another shape."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    key = draw.choice(sorted(set(header) - {"__metadata__"}))
    if draw.random() < 0.5:
        header["renamed"] = header.pop(key)
    else:
        header[key]["shape"] = [1, *header[key]["shape"]]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _odd_index(draw: random.Random, folder: Path, sandbox: Sandbox) -> None:
    """model_index.json that names other classes, and code beside them."""
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    part = draw.choice(("unet", "vae", "text_encoder", "tokenizer", "scheduler", "safety_checker"))
    names = (
        *(
            ["evil", "Evil"],
            ["os", "system"],
            ["subprocess", "Popen"],
            ["builtins", "eval"],
            ["evil"],
        ),
        *(["diffusers", "FluxPipeline"], ["transformers", "AutoModel"], ["diffusers", "Evil"], "x"),
        *(
            ["transformers", "pipeline"],
            ["diffusers", "UNet1DModel"],
            [None, None],
            [],
            1,
            None,
            {},
        ),
    )
    if draw.random() < 0.3:
        index["_class_name"] = draw.choice((["evil", "Evil"], "Evil", "FluxPipeline", 1, None))
    else:
        index[part] = draw.choice(names)
    path.write_text(json.dumps(index))
    code = EVIL.format(mark=str(sandbox.mark))
    for place in (folder, folder / part) if draw.random() < 0.4 else ():
        place.mkdir(exist_ok=True)
        for module in ("evil", "diffusers", "transformers", "pipeline", "modeling_evil"):
            (place / f"{module}.py").write_text(code)
    config = folder / draw.choice(("unet", "text_encoder", "tokenizer")) / "config.json"
    if config.is_file() and draw.random() < 0.5:
        content = json.loads(config.read_text())
        content["auto_map"] = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}
        content["quantization_config"] = draw.choice((None, {"quant_method": "bitsandbytes"}, 1))
        config.write_text(json.dumps(content))


def _odd_entry(draw: random.Random, folder: Path, sandbox: Sandbox) -> None:
    """Something that is no file, or a link, where a file should be."""
    path = draw.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    if draw.random() < 0.5:
        path = path.with_name(draw.choice(("x.json", "y.safetensors", "vocab.json", "merges.txt")))
    path.unlink(missing_ok=True)
    target = draw.choice((path.name, "/dev/zero", sandbox.outside, sandbox.outside / "secret.txt"))
    draw.choice((path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to(target)))()
