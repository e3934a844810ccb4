"""Files of prompts, and expansions with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def digit_prompts(tmp_path) -> Path:
    """Three prompts for each digit: "zero 0", "zero 1", "zero 2", ..."""
    content = {str(i): [f"{name} {k}" for k in range(3)] for i, name in enumerate(DIGITS)}
    return write(tmp_path / "prompts.json", content)


@pytest.fixture
def arguments(digits_dir, digit_prompts):
    """Function from an output folder and options to a command line: 20 images of 10 real ones."""

    def line(output: Path, *options: object) -> list[str]:
        fixed = f"-d digits --data_dir {digits_dir} --method img2img --shots 1 --device cpu"
        fixed += " --num_images_per_prompt 2 --num_inference_steps 2 --batch_size 4"
        fixed += f" --prompts_file {digit_prompts} --output_dir {output}"
        return [*fixed.split(), *map(str, options)]

    return line
