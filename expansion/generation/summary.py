"""What a run would do, as text."""

from __future__ import annotations

import dataclasses

from expansion.common.files import to_yaml
from expansion.generation.plan import Plan, own_resolution


def describe(plan: Plan) -> str:
    """A text with the resolved settings and the size of the work, for `--dry_run`."""
    resolution = plan.config.resolution or own_resolution(plan)
    first = plan.variants[0]
    rows = plan.unet_rows_per_image
    settings = {**dataclasses.asdict(plan.config), **dataclasses.asdict(plan.method_config)}
    if plan.batch_size is None:
        share = "units are cut once the batch size is measured"
        mine = len(plan.variants) // plan.shard.total_split
    else:
        mine = len(plan.shard_variants)
        share = f"{mine} images in {len(plan.shard_units)} units of up to {plan.batch_size}"
    trained = plan.method_config.training_rows
    training = (
        f"training: {trained:.10g} U-Net rows, {trained / len(plan.variants):.3g} per image\n"
    )
    num_expanded = len(plan.expanded)
    expanded = f", {num_expanded} of them expanded" if num_expanded < len(plan.records) else ""
    gigabytes = mine * resolution**2 * 1.7e-9  # a PNG takes about 1.7 bytes per pixel
    return (
        f"{to_yaml(settings)}\n"
        f"real images: {len(plan.records)} in {len(plan.dataset.class_names)} classes"
        f" ({plan.num_skipped} unreadable ones left out){expanded}\n"
        f"prompt of {first.source.file_name}: {first.prompt}\n"
        f"images to generate: {len(plan.variants)}, {resolution}x{resolution} pixels\n"
        f"{plan.shard}: {share}\n"
        f"U-Net rows: {rows:g} per image, {rows * mine:.3g} for this shard\n"
        f"{training if trained else ''}"
        f"disk space: about {gigabytes:.2g} GB for this shard\n"
        f"output: {plan.output_dir}{f'/{plan.tars.pattern}' if plan.tars else ''}"
    )
