"""What identifies an expanded set: everything that decides its images; and facts for reports."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from expansion.common.config import config_hash, deciding
from expansion.common.files import file_fingerprint
from expansion.diffusion.model_files import folder_fingerprint, model_fingerprint
from expansion.diffusion.weight_files import find_lora
from expansion.generation.plan import Plan, own_resolution
from expansion.images.content import content_summary


def facts_of(plan: Plan) -> dict[str, Any]:
    """Facts for reports: where real images and model are, and what an image costs."""
    config, model = plan.config, plan.model
    facts = {
        "model": os.path.relpath(model, plan.output_dir) if os.path.isdir(model) else model,
        "dataset": config.dataset,
        "data_dir": os.path.relpath(config.data_dir, plan.output_dir),
        "root": os.path.relpath(plan.dataset.root, plan.output_dir),
        "test_fraction": config.test_fraction,
        "fold": config.fold,
        "batch_size": plan.batch_size,
        "unet_rows_per_image": plan.unet_rows_per_image,
    }
    if len(plan.expanded) < len(plan.records):
        facts["training_images"] = [record.file_name for record in plan.records]
    if plan.method_config.training_rows:
        facts["training_unet_rows"] = plan.method_config.training_rows
    return facts


def identity_of(plan: Plan, dtype: str) -> dict[str, Any]:
    """Everything that decides the images, and nothing else; a run with the same may go on.

    Args:
        plan: The run.
        dtype: Number format of the networks, resolved.
    """
    settings = deciding(plan.method_config)
    for name, path in plan.method_config.input_files().items():
        settings[name] = file_fingerprint(path)
    for name, path in plan.method_config.input_folders().items():
        settings[name] = folder_fingerprint(path)
    trained_for = own_resolution(plan)
    identity = {
        "method": plan.config.method,
        "settings": settings,
        "model": model_fingerprint(
            plan.model, plan.config.revision, plan.config.single_file_config
        ),
        "resolution": None if plan.config.resolution == trained_for else plan.config.resolution,
        "crop_bottom": plan.dataset.config.crop_bottom,
        "reading": dataclasses.asdict(plan.dataset.reading),
        "dtype": dtype,
        "seed": plan.config.seed,
        "prompts": plan.prompts.fingerprint(),
        "classes": config_hash(plan.dataset.class_names),
    }
    if plan.config.lora is not None:
        identity["lora"] = file_fingerprint(find_lora(plan.config.lora))
        identity["lora_scale"] = plan.config.lora_scale
    # The last group of a real image is smaller where groups do not divide the number of variants,
    # so its images depend on that number.
    number, size = plan.config.num_images_per_prompt, plan.method_config.variants_per_group
    if size > 1:
        identity["num_images_per_prompt"] = number if number % size else f"a multiple of {size}"
    if plan.method_config.tells_clip_the_classes:
        identity["prompt_names"] = config_hash(plan.dataset.prompt_names)
    if plan.method_config.depends_on_dataset:
        identity["images"] = content_summary(plan.records)
    return identity


def layout_of(plan: Plan) -> dict[str, Any]:
    """What also decides which image goes into which tar; empty where images are files."""
    if plan.tars is None:
        return {}
    return {
        "output_format": plan.config.output_format,
        "tars": plan.tars.pattern,
        "images_per_tar": plan.config.images_per_tar,
        "num_images_per_prompt": plan.config.num_images_per_prompt,
        "images": content_summary(plan.expanded),
    }
