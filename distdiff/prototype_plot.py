"""Draws prototypes among the features of real and generated images (as the paper's Fig. 6).

    python -m distdiff.prototype_plot -d digits --exp distdiff_10x --classes 0 3 8 \\
        --encoder_weight_path checkpoint/digits/resnet50_unpretrained_lr0.1/seed1/model_best.pth.tar

Features of the guide, at unit length, of the images of some classes, on the two principal axes of
those of the real images; a panel for each number of groups. The paper does not say how its figure
was projected.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from expansion.common.config import option
from expansion.common.devices import usable_device
from expansion.common.errors import InputError, require, run_command, unknown_name
from expansion.common.files import check_outside
from expansion.common.option_parser import OptionParser
from expansion.data.datasets import DEFAULT_DATASET, ImageDataset, load_dataset
from expansion.images.records import ImageRecord
from expansion.pictures.figures import COLOURS, save_figure
from expansion.pictures.scatter import scatter_panels
from expansion.store.expanded_set import read_expansion
from expansion.store.places import expansion_folder

FEW_CLASSES = 3  # that are shown unless some are named


@dataclass(frozen=True, kw_only=True)
class PlotConfig:
    """Settings of the command."""

    dataset: str = option(DEFAULT_DATASET, "dataset name or folder", flags=("-d",))
    data_dir: str = option("data", "where named datasets lie")
    test_fraction: float | None = option(
        None, "share of each class for testing, of a dataset without a test split"
    )
    exp: str | None = option(
        None,
        "expanded set, whose images are shown too: a name, as in <data_dir>/<dataset>_expansion/"
        "<exp>, or a folder; default: real images alone",
    )
    encoder_weight_path: str | None = option(None, "checkpoint of the guide classifier")
    arch: str | None = option(None, "guide backbone, if the checkpoint does not say", flags=("-a",))
    classes: tuple[str, ...] = option(
        (), f"classes to show, at most {len(COLOURS)}; default: the first {FEW_CLASSES}"
    )
    K: tuple[int, ...] = option((1, 2, 3, 4), "numbers of group prototypes, a panel each")
    max_variants: int | None = option(
        None, "show only the first so many variants of each real image; default: all"
    )
    output: str = option("prototypes.png", "the picture, a PNG file")
    device: str = option("auto", "cuda, cpu, ...; auto: a GPU if there is one")

    def __post_init__(self):
        require(
            self.encoder_weight_path is not None,
            "give --encoder_weight_path, the checkpoint of a classifier of train_original.py",
        )
        require(len(self.classes) <= len(COLOURS), f"classes: give at most {len(COLOURS)}")
        require(len(set(self.classes)) == len(self.classes), "classes names one twice")
        require(bool(self.K) and min(self.K) > 0, "K: give one or more positive numbers")
        require(
            self.max_variants is None or self.exp is not None,
            "max_variants is for the images of a set; give --exp too",
        )
        require(
            self.output.endswith(".png"), f"output {self.output}: give a name that ends in .png"
        )


def parse(arguments: Sequence[str] | None = None) -> PlotConfig:
    """The settings of a command line."""
    parser = OptionParser(prog="python -m distdiff.prototype_plot", description=__doc__)
    return parser.read(arguments, {"options": PlotConfig}).compose(PlotConfig)[0]


def main(arguments: Sequence[str] | None = None) -> None:
    config = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # The images of the classes, under labels from 0.
    dataset = load_dataset(config.dataset, config.data_dir, config.test_fraction)
    output = Path(config.output)
    check_outside(output, {"the dataset": dataset.root})
    names = config.classes or dataset.class_names[:FEW_CLASSES]
    real, generated = _records(config, dataset, names)
    # Their features. What needs torch is imported here, so that --help is quick.
    import torch

    from distdiff.prototype_panels import points_of, principal_plane, unit
    from distdiff.prototypes import extract_features
    from expansion.classifier.backbones import load_classifier

    guide = load_classifier(
        _existing(config.encoder_weight_path), arch=config.arch, class_names=dataset.class_names
    ).to(usable_device(config.device))
    numbers = {name: number for number, name in enumerate(names)}
    parts = [
        (extract_features(guide, part), torch.tensor([numbers[r.class_name] for r in part]))
        for part in (real, generated)
        if part
    ]
    plane = principal_plane(unit(parts[0][0]))
    panels = [(f"K = {number}", points_of(plane, parts, len(names), number)) for number in config.K]
    spoken = dict(zip(dataset.class_names, dataset.prompt_names, strict=True))
    picture = scatter_panels(panels, [spoken[name] for name in names], plane.axis_labels)
    save_figure(picture, output)
    sys.stdout.write(f"{output}: {len(real)} real and {len(generated)} generated images\n")


def _records(
    config: PlotConfig, dataset: ImageDataset, names: Sequence[str]
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """The real and the generated images of some classes."""
    for name in names:
        if name not in dataset.class_names:
            raise unknown_name("class", name, dataset.class_names)
    everything = {record.file_name: record for record in dataset.records("train")}
    real = [record for record in everything.values() if record.class_name in names]
    generated: list[ImageRecord] = []
    if config.exp is not None:
        named = expansion_folder(config.data_dir, dataset.name, config.exp)
        folder = Path(config.exp) if Path(config.exp).is_dir() else named
        found = read_expansion(folder, everything, max_variants=config.max_variants)
        generated = [record for record in found if record.class_name in names]
        require(bool(generated), f"{folder} holds no image of {', '.join(names)}")
    absent = [name for name in names if all(record.class_name != name for record in real)]
    require(not absent, f"{dataset.root}: no training image of {', '.join(absent)}")
    return real, generated


def _existing(path: str | None) -> str:
    if path is None or not Path(path).is_file():
        raise InputError(f"encoder_weight_path {path} does not exist; give a classifier's file")
    return path


if __name__ == "__main__":
    run_command(main)
