"""Generate the expanded set of a dataset: one shard, or all of them under `accelerate launch`.

    python expand.py -d digits --method img2img --num_images_per_prompt 10
    python expand.py -d caltech-101 --method distdiff --total_split 4 --split 0 \\
        --encoder_weight_path checkpoint/caltech-101/resnet50_unpretrained_lr0.1/seed1/model_best.pth.tar

The same command goes on where an earlier one stopped. `--method NAME --help` shows a method's options.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expansion.checkpoints import (
    check_model_folder,
    file_fingerprint,
    locate_model,
    model_fingerprint,
)
from expansion.config import (
    CONFIG_DIR,
    Source,
    add_options,
    command_line_source,
    compose,
    config_hash,
    load_yaml,
    option,
    require,
    unknown_name,
)
from expansion.errors import InputError, run_command
from expansion.sampler import SamplerConfig
from expansion.sharding import make_units, resolve_shard, take_shard

if TYPE_CHECKING:
    from expansion.image_datasets import ImageDataset, ImageRecord
    from expansion.sampler import Sampler

logger = logging.getLogger("expand")

# method -> its config and its sampler; the config's module imports no torch.
SAMPLERS = {
    "img2img": ("expansion.sampler:SamplerConfig", "expansion.img2img:Img2ImgSampler"),
    "distdiff": ("distdiff.config:DistDiffConfig", "distdiff.sampler:DistDiffSampler"),
}


@dataclass(frozen=True, kw_only=True)
class ExpandConfig:
    """Settings of a run that every method shares."""

    dataset: str = option("digits", "dataset name or folder", flags=("-d",))
    method: str = option("distdiff", "how images are generated", choices=tuple(SAMPLERS))
    data_dir: str = option("data", "where named datasets lie")
    exp: str | None = option(None, "name of the expanded set; default: <method>_<n>x")
    output_dir: str | None = option(
        None, "folder of the expanded set; default: <data_dir>/<dataset>_expansion/<exp>"
    )
    num_images_per_prompt: int = option(5, "n: variants of each real image")
    pretrained_model_name_or_path: str = option(
        "CompVis/stable-diffusion-v1-4", "Stable Diffusion checkpoint: hub id or diffusers folder"
    )
    revision: str | None = option(None, "branch, tag or commit of a hub id")
    resolution: int | None = option(None, "side of the images, pixels; default: the checkpoint's own")
    prompt_template: str | None = option(None, "prompt, {} is the class name; default: the dataset's")
    batch_size: int = option(8, "images that are denoised together")
    seed: int = option(42, "run seed; with the real image's path and n it decides the noise")
    shots: int | None = option(None, "use only this many real images per class")
    subset_seed: int = option(0, "which images --shots keeps")
    split: int | None = option(None, "number of this shard, from 0")
    total_split: int | None = option(None, "number of shards")
    device: str = option("auto", "cuda, cpu, ...; auto: a GPU if there is one")
    dtype: str = option(
        "auto",
        "number format of the networks; auto: float16 on a GPU, else float32",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    compile: bool = option(False, "torch.compile the U-Net: minutes of start-up, then faster")
    on_error: str = option("fail", "what an unreadable real image does", choices=("fail", "skip"))

    def __post_init__(self):
        for name in ("num_images_per_prompt", "batch_size"):
            require(getattr(self, name) > 0, f"{name} {getattr(self, name)}: give a positive number")


@dataclass(frozen=True)
class Plan:
    """A run with its work laid out; nothing is loaded yet."""

    config: ExpandConfig
    method_config: SamplerConfig
    dataset: ImageDataset
    records: list[ImageRecord]
    num_skipped: int
    prompts: list[str]
    stems: dict[str, str]
    folders: dict[str, str]
    output_dir: Path
    model: str
    split: int
    total_split: int

    @property
    def items(self) -> list[tuple[ImageRecord, int]]:
        """Every (real image, variant) of all shards, in order."""
        count = self.config.num_images_per_prompt
        return [(record, variant) for record in self.records for variant in range(count)]

    @property
    def shard_units(self) -> list[list[tuple[ImageRecord, int]]]:
        """The units of this shard."""
        return take_shard(make_units(self.items, self.config.batch_size), self.split, self.total_split)


def main(arguments: Sequence[str] | None = None) -> int | None:
    config, method_config, dry_run = parse(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    plan = make_plan(config, method_config)
    if dry_run:
        print(describe(plan))
        return None
    return execute(plan)


def parse(arguments: Sequence[str]) -> tuple[ExpandConfig, SamplerConfig, bool]:
    """Command line > `--config` files > dataset file > method file > defaults."""
    from expansion.image_datasets import dataset_config

    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config", nargs="*", default=[])
    first.add_argument("--method", default=None)
    first.add_argument("--dataset", "-d", default=None)
    early, _ = first.parse_known_args(arguments)
    given = [load_yaml(path) for path in early.config]
    method, name = (
        getattr(early, key)
        or next((s.values[key] for s in reversed(given) if key in s.values), default)
        for key, default in (("method", ExpandConfig.method), ("dataset", ExpandConfig.dataset))
    )
    if method not in SAMPLERS:
        raise unknown_name("method", method, list(SAMPLERS))
    config_class = _import(SAMPLERS[method][0])
    parser = argparse.ArgumentParser(
        prog="expand.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", nargs="*", default=[], help="YAML files; later ones win")
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    add_options(parser, ExpandConfig, "run")
    add_options(parser, config_class, f"method {method}")
    options = parser.parse_args(arguments)
    dataset = dataset_config(name, options.data_dir if "data_dir" in options else "data")
    sources = [
        *(load_yaml(path) for path in _method_files(method)),
        Source(dataset.expand or {}, f"dataset {name}: expand"),
        Source((dataset.methods or {}).get(method) or {}, f"dataset {name}: methods: {method}"),
        *given,
        command_line_source(options, ignore=("config", "dry_run")),
    ]
    config, method_config = compose([ExpandConfig, config_class], sources)
    return config, method_config, options.dry_run


def make_plan(config: ExpandConfig, method_config: SamplerConfig) -> Plan:
    """Find and check everything that can be checked before weights load."""
    from expansion.image_datasets import few_shot, load_dataset, readable_records
    from expansion.naming import folder_names, image_stems
    from expansion.prompts import class_prompt

    split, total_split = resolve_shard(config.split, config.total_split)
    model = locate_model(config.pretrained_model_name_or_path)
    check_model_folder(model)
    for name, path in method_config.input_files().items():
        require(
            Path(path).is_file(),
            f"{name} {path} does not exist; train the classifier first with train_original.py",
        )
    dataset = load_dataset(config.dataset, config.data_dir)
    everything = dataset.records("train")
    records = few_shot(everything, config.shots, config.subset_seed)
    records, problems = readable_records(records, config.on_error)
    require(bool(records), f"no readable training image in {dataset.root}")
    template = config.prompt_template or dataset.config.prompt_template
    folders = folder_names(dataset.class_names)
    exp = config.exp or f"{config.method}_{config.num_images_per_prompt}x"
    output_dir = Path(config.data_dir) / f"{dataset.name}_expansion" / exp
    return Plan(
        config=config,
        method_config=method_config,
        dataset=dataset,
        records=records,
        num_skipped=len(problems),
        prompts=[class_prompt(template, name) for name in dataset.prompt_names],
        stems=image_stems(everything, folders),
        folders=folders,
        output_dir=Path(config.output_dir) if config.output_dir else output_dir,
        model=model,
        split=split,
        total_split=total_split,
    )


def describe(plan: Plan) -> str:
    """The resolved settings and the size of the work, as text."""
    from expansion.checkpoints import model_resolution
    from expansion.runs import to_yaml

    resolution = plan.config.resolution or model_resolution(plan.model)
    mine = sum(map(len, plan.shard_units))
    rows = plan.method_config.unet_rows_per_image()
    settings = {**dataclasses.asdict(plan.config), **dataclasses.asdict(plan.method_config)}
    gigabytes = mine * resolution**2 * 1.7e-9  # a PNG takes about 1.7 bytes per pixel
    return (
        f"{to_yaml(settings)}\n"
        f"real images: {len(plan.records)} in {len(plan.dataset.class_names)} classes"
        f" ({plan.num_skipped} unreadable ones left out)\n"
        f"images to generate: {len(plan.items)}, {resolution}x{resolution} pixels\n"
        f"shard {plan.split} of {plan.total_split}: {mine} images in {len(plan.shard_units)} units\n"
        f"U-Net rows: {rows:g} per image, {rows * mine:.3g} for this shard\n"
        f"disk space: about {gigabytes:.2g} GB for this shard\n"
        f"output: {plan.output_dir}"
    )


def execute(plan: Plan) -> int:
    """Generate what is missing of this shard; returns the exit status."""
    from expansion.runs import claim_folder, write_atomic
    from expansion.writer import ExpansionWriter, merge_manifests, missing_items

    config = plan.config
    device, dtype = _device_and_dtype(config)
    identity = _identity(plan, dtype)
    claim_folder(
        plan.output_dir,
        "expansion.yaml",
        identity,
        "give another --exp or --output_dir, or remove the folder",
    )
    _write_classes(plan, write_atomic)
    units = plan.shard_units
    mine = [item for unit in units for item in unit]
    missing = missing_items(plan.output_dir, mine, plan.stems)
    begun = time.monotonic()
    outcome = None
    if missing:
        with ExpansionWriter(plan.output_dir, plan.split, plan.total_split) as writer:
            outcome = _generate(plan, identity, device, dtype, units, missing, writer)
    seconds = time.monotonic() - begun
    merge_manifests(plan.output_dir)
    still_missing = missing_items(plan.output_dir, plan.items, plan.stems)
    if not still_missing:
        _write_contact_sheet(plan)
    written, failed = (outcome.written, outcome.failed) if outcome else (0, 0)
    logger.info(
        "shard %d of %d: %d images written, %d already there, %d failed, %d real images skipped; "
        "%.1f s, %.2f images/s; %d of %d images of all shards in %s",
        plan.split,
        plan.total_split,
        written,
        len(mine) - len(missing),
        failed,
        plan.num_skipped,
        seconds,
        written / max(seconds, 1e-9),
        len(plan.items) - len(still_missing),
        len(plan.items),
        plan.output_dir,
    )
    return 1 if failed else 0


def _generate(plan: Plan, identity, device: str, dtype: str, units, missing, writer):
    import torch
    from tqdm import tqdm

    from expansion.generation import Job, generate
    from expansion.stable_diffusion import default_resolution, load_pipeline

    config = plan.config

    def load():
        pipeline = load_pipeline(plan.model, dtype, device, config.revision)
        if config.compile:
            pipeline.unet = torch.compile(pipeline.unet)
        return pipeline

    sampler_class = _import(SAMPLERS[config.method][1])
    sampler: Sampler = sampler_class.build(
        plan.method_config, len(plan.dataset.class_names), load
    )
    sampler.prepare(plan.records)
    job = Job(
        method=config.method,
        model=identity["model"],
        config_hash=config_hash(identity),
        seed=config.seed,
        resolution=config.resolution or default_resolution(sampler.pipeline),
        resize_mode=plan.method_config.resize_mode,
        prompts=plan.prompts,
        stems=plan.stems,
    )
    with tqdm(total=len(missing), desc=config.method, unit="image", disable=None) as bar:
        return generate(sampler, job, units, missing, writer, bar.update)


def _identity(plan: Plan, dtype: str) -> dict[str, Any]:
    """Everything that decides the images, and nothing else."""
    settings = dataclasses.asdict(plan.method_config)
    for name, path in plan.method_config.input_files().items():
        settings[name] = file_fingerprint(path)
    identity = {
        "method": plan.config.method,
        "settings": settings,
        "model": model_fingerprint(plan.model, plan.config.revision),
        "resolution": plan.config.resolution,
        "dtype": dtype,
        "seed": plan.config.seed,
        "prompts": config_hash(plan.prompts),
        "classes": config_hash(plan.dataset.class_names),
    }
    if plan.method_config.depends_on_dataset:
        identity["real_images"] = config_hash([record.file_name for record in plan.records])
    return identity


def _device_and_dtype(config: ExpandConfig) -> tuple[str, str]:
    import torch

    device = config.device
    if device == "auto":
        local_rank = os.environ.get("LOCAL_RANK", "0")
        device = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {device} cannot be used ({reason}); try --device cpu") from error
    automatic = "float16" if device.startswith("cuda") else "float32"
    return device, automatic if config.dtype == "auto" else config.dtype


def _write_classes(plan: Plan, write_atomic) -> None:
    import json

    classes = [
        {"id": label, "name": name, "folder": plan.folders[name], "prompt": plan.prompts[label]}
        for label, name in enumerate(plan.dataset.class_names)
    ]
    text = json.dumps(classes, ensure_ascii=False, indent=1)
    write_atomic(plan.output_dir / "classes.json", text + "\n")


def _write_contact_sheet(plan: Plan, num_rows: int = 10, num_columns: int = 8) -> None:
    """`contact_sheet.png`: real images and their variants, spread over the classes."""
    from PIL import Image

    from expansion.figures import contact_sheet, save_figure
    from expansion.naming import variant_name

    stride = max(1, len(plan.records) // num_rows)
    rows = []
    for record in plan.records[::stride][:num_rows]:
        variants = range(min(num_columns, plan.config.num_images_per_prompt))
        names = [variant_name(plan.stems[record.file_name], variant) for variant in variants]
        images = [record.load(), *(Image.open(plan.output_dir / name) for name in names)]
        rows.append((f"{plan.dataset.prompt_names[record.label]} (real, then variants)", images))
    save_figure(contact_sheet(rows), plan.output_dir / "contact_sheet.png")


def _method_files(method: str) -> list[Path]:
    """The method's YAML file, if it has one."""
    files = [CONFIG_DIR / method / "default.yaml", CONFIG_DIR / "baselines" / f"{method}.yaml"]
    return [path for path in files if path.is_file()]


def _import(name: str) -> Any:
    module, attribute = name.split(":")
    return getattr(importlib.import_module(module), attribute)


if __name__ == "__main__":
    run_command(main)
