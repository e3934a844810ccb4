"""Generate the expanded set of a dataset: one shard, or all of them under `accelerate launch`.

    python expand.py -d digits --method img2img --num_images_per_prompt 10
    python expand.py -d caltech-101 --method distdiff --total_split 4 --split 0 --arch resnet50 \\
        --encoder_weight_path checkpoint/caltech-101/resnet50_unpretrained_lr0.1/seed1/model_best.pth.tar

The same command goes on where an earlier one stopped. `--method NAME --help` shows
a method's options.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expansion.config import (
    CONFIG_DIR,
    Source,
    add_options,
    command_line_source,
    compose,
    config_hash,
    import_object,
    load_yaml,
    unknown_name,
)
from expansion.devices import usable_device
from expansion.errors import brief, run_command
from expansion.image_datasets import DEFAULT_DATASET, dataset_config, write_subset
from expansion.plan import ExpandConfig, Plan, describe, identity_of, make_plan
from expansion.prompts import overlong_warning
from expansion.runs import check_claim, claim_folder, write_atomic
from expansion.sampler import SamplerConfig
from expansion.writer import ExpansionWriter, merge_manifests, missing_items

if TYPE_CHECKING:
    from expansion.generation import Outcome
    from expansion.sampler import Sampler

logger = logging.getLogger("expand")

# method -> its config and its sampler; the config's module imports no torch.
SAMPLERS = {
    "img2img": ("expansion.sampler:SamplerConfig", "expansion.img2img:Img2ImgSampler"),
    "distdiff": ("distdiff.config:DistDiffConfig", "distdiff.sampler:DistDiffSampler"),
    "dreamda": ("dreamda.config:DreamDAConfig", "dreamda.sampler:DreamDASampler"),
}
DEFAULT_METHOD = "distdiff"


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
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config", nargs="*", default=[])
    first.add_argument("--method", default=None)
    first.add_argument("--dataset", "-d", default=None)
    early, _ = first.parse_known_args(arguments)
    given = [load_yaml(path) for path in early.config]
    method, name = (
        getattr(early, key)
        or next((s.values[key] for s in reversed(given) if key in s.values), default)
        for key, default in (("method", DEFAULT_METHOD), ("dataset", DEFAULT_DATASET))
    )
    if method not in tuple(SAMPLERS):
        raise unknown_name("method", method, list(SAMPLERS))
    config_class = import_object(SAMPLERS[method][0])
    parser = argparse.ArgumentParser(
        prog="expand.py",
        description=__doc__,
        epilog=f"methods: {', '.join(SAMPLERS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", nargs="*", default=[], help="YAML files; later ones win")
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    add_options(parser, ExpandConfig, "run")
    add_options(parser, config_class, f"method {method}")
    options = parser.parse_args(arguments)
    dataset = dataset_config(
        name if isinstance(name, str) else brief(name),
        options.data_dir if "data_dir" in options else "data",
    )
    sources = [
        *(load_yaml(path) for path in _method_files(method)),
        Source({"method": method}, "method"),
        Source(dataset.expand or {}, f"dataset {name}: expand"),
        Source((dataset.methods or {}).get(method) or {}, f"dataset {name}: methods: {method}"),
        *given,
        command_line_source(options, ignore=("config", "dry_run")),
    ]
    config, method_config = compose([ExpandConfig, config_class], sources)
    return config, method_config, options.dry_run


def execute(plan: Plan) -> int:
    """Generate what is missing of this shard; returns the exit status."""
    device, dtype = _device_and_dtype(plan.config)
    identity = identity_of(plan, dtype)
    remedy = "give another --exp or --output_dir, or remove the folder"
    check_claim(plan.output_dir, "expansion.yaml", identity, remedy)
    mine = [item for unit in plan.shard_units for item in unit]
    missing = missing_items(plan.output_dir, mine, plan.stems)
    begun = time.monotonic()
    written = failed = 0
    if missing:
        sampler = _build_sampler(plan, device, dtype)
        _warn_of_long_prompts(plan, sampler)
        claim_folder(plan.output_dir, "expansion.yaml", identity, remedy)
        _write_classes(plan)
        config = plan.config
        write_subset(plan.records, config.shots, config.subset_seed, config.subset_file)
        outcome = _generate(plan, sampler, identity, missing)
        written, failed = outcome.written, outcome.failed
    seconds = max(time.monotonic() - begun, 1e-3)
    rows = merge_manifests(plan.output_dir)
    unfinished = missing_items(plan.output_dir, plan.items, plan.stems)
    logger.info(
        f"shard {plan.split} of {plan.total_split}: {written} images written, "
        f"{len(mine) - len(missing)} already there, {failed} failed, "
        f"{plan.num_skipped} unreadable real images skipped; {seconds:.1f} s, "
        f"{written / seconds:.2f} images/s"
    )
    done = len(plan.items) - len(unfinished)
    logger.info(f"{plan.output_dir}: {done} of {len(plan.items)} images of all shards")
    if not unfinished:
        _write_contact_sheet(plan)
        for name, mean in _mean_details(rows).items():
            logger.info(f"mean {name}: {mean:.4f}")
    return 1 if failed else 0


def _build_sampler(plan: Plan, device: str, dtype: str) -> Sampler:
    from expansion.stable_diffusion import load_pipeline

    def load():
        pipeline = load_pipeline(plan.model, dtype, device, plan.config.revision)
        if plan.config.compile:
            pipeline.unet.compile_repeated_blocks()
        return pipeline

    sampler_class = import_object(SAMPLERS[plan.config.method][1])
    sampler = sampler_class.build(plan.method_config, len(plan.dataset.class_names), load)
    sampler.prepare(plan.records)
    return sampler


def _generate(
    plan: Plan, sampler: Sampler, identity: Mapping[str, Any], missing: Collection[tuple[str, int]]
) -> Outcome:
    from tqdm import tqdm

    from expansion.generation import Job, generate
    from expansion.stable_diffusion import default_resolution

    config = plan.config
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
    with (
        ExpansionWriter(plan.output_dir, plan.split, plan.total_split) as writer,
        tqdm(total=len(missing), desc=config.method, unit="image", disable=None) as bar,
    ):
        return generate(sampler, job, plan.shard_units, missing, writer, bar.update)


def _mean_details(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over all images of the figures that the method left in the manifest."""
    names = rows[0].get("details", {}) if rows else {}
    columns = {name: [row.get("details", {}).get(name) for row in rows] for name in names}
    return {
        name: sum(values) / len(rows)
        for name, values in columns.items()
        if all(isinstance(value, int | float) for value in values)
    }


