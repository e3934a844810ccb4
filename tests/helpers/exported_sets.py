"""Small expanded sets to export."""

from __future__ import annotations

import json
from pathlib import Path

import expand
from tests.conftest import TINY_MODEL

NAMES = ("zebra", "\u00c4pfel/Birnen", ".hidden", "steam train", "__odd__", "Ant", "ant", "test")


QUICK = ("--num_inference_steps", "2", "--device", "cpu", "--num_images_per_prompt", "2")


def make_set(data_dir: Path, output: Path, *options: object) -> Path:
    line = f"-d fgvc_aircraft --data_dir {data_dir} --method img2img --output_dir {output}"
    line += f" --pretrained_model_name_or_path {TINY_MODEL}"
    assert expand.main([*line.split(), *QUICK, *map(str, options)]) == 0
    return output


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
