"""Settings of the benchmark of sampling; imports no torch, so that `--help` is quick."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import expand
from expansion.common.config import import_object, option
from expansion.common.errors import require, unknown_name


def _on_plain_checkpoint(method: str) -> bool:
    """Whether a method needs neither embeddings that are trained before nor a U-Net for edits."""
    config = import_object(expand.SAMPLERS[method][0])
    trained = "embeddings" in {field.name for field in dataclasses.fields(config)}
    return not trained and not config.needs_image_unet


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Settings of the benchmark."""

    dataset: str = option("digits", "dataset name or folder that is expanded", flags=("-d",))
    data_dir: str = option("data", "where named datasets lie")
    methods: tuple[str, ...] = option(
        tuple(name for name in expand.SAMPLERS if _on_plain_checkpoint(name)),
        "what is measured; default: methods that run on a plain checkpoint",
    )
    pretrained_model_name_or_path: str | None = option(
        None, "Stable Diffusion checkpoint; default: the dataset's"
    )
    full_size: str | None = option(
        None,
        "Stable Diffusion 1.x or XL at its full size with random weights, instead of a checkpoint",
        choices=("sd1", "sdxl"),
    )
    batch_sizes: tuple[int, ...] = option((1, 10, 50), "images that are denoised together")
    num_images_per_prompt: int = option(10, "n: variants of each real image")
    num_inference_steps: int | None = option(
        None, "DDIM steps of the whole schedule; default: each method's own"
    )
    resolution: int | None = option(None, "side of the images, pixels; default: the checkpoint's")
    guide_arch: str | None = option(
        None, "backbone of the guide classifier, with random weights; default: the dataset's"
    )
    rounds: int = option(3, "runs of every line")
    device: str = option("auto", "cuda, cpu, ...; auto: a GPU if there is one")
    dtype: str = option(
        "auto",
        "number format of the networks; auto: float16 on a GPU, else float32",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    compile: bool = option(False, "torch.compile the U-Net's transformer blocks")
    rivals: bool = option(True, "also measure diffusers' pipelines")
    output: str | None = option(None, "JSON file for all figures")

    def __post_init__(self):
        for name in self.methods:
            if name not in expand.SAMPLERS:
                raise unknown_name("method", name, list(expand.SAMPLERS))
        numbers = {"batch_sizes": min(self.batch_sizes), "rounds": self.rounds}
        numbers["num_images_per_prompt"] = self.num_images_per_prompt
        for name, value in numbers.items():
            require(value > 0, f"{name} {value}: give positive numbers")
