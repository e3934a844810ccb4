"""Hostile manifests, names and links, through expand.py and through what reads its output.

The sampler `copy` returns the real images, so that the whole command runs in milliseconds.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import expand
import train_expand
from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.diffusion.samples import Batch, Samples
from expansion.store.expanded_set import read_expansion
from tests.conftest import TINY_MODEL
from tests.rigs.fuzz_inputs import damaged, file_name, hostile_json, odd_name
from tests.rigs.fuzz_rig import Attempt, Sandbox

expand.SAMPLERS["copy"] = (
    "expansion.diffusion.sampler_config:SamplerConfig",
    "tests.rigs.fuzz_manifests:CopySampler",
)


class CopySampler:
    """A sampler whose variants are the real image."""

    config = SamplerConfig()

    def __init__(self):
        self.pipeline = _pipeline()

    @classmethod
    def build(
        cls, config: Any, class_names: Sequence, prompt_names: Sequence, load: Callable
    ) -> CopySampler:
        del config, class_names, prompt_names, load
        return cls()

    def prepare(self, records: Sequence) -> None:
        del records

    def sample(self, batch: Batch, generators: Sequence) -> Samples:
        del generators
        return Samples(images=batch.images[batch.source_index], details=[])


@functools.cache
def _pipeline():
    from expansion.diffusion.stable_diffusion import load_pipeline

    return load_pipeline(str(TINY_MODEL))


def write_image(path: Path | str, value: int) -> None:
    Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(path, "PNG")


def list_dataset(root: Path, names: Sequence[str]) -> None:
    """Two training images and a test image of each class, labelled by metadata.jsonl."""
    root.mkdir()
    rows = []
    for label, name in enumerate(names):
        for i, split in enumerate(("train", "train", "test")):
            write_image(root / f"{label}-{i}.png", 10 * label)
            rows.append({"file_name": f"{label}-{i}.png", "label": name, "split": split})
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def folder_dataset(draw: random.Random, root: Path) -> None:
    """Class folders and files of odd names, some of them links."""
    names = {file_name(draw) for _ in range(draw.randrange(1, 4))} | {"ant"}
    for label, name in enumerate(sorted(names)):
        for split in ("train", "test"):
            folder = root / split / name
            folder.mkdir(parents=True)
            stems = {file_name(draw)[:50] for _ in range(2)}
            for stem in [*stems, "a", "A"]:
                suffix = draw.choice((".png", ".jpg"))
                if len(os.fsencode(stem + suffix)) < 256:
                    write_image(os.path.join(folder, stem + suffix), 10 * label)
            target = draw.choice(("a.png", "nowhere.png", "..", folder))
            (folder / "link.png").symlink_to(target)


def expand_arguments(root: Path, out: Path, *more: str) -> list[str]:
    model = ["--pretrained_model_name_or_path", str(TINY_MODEL), "--resolution", "8"]
    run = ["--method", "copy", "--num_images_per_prompt", "2", "--device", "cpu"]
    return ["-d", str(root), *run, *model, "--output_dir", str(out), *more]


def names(draw: random.Random, sandbox: Sandbox) -> Attempt:
    """Odd names of classes and files: expanded, then read back under the same classes."""
    root = sandbox.place / "photos"
    if draw.random() < 0.5:
        list_dataset(root, sorted({odd_name(draw) or "x" for _ in range(4)} | {"ant"}))
    else:
        folder_dataset(draw, root)
    options = ["--on_error", "skip"]

    def attempt() -> None:
        expand.main(expand_arguments(root, sandbox.out, *options))
        check_read_back(root, sandbox.out)

    return attempt


def check_read_back(root: Path, out: Path) -> None:
    """Assert that every variant has a place of its own, in the folder, and its image's class."""
    dataset = load_dataset(str(root))
    sources = {record.file_name: record for record in dataset.records("train")}
    found = read_expansion(out, sources, "use")
    places = {os.path.realpath(record.path).casefold() for record in found}
    assert len(places) == len(found) == 2 * len({record.source for record in found}) > 0
    for record in found:
        assert sources[record.source].class_name == record.class_name
        assert Path(os.path.realpath(record.path)).is_relative_to(os.path.realpath(out))
    one_class = {record.path.parent: record.class_name for record in found}
    assert all(one_class[record.path.parent] == record.class_name for record in found)


def manifest(draw: random.Random, sandbox: Sandbox) -> Attempt:
    """A begun folder whose manifest became hostile: resumed, or trained on."""
    root, out = sandbox.place / "photos", sandbox.out
    list_dataset(root, ("ant", "bee", "Bee"))
    form = draw.choice(([], TARS))
    _silently(lambda: expand.main(expand_arguments(root, out, *form)))
    path = draw.choice(sorted(out.glob("manifest.*.jsonl")))
    lines = path.read_bytes().splitlines(keepends=True)
    good = json.loads(lines[0] if b"file_name" in lines[0] else lines[-2])
    for _ in range(draw.randrange(1, 4)):
        place = draw.randrange(len(lines))
        lines.insert(place, _hostile_row(draw, good, sandbox) + b"\n")
    if draw.random() < 0.5:
        (out / "metadata.jsonl").unlink()
    if draw.random() < 0.3:
        place = draw.randrange(len(lines))
        lines[place] = damaged(draw, lines[place])
    path.write_bytes(b"".join(lines))
    if draw.random() < 0.3:
        draw.choice(ODD_FILES)(out, sandbox)
    for image in sorted([*out.glob("*/*.png"), *out.glob("*.tar")])[: draw.randrange(3)]:
        image.unlink()
    return _resume_or_train(draw, root, out, form)


