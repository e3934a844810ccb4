"""What solver and checkpoint ask of each other: steps, timesteps, guidance; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from expansion.common.errors import brief, require
from expansion.diffusion.sampler_config import (
    CONSISTENCY,
    OWN_SOLVERS,
    STATELESS,
    SamplerConfig,
)

ORIGINAL_STEPS = 50  # steps of a consistency distillation, where its scheduler does not say
MILD_GUIDANCE = 2.0  # that adapters such as LCM-LoRA bear
MANY_STEPS = 16  # of a distilled model; more of them only cost time


def check_steps(schedule: Mapping[str, Any], config: SamplerConfig, name: str) -> None:
    """Raise InputError if the steps of `config` cannot be taken on this noise schedule.

    Args:
        schedule: A scheduler's config that passed `check_scheduler`.
        config: Number of steps, strength and solver.
        name: Where it comes from, for the message.
    """
    # No more steps than the model was trained on; second-order solvers' grids have a point more.
    last = schedule.get("num_train_timesteps", 1000) - 1
    steps, most = config.num_inference_steps, last + 1
    spacing = config.timestep_spacing or schedule.get("timestep_spacing", "leading")
    if config.resolved_solver in CONSISTENCY:
        _check_consistency_grid(schedule, config, name)
    elif config.resolved_solver not in STATELESS and spacing != "trailing":
        most = last
    require(
        steps <= most,
        f"num_inference_steps {steps}: {name} was trained on {last + 1} timesteps; give at most "
        f"{most}",
    )
    # All timesteps must lie within the trained ones.
    trailing = spacing == "trailing" and config.resolved_solver not in CONSISTENCY
    require(
        not trailing or len(np.arange(most, 0, -most / steps)) == steps,
        f"num_inference_steps {steps}: rounding errors make diffusers' trailing spacing end below "
        f"timestep 0 for {name}; give another number",
    )
    first = first_timestep(schedule, config)
    require(
        first <= last,
        f"num_inference_steps {steps} at strength {config.strength}: the first step would be at "
        f"timestep {first}, {name} was trained up to {last}; give fewer steps or less strength",
    )
    # From pure noise, a predicted noise tells nothing about the image.
    trained = schedule.get("trained_betas")
    ends_in_noise = schedule.get("rescale_betas_zero_snr") or (trained and trained[-1] == 1)
    require(
        not ends_in_noise
        or schedule.get("prediction_type", "epsilon") == "v_prediction"
        or first < last,
        f"{name}: its schedule ends in pure noise (zero terminal SNR) but its U-Net predicts the "
        f"noise, from which no image can be told at timestep {last}; lower --strength "
        f"{config.strength}, or give a checkpoint with prediction_type v_prediction",
    )
    require(
        config.resolved_solver != "euler" or spacing != "linspace",
        f"solver euler: {name} has the timestep_spacing linspace, whose steps lie between the "
        "trained ones; give --timestep_spacing trailing, or --solver ddim",
    )


def _check_consistency_grid(schedule: Mapping[str, Any], config: SamplerConfig, name: str) -> None:
    """Raise InputError unless the steps are among those that a model was distilled with."""
    steps, total = config.num_inference_steps, schedule.get("num_train_timesteps", 1000)
    original = schedule.get("original_inference_steps", ORIGINAL_STEPS)
    require(
        type(original) is int and 0 < original <= total,
        f"{name}: original_inference_steps {brief(original)} is no count of steps up to {total}",
    )
    require(
        steps <= original,
        f"num_inference_steps {steps}: the solver {config.resolved_solver} takes some of the "
        f"{original} steps of the distillation, so at most {original}; models for it need 4 to 8",
    )
    scaling = schedule.get("timestep_scaling", 10.0)
    require(
        type(scaling) in (int, float) and math.isfinite(scaling) and scaling > 0,
        f"{name}: timestep_scaling {brief(scaling)} is no number above 0",
    )


def check_guidance(unet: Mapping[str, Any], config: SamplerConfig, name: str) -> None:
    """Raise InputError for settings of guidance that a U-Net has no use for.

    Args:
        unet: The U-Net's config.
        config: Guidance scale, interval and negative prompt.
        name: Where it comes from, for the message.
    """
    if unet.get("time_cond_proj_dim") is None:
        return
    for key in ("guidance_interval", "negative_prompt"):
        require(
            getattr(config, key) == getattr(type(config), key),
            f"{key}: the U-Net of {name} was distilled to take the guidance scale as an input, and "
            "is not guided beside that; leave it out",
        )


def distillation_warnings(
    scheduler: Mapping[str, Any], unet: Mapping[str, Any], config: SamplerConfig, name: str
) -> list[str]:
    """Lines about settings that spoil the images of a distilled model, and what to do.

    Args:
        scheduler: Config of the checkpoint's own scheduler.
        unet: The U-Net's config.
        config: Solver and guidance scale.
        name: Of the checkpoint.
    """
    lines = []
    named, solver = str(scheduler.get("_class_name")), config.resolved_solver
    made_for = OWN_SOLVERS.get(named, solver)
    if made_for != solver and solver not in CONSISTENCY:
        lines.append(
            f"solver {solver}: {name} has the scheduler {named}, so it was distilled for another; "
            f"give --solver {made_for} and 4 to 8 --num_inference_steps"
        )
    if solver in CONSISTENCY and config.executed_steps > MANY_STEPS:
        lines.append(
            f"num_inference_steps {config.num_inference_steps} at strength {config.strength}: "
            f"{config.executed_steps} steps are run where the solver {solver} needs 4 to 8; give "
            "fewer"
        )
    if unet.get("time_cond_proj_dim") is not None:  # it takes the guidance scale as an input
        return lines
    scale = f"guidance_scale {config.guidance_scale:g}"
    is_turbo = (
        named.startswith("Euler")
        and scheduler.get("timestep_spacing") == "trailing"
        and scheduler.get("prediction_type", "epsilon") == "epsilon"
        and not scheduler.get("rescale_betas_zero_snr")
    )
    if solver in CONSISTENCY and config.guidance_scale > MILD_GUIDANCE:
        lines.append(
            f"{scale}: models for the solver {solver} were distilled with guidance, and a second "
            f"one spoils their images; give --guidance_scale 1, or at most {MILD_GUIDANCE:g}"
        )
    elif is_turbo and config.guidance_scale > 1:
        lines.append(
            f"{scale}: {name} has the scheduler of a Turbo model ({named}, trailing), whose images "
            "guidance spoils; give --guidance_scale 1, --solver euler and 1 to 4 "
            "--num_inference_steps"
        )
    return lines


def first_timestep(schedule: Mapping[str, Any], config: SamplerConfig) -> int:
    """The training timestep of the first step that is run, as diffusers' solvers place it.

    Args:
        schedule: A scheduler's config that passed `check_scheduler`.
        config: Number of steps, strength and solver.
    """
    total = schedule.get("num_train_timesteps", 1000)
    spacing = config.timestep_spacing or schedule.get("timestep_spacing", "leading")
    steps, executed = config.num_inference_steps, config.executed_steps
    if config.resolved_solver in CONSISTENCY:
        original = schedule.get("original_inference_steps", ORIGINAL_STEPS)
        place = (steps - executed) * original // steps  # among the steps of the distillation
        return (original - place) * (total // original) - 1
    extra = 0 if config.resolved_solver in STATELESS else 1  # other grids also hold the end, 0
    if spacing == "leading":
        return (executed - 1 + extra) * (total // (steps + extra)) + 1
    if spacing == "trailing":
        return round(total - (steps - executed) * total / steps) - 1
    intervals = max(1, steps - 1 + extra)
    return round((executed - 1 + extra) * (total - 1) / intervals)
