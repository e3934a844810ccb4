"""A finished expanded set as files, without any diffusion."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from expansion.images.records import ImageRecord


def write_set(folder: Path, variants: Iterable[tuple[ImageRecord, int, str, np.ndarray]]) -> Path:
    """Images and a manifest in `folder`, which is returned.

    Args:
        folder: Made if need be.
        variants: The real image, the number, the file's name and its pixels, (H, W, 3) uint8.
    """
    rows = []
    for source, number, name, pixels in variants:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
        row = {"file_name": name, "label": source.label, "class": source.class_name}
        row |= {"source": source.file_name, "variant": number, "seed": number, "prompt": "p"}
        rows.append(json.dumps({**row, "method": "m", "config": "0", "model": "m"}) + "\n")
    (folder / "manifest.0-of-1.1.jsonl").write_text("".join(rows))
    return folder
