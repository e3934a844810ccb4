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
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expansion.common.config import (
    CONFIG_DIR,
    Source,
    add_options,
    command_line_source,
    compose,
    config_hash,
    import_object,
    load_yaml,
)
from expansion.common.devices import device_and_dtype
from expansion.common.errors import brief, run_command, unknown_name
from expansion.common.files import (
    check_claim,
    check_writable,
    claim_folder,
    noticing_removal,
    remove_partial_files,
    write_atomic,
)
from expansion.common.option_parser import OptionParser
from expansion.common.stopping import StopRequest, finishing_first
from expansion.data.datasets import (
    DEFAULT_DATASET,
    dataset_config,
    dataset_title,
    write_subset,
)
from expansion.data.prompts import overlong_warning
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.generation.batch_size import FILE_NAME, forget_batch_size, remember_batch_size
from expansion.generation.identity import facts_of, identity_of, layout_of
from expansion.generation.plan import (
    IDENTITY_FILE,
    ExpandConfig,
    Plan,
    describe,
    make_plan,
    output_folder,
)
from expansion.generation.status import note_start, status_text
from expansion.generation.work_queue import Claims, pending_work, remove_claims
from expansion.store.expanded_set import Asked, StoredSet, current_rows
from expansion.store.manifest import merge_manifests, read_manifest
from expansion.store.tars import RecentTars, pack_complete
from expansion.store.writer import ExpansionWriter

if TYPE_CHECKING:
    from expansion.diffusion.sampler import Sampler
    from expansion.generation.loop import Job, Outcome

logger = logging.getLogger("expand")

# method -> its config and its sampler; the config's module imports no torch.
SAMPLERS = {
    "img2img": (
        "expansion.diffusion.sampler_config:SamplerConfig",
        "expansion.diffusion.img2img:Img2ImgSampler",
    ),
    "distdiff": ("distdiff.config:DistDiffConfig", "distdiff.sampler:DistDiffSampler"),
    "dreamda": ("dreamda.config:DreamDAConfig", "dreamda.sampler:DreamDASampler"),
}
DEFAULT_METHOD = "distdiff"
COMMON = frozenset(  # what --help shows
    "dataset method num_images_per_prompt pretrained_model_name_or_path lora encoder_weight_path "
    "exp output_dir strength guidance_scale prompt_template prompts_file shots test_fraction seed "
    "batch_size split total_split".split()
)


