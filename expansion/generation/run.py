"""A run of expand.py: it makes the missing images of a shard and leaves the folder in order."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expansion.common.config import config_hash
from expansion.common.devices import device_and_dtype
from expansion.common.errors import require
from expansion.common.files import (
    check_claim,
    check_writable,
    claim_folder,
    noticing_removal,
    remove_partial_files,
    write_atomic,
)
from expansion.common.stopping import StopRequest, finishing_first
from expansion.data.datasets import write_subset
from expansion.data.prompts import overlong_warning
from expansion.generation.batch_size import FILE_NAME, forget_batch_size, remember_batch_size
from expansion.generation.identity import facts_of, identity_of, layout_of
from expansion.generation.plan import IDENTITY_FILE, Plan, own_resolution
from expansion.images.variants import Variant
from expansion.store.expanded_set import Asked, StoredSet, current_rows
from expansion.store.manifest import MadeWith, merge_manifests, read_manifest
from expansion.store.tars import is_packed, pack
from expansion.store.writer import ExpansionWriter

if TYPE_CHECKING:
    from expansion.diffusion.sampler import Sampler
    from expansion.diffusion.variants import Drawing
    from expansion.generation.loop import Outcome

logger = logging.getLogger(__name__)

REMEDY = "give another --exp or --output_dir, or remove the folder"


def run(plan: Plan, sampler_class: type[Sampler]) -> int:
    """Make the missing images of the plan's shard.

    Args:
        plan: What is to be made, and where.
        sampler_class: The method.

    Returns:
        The exit status: 0; 1 if images could not be made; or one that tells the signal that stopped
        the run.

    Raises:
        InputError: The folder was begun with other settings or from other images.
    """
    # The folder must have been begun with these settings and from these real images, if at all.
    device, dtype = device_and_dtype(plan.config.device, plan.config.dtype)
    identity = identity_of(plan, dtype)
    claimed = {**identity, **layout_of(plan)}
    check_claim(plan.output_dir, IDENTITY_FILE, claimed, REMEDY)
    if plan.shard.origin:
        logger.info(str(plan.shard))
    stored = StoredSet(plan.output_dir, plan.sources)
    stored.check_sources()

    # Make what is missing. Every file of the shard is opened here, and not again.
    begun = time.monotonic()
    missing = stored.missing(plan.shard_variants)
    written = failed = 0
    if missing:
        check_writable(plan.output_dir)
        sampler = _build_sampler(plan, sampler_class, device, dtype)
        drawing = _drawing(plan, sampler)
        _begin_folder(plan, claimed, sampler)
        if plan.batch_size is None:
            plan = _measured(plan, sampler, drawing)
            mine = set(plan.shard_variants)
            missing = [variant for variant in missing if variant in mine]
        _say_what_is_asked(plan, stored)
        made_with = MadeWith(
            plan.config.method, identity["model"], config_hash(identity), plan.config.seed
        )
        with finishing_first() as stop, noticing_removal(plan.output_dir):
            outcome = _make(plan, sampler, drawing, made_with, missing, stop)
        written, failed = outcome.written, outcome.failed
        if outcome.stopped:
            return _report_stop(plan, stop, written, len(missing) - written)
    else:
        # A shard without images may be the first to run, before the folder exists.
        plan.output_dir.mkdir(parents=True, exist_ok=True)
        _say_what_is_asked(plan, stored)

    seconds = time.monotonic() - begun
    return _finish(plan, stored, len(missing), written, failed, seconds)


def _finish(
    plan: Plan, stored: StoredSet, num_lacking: int, written: int, failed: int, seconds: float
) -> int:
    """Look at the other shards too, and round off a complete set; returns the exit status.

    Args:
        plan: The plan of this shard.
        stored: The images on disk; their manifests are read again.
        num_lacking: Number of images of the shard that were missing before.
        written: How many of these were made.
        failed: How many of these could not be made.
        seconds: Time that this took.
    """
    # What the whole set lacks; where nothing was written, this shard was looked at already.
    stored.refresh()
    mine = set(plan.shard_variants)
    missing = stored.missing(v for v in plan.variants if written or v not in mine)
    num_missing = len(missing) + (0 if written else num_lacking)
    # A tar does without what cannot be made.
    packable = all(variant.key in stored.failed for variant in missing)
    if plan.tars and packable and not is_packed(stored, plan.tars):
        pack(stored, plan.tars)
    rows = _merge(plan)

    # What this process did, and how far the set is.
    logger.info(
        f"{plan.shard}: {written} images written, {len(mine) - num_lacking} already there, "
        f"{failed} failed, {plan.num_skipped} unreadable real images skipped; {seconds:.1f} s, "
        f"{written / max(seconds, 1e-3):.2f} images/s"
    )
    num_all = len(plan.variants)
    logger.info(f"{plan.output_dir}: {num_all - num_missing} of {num_all} images of all shards")
    if not num_missing:
        _round_off(plan, rows)
    return 1 if failed else 0


def _build_sampler(plan: Plan, sampler_class: type[Sampler], device: str, dtype: str) -> Sampler:
    """The sampler on its checkpoint, prepared for the plan's real images."""
    from expansion.diffusion.lora import add_lora
    from expansion.diffusion.solver_checks import distillation_warnings
    from expansion.diffusion.stable_diffusion import load_pipeline, own_scheduler

    def load():
        config = plan.config
        pipeline = load_pipeline(
            plan.model,
            dtype,
            device,
            config.revision,
            config.single_file_config,
            plan.method_config.needs_image_unet,
        )
        if not Path(plan.model).is_dir():  # the plan could not look into it
            own, unet = own_scheduler(pipeline), pipeline.unet.config
            for line in distillation_warnings(own, unet, plan.method_config, plan.model):
                logger.warning(line)
        if config.lora is not None:
            add_lora(pipeline, config.lora, config.lora_scale)
        if config.compile:
            pipeline.unet.compile_repeated_blocks()
        return pipeline

    names = plan.dataset.class_names, plan.dataset.prompt_names
    sampler = sampler_class.build(plan.method_config, *names, load)
    sampler.prepare(plan.records)
    return sampler


