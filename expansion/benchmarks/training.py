"""Measures how fast classifiers train with this project's loading and with a plain loader.

    python -m expansion.benchmark_training
    python -m expansion.benchmark_training -a resnet18 --workers 2 --image_dir path/to/photos

PNG images are made in a temporary folder and read in two ways, by turns:

    plain   torchvision's ImageFolder, its transforms on PIL images (resize, rotation, random crop,
            flip, normalisation), a DataLoader, and a training loop in float32
    ours    what train_expand.py does: decoded images are kept, the transforms are one step on 8-bit
            pixels, the network is laid out channels last

First the loaders alone are measured, up to normalised batches on the device, then whole training
steps. In its first pass our loader has to decode the images; this has a row of its own. Ratios are
taken within each round, because the load of the machine changes between rounds.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from expansion.common.errors import require, run_command
from expansion.common.option_parser import OptionParser
from expansion.images.file_trees import image_files
from expansion.images.records import ImageRecord

if TYPE_CHECKING:
    from expansion.benchmarks.training_arms import Bench

NUM_CLASSES = 10
STAND_IN = "linear"  # training_rates.LinearClassifier


@dataclass
class Row:
    """Images per second of an arm in each round; `plain` is the arm that it is compared with."""

    title: str
    plain: Row | None = None
    rates: list[float] = field(default_factory=list)

    def ratios(self) -> list[float]:
        """How many times as fast as the plain arm it is, in each round."""
        return [rate / other for rate, other in zip(self.rates, self.plain.rates, strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line above."""
    options = parse_options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from expansion.benchmarks.training_arms import Bench, checked_recipe  # imports torch

    recipe = checked_recipe(options)
    with tempfile.TemporaryDirectory(prefix="benchmark_training_") as folder:
        records = make_images(Path(folder, "images"), options)
        bench = Bench(records, recipe, options, Path(folder))
        kilobytes = statistics.mean(record.path.stat().st_size for record in records) / 1000
        sys.stdout.write(
            f"{len(records)} PNG images of {options.resize_size} pixels, {kilobytes:.0f} kB each\n"
            f"{bench.description()}\n"
        )
        for rows in measurements(bench, options):
            sys.stdout.write(f"\n{table(rows)}\n")
            sys.stdout.flush()


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OptionParser(prog="python -m expansion.benchmark_training", description=__doc__)
    add = parser.add_argument
    add(
        "-a",
        "--arch",
        nargs="*",
        default=[STAND_IN, "resnet10_tiny"],
        help="backbones to train, as for train_expand.py; linear is one linear map, so that "
        "loading decides, as it does beside a GPU; none given: the loaders alone (default: linear "
        "resnet10_tiny)",
    )
    numbers = {
        "num_images": (384, "images in the set: real and generated ones together"),
        "image_size": (224, "side of the network's input, pixels"),
        "resize_size": (256, "side of the PNG images, pixels; the crop is taken from it"),
        "batch_size": (32, "images per step"),
        "workers": (1, "processes that load images; 0: none but the main one"),
        "steps": (20, "steps measured per arm and round"),
        "warmup": (4, "steps before them, not measured"),
        "rounds": (5, "times that every arm has its turn"),
    }
    for name, (default, text) in numbers.items():
        add(f"--{name}", type=int, default=default, help=f"{text} (default: {default})")
    add(
        "--image_dir",
        help="folder of photos, searched in depth, to make the PNG images from; default: smooth "
        "random colours with noise, which make files as large as those of photos",
    )
    add(
        "--mixed_precision",
        choices=("no", "fp16", "bf16"),
        default="no",
        help="autocast of our steps; the plain loop stays in float32 (default: no)",
    )
    add("--compile", action="store_true", help="compile the network of our steps")
    options = parser.parse_args(arguments)
    for name in numbers:
        value, least = getattr(options, name), 0 if name in ("workers", "warmup") else 1
        require(value >= least, f"{name} {value}: give {least} or more")
    require(
        options.num_images >= max(options.batch_size, NUM_CLASSES),
        f"num_images {options.num_images}: give at least {NUM_CLASSES} and a batch",
    )
    return options


def make_images(folder: Path, options: argparse.Namespace) -> list[ImageRecord]:
    """Write PNG images into class folders 0 to 9.

    Args:
        folder: Folder of the class folders.
        options: Number and size of the images, and the folder of photos to make them from.

    Raises:
        InputError: `image_dir` holds no image.
    """
    records = []
    for index, image in enumerate(_images(options)):
        label = index % NUM_CLASSES
        path = folder / str(label) / f"{index:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        name = path.relative_to(folder).as_posix()
        records.append(ImageRecord(path, name, label, str(label)))
    return records


def _images(options: argparse.Namespace) -> Iterator[Image.Image]:
    side, count = options.resize_size, options.num_images
    if options.image_dir is None:
        for index in range(count):
            yield texture(side, np.random.default_rng(index))
        return
    files = image_files(Path(options.image_dir))
    require(bool(files), f"image_dir {options.image_dir}: no images there; give a folder of photos")
    for index in range(count):
        path = files[index % len(files)]
        image = ImageRecord(path, path.name, 0, "").load()
        yield image.resize((side, side), Image.Resampling.BICUBIC)


def texture(side: int, rng: np.random.Generator) -> Image.Image:
    """An image of smooth colours on three scales with noise; its PNG is as large as a photo's.

    Args:
        side: Side of the image, pixels.
        rng: Draws colours and noise.
    """
    pixels = np.full((side, side, 3), 128.0)
    for cells, contrast in ((4, 60), (16, 30), (64, 15)):
        for channel in range(3):
            coarse = Image.fromarray(rng.normal(0, contrast, (cells, cells)).astype(np.float32))
            pixels[..., channel] += coarse.resize((side, side), Image.Resampling.BICUBIC)
    pixels += rng.normal(0, 5, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def measurements(bench: Bench, options: argparse.Namespace) -> Iterator[list[Row]]:
    """Measure the loaders, then the training steps of each backbone; yields the rows of each.

    Args:
        bench: Runs the arms.
        options: Backbones and number of rounds.
    """
    plain = Row("loader, plain")
    rows = [plain, Row("loader, ours, first pass", plain), Row("loader, ours, later", plain)]
    arms = [bench.plain_loader, bench.first_pass, bench.our_loader]
    yield _by_turns(rows, arms, options.rounds)
    for arch in options.arch:
        plain = Row(f"steps, plain, {arch}")
        rows = [plain, Row(f"steps, ours, {arch}", plain)]
        arms = [partial(bench.plain_steps, arch), partial(bench.our_steps, arch)]
        yield _by_turns(rows, arms, options.rounds)


def _by_turns(rows: list[Row], arms: list[Callable[[], float]], rounds: int) -> list[Row]:
    for _ in range(rounds):
        for row, arm in zip(rows, arms, strict=True):
            row.rates.append(arm())
    return rows


def table(rows: Sequence[Row]) -> str:
    """A table with the smallest, median and largest rate of each row, and of its ratios."""
    width = max(34, *(len(row.title) for row in rows))
    lines = [f"{'':{width}}   images/s: min  median     max   times plain: min  median   max"]
    for row in rows:
        low, middle, high = _spread(row.rates)
        line = f"{row.title:{width}}  {low:13.1f} {middle:7.1f} {high:7.1f}"
        if row.plain is not None:
            low, middle, high = _spread(row.ratios())
            line += f"  {low:16.2f} {middle:7.2f} {high:5.2f}"
        lines.append(line)
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return min(values), statistics.median(values), max(values)


if __name__ == "__main__":
    run_command(main)
