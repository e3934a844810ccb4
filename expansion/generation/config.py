"""Settings of expand.py that every method shares."""

from __future__ import annotations

from dataclasses import dataclass

from expansion.common.config import option, refuse_idle
from expansion.common.errors import require
from expansion.data.datasets import DEFAULT_DATASET
from expansion.data.prompts import PROMPT_PER
from expansion.diffusion.model_files import LARGEST_RESOLUTION

LARGEST_COUNT = 1_000_000  # variants of an image, or images of a batch; all variants are listed


@dataclass(frozen=True, kw_only=True)
class ExpandConfig:
    """Settings of a run that every method shares."""

    dataset: str = option(DEFAULT_DATASET, "dataset name or folder", flags=("-d",))
    method: str | None = option(None, "how images are generated; the methods are listed below")
    data_dir: str = option("data", "where named datasets lie")
    name: str | None = option(
        None, "what folders of results call the dataset; default: its name or last folder"
    )
    exp: str | None = option(None, "name of the expanded set; default: <method>_<n>x")
    output_dir: str | None = option(
        None, "folder of the expanded set; default: <data_dir>/<dataset>_expansion/<exp>"
    )
    num_images_per_prompt: int = option(5, "n: variants of each real image")
    expand_fraction: float = option(
        1.0,
        "share of the real images of each class that are expanded, 0 to 1, drawn by --subset_seed; "
        "a method that learns from the real images still sees all of them. 0.2 and one variant of "
        "each make the factor 0.2x",
    )
    pretrained_model_name_or_path: str = option(
        "CompVis/stable-diffusion-v1-4",
        "Stable Diffusion checkpoint: hub id, diffusers folder or single .safetensors file",
    )
    revision: str | None = option(None, "branch, tag or commit of a hub id")
    single_file_config: str | None = option(
        None, "diffusers folder with the configs and tokenizer for a checkpoint that is one file"
    )
    lora: str | None = option(
        None, "adapters that are added to the checkpoint: folder or .safetensors file; needs peft"
    )
    lora_scale: float = option(1.0, "factor on what --lora adds")
    resolution: int | None = option(
        None, "side of the images, pixels; default: the checkpoint's own"
    )
    prompt_template: str | None = option(
        None, "prompt, {} is the class name; default: the dataset's"
    )
    prompts_file: str | None = option(
        None,
        "JSON {class: [prompts]}, JSON lines {file_name, text} or numbered lists, one of each "
        "class; default: the template",
    )
    prompt_per: str = option(
        "image",
        "of a file: one prompt drawn per real image, shared by its variants, or one per variant, "
        "as always with a method's own prompts",
        choices=PROMPT_PER,
    )
    batch_size: int | str = option(
        "auto",
        "images that are denoised together; auto: as many as fit, found once for the folder",
        words=("auto",),
    )
    seed: int = option(42, "run seed; with the real image's path and n it decides the noise")
    shots: int | None = option(None, "use only this many real images per class")
    subset_seed: int = option(0, "which images --shots keeps and --expand_fraction takes")
    fold: str | None = option(
        None,
        "I/K: expand only what the training commands' --fold I/K trains on, for methods that learn "
        "from the real images",
    )
    subset_file: str | None = option(
        None, "JSON list of the images that --shots kept: read if it exists, else written"
    )
    test_fraction: float | None = option(
        None, "share of each class for testing, of a dataset without a test split"
    )
    output_format: str = option(
        "images",
        "a PNG file per image, or tar shards as the webdataset library reads them",
        choices=("images", "webdataset"),
    )
    images_per_tar: int = option(500, "images of each tar of --output_format webdataset")
    split: int | None = option(None, "number of this shard, from 0")
    total_split: int | None = option(None, "number of shards")
    until_kept: int | None = option(
        None,
        "double the variants of each real image until --judge accepts so many images of every "
        "class; those are listed in selected.json, for train_expand.py --selection",
    )
    judge: str | None = option(
        None,
        "what --until_kept goes by: run folder of a classifier of real images alone, or "
        "clip:ID_OR_FOLDER, a zero-shot CLIP",
    )
    judge_template: str | None = option(
        None, "what a CLIP as --judge is told of a class, with {}; default: the dataset's prompt"
    )
    judge_at_least: float = option(
        0.5,
        "smallest probability, 0 to 1, that --judge gives to the own class of an accepted image; "
        "LECF's, for a CLIP: 1 / number of classes",
    )
    most_variants: int = option(64, "most variants of each real image under --until_kept")
    device: str = option("auto", "cuda, cpu, ...; auto: a GPU if there is one")
    dtype: str = option(
        "auto",
        "number format of the networks; auto: float16 on a GPU, else float32",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    compile: bool = option(
        False, "torch.compile the U-Net's transformer blocks: slow start, then faster"
    )
    on_error: str = option("fail", "what an unreadable real image does", choices=("fail", "skip"))

    def __post_init__(self):
        for name in ("num_images_per_prompt", "batch_size", "images_per_tar"):
            value = getattr(self, name)
            if value != "auto":
                require(value > 0, f"{name} {value}: give a positive number")
                require(value <= LARGEST_COUNT, f"{name} {value}: give at most {LARGEST_COUNT}")
        fraction = self.expand_fraction
        require(0 < fraction <= 1, f"expand_fraction {fraction:g}: give more than 0 and at most 1")
        if self.output_format != "webdataset":
            refuse_idle(self, ("images_per_tar",), "is for --output_format webdataset")
        self._check_until_kept()
        resolution = self.resolution
        require(
            resolution is None or 0 < resolution <= LARGEST_RESOLUTION,
            f"resolution {resolution}: give 1 to {LARGEST_RESOLUTION} pixels",
        )
        require(
            self.prompts_file is None or self.prompt_template is None,
            f"prompts_file {self.prompts_file} and prompt_template {self.prompt_template!r}: "
            "give only one of them",
        )
        require(
            self.lora is not None or self.lora_scale == 1,
            f"lora_scale {self.lora_scale} scales what --lora adds; give --lora too",
        )

    def _check_until_kept(self) -> None:
        """Raise InputError for options of `until_kept` that do not go together."""
        require(
            (self.until_kept is None) == (self.judge is None),
            "give --until_kept and --judge, the run folder of a classifier, together",
        )
        require(
            self.judge_template is None or (self.judge or "").startswith("clip:"),
            f"judge_template {self.judge_template!r} is for a CLIP; give --judge clip:ID_OR_FOLDER",
        )
        if self.until_kept is None:
            refuse_idle(self, ("judge_at_least", "most_variants"), "is for --until_kept")
            return
        require(self.until_kept > 0, f"until_kept {self.until_kept}: give a positive number")
        require(
            0 < self.judge_at_least <= 1,
            f"judge_at_least {self.judge_at_least}: give more than 0 and at most 1",
        )
        require(
            self.num_images_per_prompt <= self.most_variants,
            f"most_variants {self.most_variants}: give num_images_per_prompt or more",
        )
        require(
            self.output_format == "images",
            f"until_kept extends a set, and one of {self.output_format} cannot be extended; leave "
            "out --output_format",
        )