def _drawing(plan: Plan, sampler: Sampler) -> Drawing:
    """What decides the images beside the sampler and the variants."""
    from expansion.diffusion.families import STABLE_DIFFUSION, family_of
    from expansion.diffusion.stable_diffusion import default_resolution
    from expansion.diffusion.variants import Drawing

    own, assumed = default_resolution(sampler.pipeline), own_resolution(plan)
    require(
        family_of(sampler.pipeline) is STABLE_DIFFUSION
        or own == assumed
        or plan.config.resolution != assumed,
        f"--resolution {assumed}: images of {plan.model} are {own} pixels without it, and a hub id "
        "does not tell both sets apart; give the folder that hf download --local-dir writes",
    )
    resolution = plan.config.resolution or own
    return Drawing(plan.config.seed, resolution, plan.method_config.resize_mode)


def _begin_folder(plan: Plan, claimed: Mapping[str, Any], sampler: Sampler) -> None:
    """Claim the folder for these settings, and write the files that it holds beside images."""
    prompts = {variant.prompt for variant in plan.variants}
    warning = overlong_warning(prompts, sampler.pipeline.tokenizer)
    if warning:
        logger.warning(warning)
    forget_batch_size(plan.output_dir)
    claim_folder(plan.output_dir, IDENTITY_FILE, claimed, REMEDY)
    _write_classes(plan)
    config = plan.config
    write_subset(plan.chosen, config.shots, config.subset_seed, config.subset_file)


