"""What a fine-tune leaves beside the weights: log, loss curve, sample grids, README."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dreamda.finetune.config import FinetuneConfig
from expansion.common.files import write_atomic
from expansion.data.prompts import class_prompt
from expansion.pictures.figures import contact_sheet, line_charts

if TYPE_CHECKING:
    from expansion.diffusion.families import Pipeline

SAMPLES_PER_CLASS = 6
MAX_CLASSES = 20  # rows of a sample grid
SAMPLING_STEPS = 30
LOSS_WINDOW = 25  # steps


class TrainingLog:
    """A file with a line per step: `step`, `loss`, `learning_rate`, `seconds` since the last line.

    Args:
        path: JSON lines file; a resumed run goes on in it.
        first: Number of steps that are done. Later lines, which a killed run left, are dropped.
    """

    def __init__(self, path: Path, first: int):
        self.path = path
        self.rows = [row for row in read_log(path) if row["step"] <= first]
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self.written = time.monotonic()

    def add(self, step: int, loss: float, learning_rate: float) -> None:
        """Append the line of step `step` (from 1), and write it to the file at once."""
        now = time.monotonic()
        seconds = round(now - self.written, 4)
        row = {"step": step, "loss": loss, "learning_rate": learning_rate, "seconds": seconds}
        self.rows.append(row)
        with self.path.open("a") as log:
            log.write(json.dumps(row) + "\n")
        self.written = now

    @property
    def seconds(self) -> float:
        """Seconds of all steps, validation included, without work that an interruption lost."""
        return sum(row["seconds"] for row in self.rows)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of a log, up to a torn line if a killed run left one; none if there is no file."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def loss_chart(rows: Sequence[dict[str, Any]]) -> Image.Image:
    """A chart with the loss of every step and its mean over each `LOSS_WINDOW` steps."""
    points = [(row["step"], row["loss"]) for row in rows]
    groups = [points[i : i + LOSS_WINDOW] for i in range(0, len(points), LOSS_WINDOW)]
    means = [
        tuple(sum(column) / len(group) for column in zip(*group, strict=True)) for group in groups
    ]
    curves = {"each step": points, f"mean of {LOSS_WINDOW}": means}
    return line_charts({"training loss": curves}, "step")


def sample_grid(
    pipeline: Pipeline,
    prompt_names: Sequence[str],
    config: FinetuneConfig,
    resolution: int,
) -> Image.Image:
    """A picture with a row of `SAMPLES_PER_CLASS` generated images per class.

    All grids of a run begin with equal noise, so that they can be compared.

    Args:
        pipeline: Its networks must be in eval mode; it is left as it is.
        prompt_names: Class names in captions, by label.
        config: Captions, guidance scale and seed.
        resolution: Side of the images, pixels.
    """
    rows = [
        (name, _samples(pipeline, class_prompt(config.captions[0], name), config, resolution))
        for name in prompt_names[:MAX_CLASSES]
    ]
    return contact_sheet(rows)


def _samples(
    pipeline: Pipeline, prompt: str, config: FinetuneConfig, resolution: int
) -> list[Image.Image]:
    import torch

    from expansion.diffusion.stable_diffusion import ddim_scheduler, with_scheduler

    sampler = with_scheduler(pipeline, ddim_scheduler(pipeline))
    return sampler(
        prompt,
        height=resolution,
        width=resolution,
        num_images_per_prompt=SAMPLES_PER_CLASS,
        num_inference_steps=SAMPLING_STEPS,
        guidance_scale=config.sample_guidance_scale,
        generator=torch.Generator("cpu").manual_seed(config.seed),
    ).images


def readme(config: FinetuneConfig, log: TrainingLog, trained_on: str, command: str) -> str:
    """Markdown text that says what the checkpoint is, what it was trained on and how.

    Args:
        config: Settings of the training.
        log: Of the finished training.
        trained_on: The images, in words.
        command: The command line that repeats the training.
    """
    title = Path(config.output_dir or ".").resolve().name
    start = "from scratch"
    if not config.from_scratch:
        start = f"from {config.pretrained_model_name_or_path}"
    summary = (
        f"A Stable Diffusion checkpoint in diffusers layout, trained {start} on {trained_on}: "
        f"{config.max_train_steps} steps, batch {config.train_batch_size}, seed {config.seed}, "
        f"{log.seconds / 60:.1f} minutes. All settings are in `training.yaml`, the loss of every "
        f"step is in `{log.path.name}`."
    )
    paragraphs = [
        f"# {title}",
        summary,
        f"    {command}",
        "![samples](samples.png)",
        f"{SAMPLES_PER_CLASS} samples per class, guidance scale {config.sample_guidance_scale:g}.",
        "![loss](loss.png)",
    ]
    # Paragraphs that only some trainings need, at their places among the others.
    if config.lora_rank:
        paragraphs.insert(
            2,
            f"Adapters of rank {config.lora_rank} were trained and added to the U-Net. "
            "`pytorch_lora_weights.safetensors` holds them alone: `pipeline.load_lora_weights`.",
        )
    if not config.from_scratch:
        paragraphs[-1:-1] = [
            "Before training, from the same noise:",
            "![samples before training](samples_before.png)",
        ]
    return "\n\n".join(paragraphs) + "\n"