def _hostile_row(draw: random.Random, row: dict, sandbox: Sandbox) -> bytes:
    place = (
        *(
            str(sandbox.outside / "images/cat.png"),
            "../../../outside/images/cat.png",
            "ant/../../x",
        ),
        *(
            "ant\\..\\x.png",
            "./ant/0-0_expand_0.png",
            "ANT/0-0_expand_0.png",
            "ant//0-0_expand_0.png",
        ),
        *("", ".", "ant", "x" * 300, "x/" * 3000, "new.png", "metadata.jsonl", "\ud800", "a\x00b"),
    )
    action = draw.random()
    if action < 0.4:
        return json.dumps({**row, "file_name": draw.choice(place)}).encode()
    if action < 0.5:
        return json.dumps({**row, draw.choice(sorted(row)): odd_name(draw)}).encode()
    if action < 0.6:
        odd = (-1, 0, 2**63, 2**70, 10**15, 1.5, None, "x", "../../../outside", "/dev/zero", [])
        return json.dumps({**row, draw.choice(IN_TARS): draw.choice(odd)}).encode()
    if action < 0.7:
        event = {"event": "start", "time": 1.0, "order": "x", "unit": 2, "images": 1, "seconds": 1}
        event |= {"event": draw.choice(("start", "unit", "failed", "end", "other"))}
        return hostile_json(draw, event).replace(b"\n", b" ").lstrip(b"\xef\xbb\xbf")
    if action < 0.73:
        return json.dumps({**row, "prompt": "x" * 20_000_000}).encode()
    return hostile_json(draw, row).replace(b"\n", b" ")


def links(draw: random.Random, sandbox: Sandbox) -> Attempt:
    """An output folder with links in it, to places that nothing may write to."""
    root, out = sandbox.place / "photos", sandbox.out
    list_dataset(root, ("ant", "bee"))
    form = draw.choice(([], TARS))
    if draw.random() < 0.5:
        _silently(lambda: expand.main(expand_arguments(root, out, *form)))
    out.mkdir(exist_ok=True)
    targets = (
        sandbox.outside,
        sandbox.outside / "new",
        sandbox.outside / "secret.txt",
        "..",
        "ant",
    )
    for name in draw.sample(sorted(LINKED), draw.randrange(1, 4)):
        path = out / name
        if path.parent.is_dir() and not path.parent.is_symlink():
            if path.exists():
                _remove(path)
            path.symlink_to(draw.choice(targets))
    return _resume_or_train(draw, root, out, form)


TARS = ["--output_format", "webdataset", "--images_per_tar", "5"]
IN_TARS = ("tar", "offset", "size", "staged", "label", "variant", "details")
LINKED = (
    *("ant", "bee", "ant/0-0_expand_0.png", "metadata.jsonl", "expansion.yaml", "classes.json"),
    *("contact_sheet.png", "manifest.0-of-1.zz.jsonl", ".claims", ".order", ".staged"),
    *("out-00000.tar", "manifest.copy_2x-00000.jsonl", "copy_2x-00000.tar"),
)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _fifo(out: Path, sandbox: Sandbox) -> None:
    del sandbox
    os.mkfifo(out / "manifest.0-of-1.fifo.jsonl")


def _folder(out: Path, sandbox: Sandbox) -> None:
    del sandbox
    (out / "manifest.0-of-1.folder.jsonl").mkdir()


def _metadata_folder(out: Path, sandbox: Sandbox) -> None:
    del sandbox
    _remove(out / "metadata.jsonl") if (out / "metadata.jsonl").exists() else None
    (out / "metadata.jsonl").mkdir()


def _hostile_claim(out: Path, sandbox: Sandbox) -> None:
    from tests.rigs.fuzz_inputs import hostile_yaml

    draw = random.Random(str(sandbox.place))
    values = {"method": "copy", "settings": {}, "seed": 1}
    (out / "expansion.yaml").write_bytes(hostile_yaml(draw, values, str(sandbox.mark)))


ODD_FILES = (_fifo, _folder, _metadata_folder, _hostile_claim)


def _resume_or_train(draw: random.Random, root: Path, out: Path, form: list[str]) -> Attempt:
    what = draw.random()
    if what < 0.5:
        shard = draw.choice(([], ["--split", "1", "--total_split", "2"]))
        return lambda: expand.main(expand_arguments(root, out, *form, *shard))
    if what < 0.65:
        return lambda: expand.main(expand_arguments(root, out, "--status"))
    recipe = ["-a", "resnet10_tiny", "--image_size", "32", "--resize_size", "32", "--dry_run"]
    options = ["--on_error", draw.choice(("fail", "skip")), "--seeds", "1"]
    return lambda: train_expand.main(
        ["-d", str(root), "--expanded_dir", str(out), *recipe, *options]
    )


def _silently(attempt: Attempt) -> None:
    """Run our own preparation; it cannot fail."""
    import contextlib
    import io

    with contextlib.redirect_stderr(io.StringIO()):
        try:
            attempt()
        except InputError as error:
            raise AssertionError from error