def _write_classes(plan: Plan) -> None:
    classes = [
        {"id": label, "name": name, "folder": plan.folders[name]}
        for label, name in enumerate(plan.dataset.class_names)
    ]
    if plan.config.prompts_file is None:
        for row, prompts in zip(classes, plan.prompts.by_label, strict=True):
            row |= {"prompt": prompts[0]} if len(prompts) == 1 else {}
    text = json.dumps(classes, ensure_ascii=False, indent=1)
    write_atomic(plan.output_dir / "classes.json", text + "\n")


def _measured(plan: Plan, sampler: Sampler, drawing: Drawing) -> Plan:
    """Measure the largest batch size that fits, keep it for the folder, and add it to the plan."""
    from expansion.diffusion.memory import fitting_batch_size
    from expansion.diffusion.variants import make_batch

    size = fitting_batch_size(
        sampler, lambda count: make_batch(plan.variants[:count], drawing), len(plan.variants)
    )
    kept = remember_batch_size(plan.output_dir, size)
    logger.info(f"batch size {kept}, kept in {plan.output_dir / FILE_NAME}")
    return plan.with_batch_size(kept)


def _say_what_is_asked(plan: Plan, stored: StoredSet) -> None:
    """Write down what this command asks for, and move images that do not belong to it away."""
    _asked(plan).write(plan.output_dir)
    if not plan.tars:
        stored.set_stale_aside()


def _asked(plan: Plan) -> Asked:
    sources = [record.file_name for record in plan.expanded]
    return Asked(plan.config.num_images_per_prompt, sources, facts_of(plan))


def _make(
    plan: Plan,
    sampler: Sampler,
    drawing: Drawing,
    made_with: MadeWith,
    missing: Sequence[Variant],
    stop: StopRequest,
) -> Outcome:
    """Compute the units that lack images, and write the missing ones."""
    from expansion.common.progress import SteadyBar
    from expansion.generation.loop import generate

    lacking = set(missing)
    units = [unit for unit in plan.shard_units if not lacking.isdisjoint(unit)]
    with (
        ExpansionWriter(plan.output_dir, made_with, *plan.shard[:2]) as writer,
        SteadyBar(total=len(missing), desc=made_with.method, unit="image", disable=None) as bar,
    ):

        def progress(num_images: int) -> None:
            bar.update(num_images)
            writer.note_unit(num_images)

        return generate(sampler, drawing, units, lacking, writer, progress, stop)


def _merge(plan: Plan) -> list[dict[str, Any]]:
    """Write metadata.jsonl from all manifests; returns its rows."""
    count = plan.config.num_images_per_prompt
    asked = _asked(plan).exclusive

    def current(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Counter[str]]:
        return current_rows(plan.output_dir, rows, plan.sources, count, asked)

    rows = merge_manifests(plan.output_dir, lambda rows: current(rows)[0])
    _, left_out = current(read_manifest(plan.output_dir))
    for reason, number in left_out.items():
        logger.info(f"left out of metadata.jsonl: {number} images {reason}")
    return rows


def _report_stop(plan: Plan, stop: StopRequest, written: int, num_missing: int) -> int:
    """Report where the shard was stopped; returns the exit status."""
    total = len(plan.shard_variants)
    logger.info(
        f"stopped by {stop.signal.name}: {written} images written; {plan.shard} has "
        f"{total - num_missing} of {total} images, {num_missing} are missing; run the same command "
        "to go on"
    )
    _merge(plan)
    return stop.exit_status


def _round_off(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> None:
    """Finish a complete set: contact sheets, removal of leftovers, means of the figures."""
    from expansion.generation.sheets import write_contact_sheets

    write_contact_sheets(plan, rows)
    abandoned = remove_partial_files(plan.output_dir)
    if abandoned:
        logger.info(f"removed {abandoned} half-written files of processes that were killed")
    for name, mean in _mean_details(rows).items():
        logger.info(f"mean {name}: {mean:.4f}")


def _mean_details(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The figures of the manifest, each averaged over all images."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.get("details", {}).items():
            if isinstance(value, int | float) and abs(value) < 1e300:
                columns.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in columns.items()}
