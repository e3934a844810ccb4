"""Measures how fast an expansion is compared with diffusers' own pipelines, and what takes time.

    python -m expansion.benchmark
    python -m expansion.benchmark --methods img2img --batch_sizes 1 8 50 --rounds 5
    python -m expansion.benchmark --full_size sd1 --dtype bfloat16 --resolution 512 --batch_sizes 8

All contenders run in one process by turns, from image files to image files, with each method's own
steps, strength and guidance. Figures are medians over the rounds. diffusers' pipelines for img2img
and CycleDiffusion are measured beside the methods that do the same work.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import expand
from expansion.benchmarks.sampling_config import BenchmarkConfig
from expansion.common.config import import_object
from expansion.common.devices import device_and_dtype
from expansion.common.errors import run_command
from expansion.common.files import write_atomic
from expansion.common.option_parser import OptionParser
from expansion.common.tables import aligned
from expansion.generation.plan import Plan, make_plan

if TYPE_CHECKING:
    from expansion.benchmarks.sampling_arms import Contender, Measurement
    from expansion.common.phases import PhaseClock
    from expansion.diffusion.families import Pipeline

MAIN_PHASES = ("encode", "denoise", "guide", "decode", "idle")  # follow one another
BESIDE_PHASES = ("load", "write")  # run in threads of their own
# Method -> the pipeline of diffusers that does the same work, whether it takes several images at a
# time, and our settings that its call takes -> the names of its arguments.
RIVALS = {
    "img2img": ("StableDiffusionImg2ImgPipeline", True, {}),
    "dreamda": (
        "CycleDiffusionPipeline",
        False,
        {
            "resolved_eta": "eta",
            "source_prompt": "source_prompt",
            "source_guidance_scale": "source_guidance_scale",
        },
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the tables; `arguments` defaults to the process's own."""
    config = parse(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if config.output:  # before minutes are spent
        Path(config.output).absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(config, Path(folder))
        lines = bench.run()
    text = report(lines, bench.facts)
    sys.stdout.write(text)
    if config.output:
        figures = {"facts": bench.facts, "lines": [line.figures(bench.facts) for line in lines]}
        write_atomic(Path(config.output), json.dumps(figures, indent=1) + "\n")


def parse(arguments: Sequence[str]) -> BenchmarkConfig:
    parser = OptionParser(prog="python -m expansion.benchmark", description=__doc__)
    (config,) = parser.read(arguments, {"benchmark": BenchmarkConfig}).compose(BenchmarkConfig)
    return config


@dataclass
class Line:
    """A line of the tables: the measurements of a contender.

    Attributes:
        contender: What was measured.
        measurements: One for each round.
        clock: Time by phase, of one further run; only for our own samplers.
        profiled: That further run.
    """

    contender: Contender
    measurements: list[Measurement]
    clock: PhaseClock | None = None
    profiled: Measurement | None = None

    def median(self, value) -> float:
        """The median over the rounds of what `value` gives of a measurement."""
        return statistics.median(value(m) for m in self.measurements)

    def figures(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """All figures of the line, as the JSON file holds them."""
        first = self.measurements[0]
        figures = {
            "name": self.contender.name,
            "batch_size": self.contender.batch_size,
            "images": first.images,
            "images_per_second": self.median(lambda m: m.images / m.seconds),
            "all_images_per_second": [m.images / m.seconds for m in self.measurements],
            "rows_per_second": self.median(lambda m: m.rows / m.seconds),
            "rows_per_image": first.rows / first.images,
            "peak_memory_bytes": max(m.peak for m in self.measurements),
        }
        if self.clock is not None:
            figures["seconds_per_image"] = self.seconds_per_image()
            figures["overhead"] = self.overhead()
            figures["share_of_matrix_rate"] = self.network_rate(facts) / facts["matrix_rate"]
        return figures

    def seconds_per_image(self) -> dict[str, float]:
        """Seconds of each phase per image; "other" is the time outside all phases."""
        clock, images = self.clock, self.profiled.images
        seconds: dict[str, float] = {name: clock.seconds[name] for name in MAIN_PHASES}
        seconds["other"] = clock.unaccounted
        seconds |= {name: clock.beside[name] for name in BESIDE_PHASES}
        return {name: value / images for name, value in seconds.items()}

    def network_rate(self, facts: Mapping[str, Any]) -> float:
        """Operations per second of the U-Net's forward passes, while it denoises and guides."""
        seconds = self.clock.seconds["denoise"] + self.clock.seconds["guide"]
        return facts["flops_per_row"] * self.profiled.rows / seconds

    def overhead(self) -> float:
        """The share of time that is spent outside the networks."""
        return (self.clock.unaccounted + self.clock.seconds["idle"]) / self.clock.total


class Bench:
    """Measures all contenders, which share one pipeline, by turns.

    Args:
        config: Settings.
        folder: Temporary folder for guides with random weights.
    """

    def __init__(self, config: BenchmarkConfig, folder: Path):
        self.config, self.folder = config, folder
        self.device, self.dtype = device_and_dtype(config.device, config.dtype)
        self.plans = {method: self._plan(method) for method in config.methods}
        self.pipeline = self._load()
        self.facts = self._facts()

    def run(self) -> list[Line]:
        """Warm up, measure `rounds` rounds, and measure our samplers once more with the clock."""
        from expansion.benchmarks.sampling_arms import some_variants, synchronize
        from expansion.common.phases import PhaseClock

        count, plans = self.config.num_images_per_prompt, self.plans
        variants = next(iter(plans.values())).variants
        device = self.pipeline.device  # asked for once, as diffusers searches all modules for it
        lines = [Line(contender, []) for contender in self._contenders()]
        chosen = {
            size: some_variants(variants, math.lcm(size, count))
            for size in {1, *self.config.batch_sizes}
        }
        for line in lines:
            size = line.contender.batch_size
            line.contender.measure(chosen[size][:size])
        for _ in range(self.config.rounds):
            for line in lines:
                line.measurements.append(line.contender.measure(chosen[line.contender.batch_size]))
        for line in lines:
            if line.contender.name in plans:
                line.clock = PhaseClock(partial(synchronize, device))
                size = line.contender.batch_size
                line.profiled = line.contender.measure(chosen[size], line.clock)
        return lines

    def _plan(self, method: str) -> Plan:
        """The plan of expand.py; a classifier or CLIP that guides has random weights."""
        from expansion.benchmarks.random_networks import random_clip

        config = self.config
        given = {
            "dataset": config.dataset,
            "data_dir": config.data_dir,
            "method": method,
            "num_images_per_prompt": config.num_images_per_prompt,
            "pretrained_model_name_or_path": config.pretrained_model_name_or_path,
            "num_inference_steps": config.num_inference_steps,
            "resolution": config.resolution,
            "split": 0,
            "total_split": 1,
        }
        fields = dataclasses.fields(import_object(expand.SAMPLERS[method][0]))
        names = {field.name for field in fields}
        if "encoder_weight_path" in names:
            given["encoder_weight_path"] = self._random_guide()
        if "clip_model" in names:
            given["clip_model"] = random_clip(self.folder / "clip", config.full_size is not None)
        line = [f"--{name}={value}" for name, value in given.items() if value is not None]
        run_config, method_config, _ = expand.parse(line)
        return make_plan(run_config, method_config)

    def _random_guide(self) -> Path:
        import torch

        from expansion.classifier.backbones import Classifier, classifier_state
        from expansion.classifier.recipe import Recipe
        from expansion.data.datasets import load_dataset

        dataset = load_dataset(self.config.dataset, self.config.data_dir)
        recipe = dataset.config.classifier or {}
        arch = self.config.guide_arch or recipe.get("arch", Recipe.arch)
        size = recipe.get("image_size", Recipe.image_size)
        path = self.folder / "guide.pth.tar"
        state = classifier_state(Classifier(arch, len(dataset.class_names), size))
        torch.save({**state, "class_names": list(dataset.class_names)}, path)
        return path

    def _load(self) -> Pipeline:
        from expansion.benchmarks.random_networks import random_pipeline
        from expansion.diffusion.stable_diffusion import ddim_scheduler, load_pipeline

        # One checkpoint for all: the plans refused methods that need another kind.
        first = next(iter(self.plans.values()))
        image_unet = first.method_config.needs_image_unet
        pipeline = load_pipeline(first.model, self.dtype, self.device, image_unet=image_unet)
        if self.config.full_size is not None:
            scheduler = ddim_scheduler(pipeline)
            pipeline = random_pipeline(
                self.config.full_size,
                pipeline.tokenizer,
                scheduler,
                self.dtype,
                self.device,
                image_unet,
            )
            pipeline.set_progress_bar_config(disable=True)
        if self.config.compile:
            pipeline.unet.compile_repeated_blocks()
        return pipeline

    def _facts(self) -> dict[str, Any]:
        import torch

        from expansion.benchmarks.sampling_arms import matrix_rate, unet_flops
        from expansion.diffusion.stable_diffusion import default_resolution

        resolution = self.config.resolution or default_resolution(self.pipeline)
        unet = self.pipeline.unet
        name = "CPU"
        if self.pipeline.device.type == "cuda":
            name = torch.cuda.get_device_name(self.pipeline.device)
        return {
            "device": name,
            "threads": torch.get_num_threads(),
            "dtype": self.dtype,
            "resolution": resolution,
            "num_images_per_prompt": self.config.num_images_per_prompt,
            "rounds": self.config.rounds,
            "flops_per_row": unet_flops(unet, resolution // self.pipeline.vae_scale_factor),
            "matrix_rate": matrix_rate(self.pipeline.device, unet.dtype),
        }

    def _contenders(self) -> list[Contender]:
        from expansion.benchmarks.sampling_arms import (
            Contender,
            diffusers_pipeline,
            diffusers_run,
            our_run,
        )
        from expansion.diffusion.families import STABLE_DIFFUSION_XL, family_of
        from expansion.diffusion.variants import Drawing

        is_xl = family_of(self.pipeline) is STABLE_DIFFUSION_XL
        contenders = []
        for method, plan in self.plans.items():
            drawing = Drawing(
                plan.config.seed, self.facts["resolution"], plan.method_config.resize_mode
            )

            def ours(method=method, plan=plan, drawing=drawing):
                sampler_class = import_object(expand.SAMPLERS[method][1])
                names = plan.dataset.class_names, plan.dataset.prompt_names
                sampler = sampler_class.build(plan.method_config, *names, lambda: self.pipeline)
                sampler.prepare(plan.records)
                return our_run(sampler, drawing)

            # A batch holds whole groups.
            least = plan.method_config.variants_per_group
            for size in sorted({max(size, least) for size in self.config.batch_sizes}):
                contenders.append(Contender(method, size, self.pipeline, ours))
            name, batches, arguments = RIVALS.get(method, ("", False, {}))
            # CycleDiffusion is there for Stable Diffusion 1.x and 2.x alone.
            has_rival = "StableDiffusion" in name or (name and not is_xl)
            if has_rival and self.config.rivals:
                theirs = diffusers_pipeline(name, self.pipeline)
                given = {arguments[key]: getattr(plan.method_config, key) for key in arguments}
                run = diffusers_run(theirs, drawing, plan.method_config, **given)
                for size in self.config.batch_sizes if batches else [1]:
                    title = f"diffusers {type(theirs).__name__}"
                    contenders.append(Contender(title, size, theirs, _always(run)))
        return contenders


def _always(run: Any) -> Callable[[], Any]:
    return lambda: run


def report(lines: Sequence[Line], facts: Mapping[str, Any]) -> str:
    """The two tables as text.

    Args:
        lines: Their lines.
        facts: What was measured, and on which device.
    """
    head = (
        f"{facts['device']}, {facts['threads']} threads, {facts['dtype']}, "
        f"{facts['resolution']} pixels, n {facts['num_images_per_prompt']}, "
        f"median of {facts['rounds']} rounds\n"
        f"U-Net: {facts['flops_per_row'] / 1e9:.3g} GFLOP per row; matrix product: "
        f"{facts['matrix_rate'] / 1e12:.3g} TFLOP/s\n"
    )
    # The speed of all contenders.
    speed = [("", "batch", "images/s", "slowest", "fastest", "rows/s", "rows/image", "peak GB")]
    for line in lines:
        figures = line.figures(facts)
        rates, peak = figures["all_images_per_second"], figures["peak_memory_bytes"]
        speed.append(
            (
                figures["name"],
                str(figures["batch_size"]),
                f"{figures['images_per_second']:.3g}",
                f"{min(rates):.3g}",
                f"{max(rates):.3g}",
                f"{figures['rows_per_second']:.4g}",
                f"{figures['rows_per_image']:.4g}",
                f"{peak / 1e9:.2f}" if peak else "-",
            )
        )
    # What takes the time of our own samplers.
    columns = (*MAIN_PHASES, "other", *BESIDE_PHASES)
    parts: list[tuple[str, ...]] = [
        ("milliseconds per image", "batch", *columns, "overhead", "TFLOP/s", "of product")
    ]
    for line in lines:
        if line.clock is None:
            continue
        seconds = line.seconds_per_image()
        rate = line.network_rate(facts)
        parts.append(
            (
                line.contender.name,
                str(line.contender.batch_size),
                *(f"{1000 * seconds[name]:.3g}" for name in columns),
                f"{100 * line.overhead():.1f} %",
                f"{rate / 1e12:.3g}",
                f"{100 * rate / facts['matrix_rate']:.0f} %",
            )
        )
    notes = (
        "load and write run in threads beside the rest; overhead: other + idle, as a share of the "
        "time.\nTFLOP/s: forward passes of the U-Net over denoise + guide, against the product.\n"
    )
    return f"{head}\n{aligned(speed)}\n\n{aligned(parts)}\n{notes}"


if __name__ == "__main__":
    run_command(main)