def _device_and_dtype(config: ExpandConfig) -> tuple[str, str]:
    device = usable_device(config.device)
    automatic = "float16" if device.startswith("cuda") else "float32"
    return device, automatic if config.dtype == "auto" else config.dtype


def _warn_of_long_prompts(plan: Plan, sampler: Sampler) -> None:
    prompt_of = plan.prompts.prompt_of
    used = {prompt_of(record.file_name, record.label, variant) for record, variant in plan.items}
    warning = overlong_warning(used, sampler.pipeline.tokenizer)
    if warning:
        logger.warning(warning)


def _write_classes(plan: Plan) -> None:
    classes = [
        {"id": label, "name": name, "folder": plan.folders[name]}
        for label, name in enumerate(plan.dataset.class_names)
    ]
    if plan.config.prompts_file is None:
        for row, (prompt,) in zip(classes, plan.prompts.by_label):
            row["prompt"] = prompt
    text = json.dumps(classes, ensure_ascii=False, indent=1)
    write_atomic(plan.output_dir / "classes.json", text + "\n")


def _write_contact_sheet(plan: Plan, num_rows: int = 10, num_columns: int = 8) -> None:
    """`contact_sheet.png`: real images and their variants, spread over the classes."""
    from PIL import Image

    from expansion.figures import contact_sheet, save_figure
    from expansion.naming import variant_name

    stride = max(1, len(plan.records) // num_rows)
    variants = range(min(num_columns, plan.config.num_images_per_prompt))
    rows = []
    for record in plan.records[::stride][:num_rows]:
        names = [variant_name(plan.stems[record.file_name], variant) for variant in variants]
        images = [record.load(), *(Image.open(plan.output_dir / name) for name in names)]
        rows.append((plan.dataset.prompt_names[record.label], images))
    headings = ["real", *(f"variant {variant}" for variant in variants)]
    save_figure(contact_sheet(rows, headings), plan.output_dir / "contact_sheet.png")


def _method_files(method: str) -> list[Path]:
    """The method's YAML file, if it has one."""
    files = [CONFIG_DIR / method / "default.yaml", CONFIG_DIR / "baselines" / f"{method}.yaml"]
    return [path for path in files if path.is_file()]


if __name__ == "__main__":
    run_command(main)
