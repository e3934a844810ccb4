"""Class names that are no good file names, from the real images to the trained classifier."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import expand
import train_expand
from expansion.store.manifest import read_manifest
from expansion.training.objectives import Supervised
from tests.conftest import TINY_MODEL

NAMES = (
    *("2012 Ram C/V Cargo Van Minivan", "F/A-18", "polka-dotted", "Sea", "sea", ".."),
    *("\u732b", "\U0001f408 cat", "CON", "dot."),
)


def shade(label: int) -> int:
    return 10 + 24 * label


@pytest.mark.slow
def test_hurtful_class_names_are_expanded_and_learnt_under_their_labels(tmp_path, monkeypatch):
    rows = []
    for label, name in enumerate(NAMES):
        for split, count in (("train", 2), ("test", 1)):
            for i in range(count):
                file_name = f"{split}-{label}-{i}.png"
                Image.new("RGB", (32, 32), (shade(label),) * 3).save(tmp_path / file_name)
                rows.append({"file_name": file_name, "label": name, "split": split})
    lines = [json.dumps(row) + "\n" for row in rows]
    (tmp_path / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    output, place = tmp_path.parent / "out", f"-d {tmp_path} --data_dir {tmp_path.parent / 'data'}"
    command = f"{place} --method img2img --num_images_per_prompt 1 --num_inference_steps 10"
    command += f" --strength 0.1 --output_dir {output}"
    model = ["--pretrained_model_name_or_path", str(TINY_MODEL)]
    assert not expand.main([*command.split(), *model])

    made = read_manifest(output)
    assert sorted(row["class"] for row in made) == sorted(2 * NAMES)
    folders = {row["class"]: row["file_name"].split("/")[0] for row in made}
    assert len({folder.casefold() for folder in folders.values()}) == len(NAMES)
    assert all((output / row["file_name"]).resolve().is_relative_to(output) for row in made)

    seen = []
    prepare = Supervised.prepare.__func__

    def note(cls, images, config, run):
        seen.extend([*images.real, *images.generated])
        return prepare(cls, images, config, run)

    monkeypatch.setattr(Supervised, "prepare", classmethod(note))
    training = f"{place} --expanded_dir {output} --checkpoint_dir {tmp_path.parent / 'runs'}"
    training += " -a resnet10_tiny --image_size 32 --resize_size 36 --workers 0 --batch_size 8"
    train_expand.main([*training.split(), *"--budget steps --max_train_steps 2 --seeds 1".split()])
    assert len(seen) == 4 * len(NAMES)
    order = sorted(NAMES)  # labels are places in the sorted class list
    for record in seen:
        assert record.class_name == order[record.label]
        label = int((record.source or record.file_name).split("-")[1])
        assert record.class_name == NAMES[label]
        if record.source is None:
            assert abs(np.asarray(record.load()).mean() - shade(label)) < 1
    (checkpoint,) = (tmp_path.parent / "runs").rglob("checkpoint.pth.tar")
    assert torch.load(checkpoint, weights_only=True)["class_names"] == order