def main(arguments: Sequence[str] | None = None) -> int | None:
    config, method_config, options = parse(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.status:
        title = dataset_title(config.dataset, config.data_dir)
        print(status_text(output_folder(config, title)))
        return None
    plan = make_plan(config, method_config)
    if options.dry_run:
        print(describe(plan))
        return None
    return execute(plan)


def parse(arguments: Sequence[str]) -> tuple[ExpandConfig, SamplerConfig, argparse.Namespace]:
    """Command line > `--config` files > dataset file > method file > defaults."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
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
    parser = OptionParser(
        prog="expand.py",
        description=__doc__,
        epilog=f"methods: {', '.join(SAMPLERS)}",
        common=COMMON,
        allow_abbrev=False,
    )
    parser.add_argument("--config", nargs="*", default=[], help="YAML files; later ones win")
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    parser.add_argument(
        "--status",
        action="store_true",
        help="print how far the processes of this set are, and stop",
    )
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
        command_line_source(options, ignore=("config", "dry_run", "status")),
    ]
    config, method_config = compose([ExpandConfig, config_class], sources)
    return config, method_config, options


def execute(plan: Plan) -> int:
    """Generate what is missing of this shard, or of all; returns the exit status."""
    device, dtype = device_and_dtype(plan.config.device, plan.config.dtype)
    identity = identity_of(plan, dtype)
    claimed = {**identity, **layout_of(plan)}
    remedy = "give another --exp or --output_dir, or remove the folder"
    check_claim(plan.output_dir, IDENTITY_FILE, claimed, remedy)
    if plan.shard and plan.shard.origin:
        logger.info(plan.shard_name)
    stored = StoredSet(plan.output_dir, plan.stems, plan.sources)
    stored.check_sources()
    begun, written, failed = time.monotonic(), 0, 0
    num_missing = len(stored.missing(plan.shard_items))
    if num_missing:
        check_writable(plan.output_dir)
        sampler = _build_sampler(plan, device, dtype)
        _warn_of_long_prompts(plan, sampler)
        forget_batch_size(plan.output_dir)
        claim_folder(plan.output_dir, IDENTITY_FILE, claimed, remedy)
        _write_classes(plan)
        config = plan.config
        write_subset(plan.records, config.shots, config.subset_seed, config.subset_file)
        job = _job(plan, sampler, identity)
        if plan.batch_size is None:
            plan = _measured(plan, sampler, job)
        _say_what_is_asked(plan, stored)
        with finishing_first() as stop, noticing_removal(plan.output_dir):
            outcome = _generate(plan, sampler, job, stored, stop)
        written, failed = outcome.written, outcome.failed
        if outcome.stopped:
            return _report_stop(plan, stored, stop, written)
    else:
        plan.output_dir.mkdir(parents=True, exist_ok=True)  # of a shard that is empty, and first
        _say_what_is_asked(plan, stored)
        if plan.tars:  # all images are there, but perhaps not all tars
            pack_complete(stored, plan.tars, range(plan.tars.num_tars))
    seconds = max(time.monotonic() - begun, 1e-3)
    rows = _merge(plan)
    stored.refresh()
    mine = plan.shard_items
    done = len(mine) - len(stored.missing(mine))
    logger.info(
        f"{plan.shard_name}: {written} images written, {done - written} already there, "
        f"{failed} failed, {plan.num_skipped} unreadable real images skipped; {seconds:.1f} s, "
        f"{written / seconds:.2f} images/s"
    )
    num_missing = len(stored.missing(plan.items))
    num_items = len(plan.items)
    logger.info(f"{plan.output_dir}: {num_items - num_missing} of {num_items} images of all shards")
    # Another process may be about to pack the last tar; then it is the one to round off.
    if not num_missing and not any("staged" in row for row in rows):
        _round_off(plan, rows)
    return 1 if failed else 0


def _say_what_is_asked(plan: Plan, stored: StoredSet) -> None:
    """Keep what this command asks for; what does not belong to it is moved out of the way."""
    sources = [record.file_name for record in plan.records]
    count = plan.config.num_images_per_prompt
    Asked(count, sources, facts_of(plan)).write(plan.output_dir)
    if not plan.tars:
        stored.set_stale_aside()


def _merge(plan: Plan) -> list[dict[str, Any]]:
    """Write metadata.jsonl; returns its rows."""
    count = plan.config.num_images_per_prompt

    def select(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return current_rows(plan.output_dir, rows, plan.sources, count)[0]

    rows = merge_manifests(plan.output_dir, select)
    _, left_out = current_rows(plan.output_dir, read_manifest(plan.output_dir), plan.sources, count)
    for reason, number in left_out.items():
        logger.info(f"left out of metadata.jsonl: {number} images {reason}")
    return rows


def _measured(plan: Plan, sampler: Sampler, job: Job) -> Plan:
    """The plan with the batch size that fits, which is kept for all processes of this folder."""
    from expansion.diffusion.memory import fitting_batch_size
    from expansion.generation.loop import load_batch

    size = fitting_batch_size(
        sampler, lambda count: load_batch(plan.items[:count], job), len(plan.items)
    )
    kept = remember_batch_size(plan.output_dir, size)
    logger.info(f"batch size {kept}, kept in {plan.output_dir / FILE_NAME}")
    return plan.with_batch_size(kept)


def _report_stop(plan: Plan, stored: StoredSet, stop: StopRequest, written: int) -> int:
    """Say where the shard stopped; returns the exit status."""
    stored.refresh()
    mine = plan.shard_items
    total, missing = len(mine), len(stored.missing(mine))
    logger.info(
        f"stopped by {stop.signal.name}: {written} images written; {plan.shard_name} has "
        f"{total - missing} of {total} images, {missing} are missing; run the same command to go on"
    )
    _merge(plan)
    return stop.exit_status


def _round_off(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> None:
    """What is left to do when no image is missing."""
    remove_claims(plan.output_dir)
    _write_contact_sheet(plan, rows)
    abandoned = remove_partial_files(plan.output_dir)
    if abandoned:
        logger.info(f"removed {abandoned} half-written files of processes that were killed")
    for name, mean in _mean_details(rows).items():
        logger.info(f"mean {name}: {mean:.4f}")


def _build_sampler(plan: Plan, device: str, dtype: str) -> Sampler:
    from expansion.diffusion.lora import add_lora
    from expansion.diffusion.stable_diffusion import load_pipeline

    def load():
        config = plan.config
        pipeline = load_pipeline(
            plan.model, dtype, device, config.revision, config.single_file_config
        )
        if config.lora is not None:
            add_lora(pipeline, config.lora, config.lora_scale)
        if plan.config.compile:
            pipeline.unet.compile_repeated_blocks()
        return pipeline

    sampler_class = import_object(SAMPLERS[plan.config.method][1])
    sampler = sampler_class.build(plan.method_config, plan.dataset.class_names, load)
    sampler.prepare(plan.records)
    return sampler


def _job(plan: Plan, sampler: Sampler, identity: Mapping[str, Any]) -> Job:
    from expansion.diffusion.stable_diffusion import default_resolution
    from expansion.generation.loop import Job

    config = plan.config
    return Job(
        method=config.method,
        model=identity["model"],
        config_hash=config_hash(identity),
        seed=config.seed,
        resolution=config.resolution or default_resolution(sampler.pipeline),
        resize_mode=plan.method_config.resize_mode,
        prompts=plan.prompts,
        stems=plan.stems,
    )


def _generate(
    plan: Plan, sampler: Sampler, job: Job, stored: StoredSet, stop: Callable[[], bool]
) -> Outcome:
    from expansion.common.progress import SteadyBar
    from expansion.generation.loop import generate

    tars, units = plan.tars, plan.shard_units
    missing = stored.missing(item for _, items in units for item in items)
    # What is whole now stays so: only the other units are looked at again, each at its turn.
    units = [
        unit for unit in units if any((record.file_name, k) in missing for record, k in unit[1])
    ]
    if plan.shard is None:
        random.Random().shuffle(units)  # another order in each process; it decides nothing else
    staging = tars.staging_of if tars else None
    split, total_split = plan.shard[:2] if plan.shard else (None, 1)
    with (
        Claims(plan.output_dir, len(plan.units)) as claims,
        ExpansionWriter(plan.output_dir, split, total_split, staging) as writer,
        SteadyBar(total=len(missing), desc=job.method, unit="image", disable=None) as bar,
    ):
        note_start(writer.manifest, plan, len(missing))

        def progress(num_images: int) -> None:
            bar.update(num_images)
            writer.note_unit(num_images)

        begun = RecentTars(stored, tars) if tars else lambda unit: None
        work = pending_work(units, stored, claims, begun)
        outcome = generate(sampler, job, work, writer, progress, stop)
        if tars:
            writer.drain()
            stored.refresh()
            pack_complete(stored, tars, range(tars.num_tars), writer.failures)
        return outcome


def _mean_details(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over all images of the figures that the method left in the manifest."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.get("details", {}).items():
            if isinstance(value, int | float) and abs(value) < 1e300:
                columns.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in columns.items()}


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


def _write_contact_sheet(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> None:
    from expansion.generation.sheets import write_contact_sheets

    write_contact_sheets(plan, rows)


def _method_files(method: str) -> list[Path]:
    """The method's YAML file, if it has one."""
    files = [CONFIG_DIR / method / "default.yaml", CONFIG_DIR / "baselines" / f"{method}.yaml"]
    return [path for path in files if path.is_file()]


if __name__ == "__main__":
    run_command(main)
