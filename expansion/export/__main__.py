"""Puts real and generated images into one folder that others can use.

    python -m expansion.export data/caltech-101_expansion/distdiff_5x --merge path/to/merged

    <merged>/train/<class>/   real images for training, and their variants
    <merged>/test/<class>/    real images for testing
    <merged>/*/metadata.jsonl file_name, label, synthetic, source, ... of every image
    <merged>/README.md        a dataset card

torchvision's ImageFolder and Hugging Face's imagefolder number the classes as the dataset does. The
images are links. An image that a plain loader would read differently than this project (on its
side, of 16 bits, with a credit line) is written anew. The same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expansion.common.config import config_hash
from expansion.common.errors import InputError, brief, require, run_command, shown
from expansion.common.files import check_outside, check_writable, claim_folder, remove_partial_files
from expansion.common.option_parser import OptionParser
from expansion.data.datasets import ImageDataset, load_dataset
from expansion.data.layouts.configs import is_known
from expansion.data.naming import loader_folders
from expansion.export.dataset_card import write_card
from expansion.export.merging import Merge, Part, write_images, write_metadata
from expansion.images.content import content_summary, readable_records
from expansion.images.records import ImageRecord
from expansion.store.expanded_set import Asked, read_expansion
from expansion.store.manifest import read_manifest
from expansion.store.selection import select_images

logger = logging.getLogger("export")

IDENTITY_FILE = "export.yaml"
REMEDY = "give another folder to --merge, or remove this one"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = OptionParser(prog="python -m expansion.export", description=__doc__)
    parser.add_argument("set", help="folder of an expanded set")
    parser.add_argument("--merge", required=True, metavar="FOLDER", help="folder to make")
    parser.add_argument(
        "--copy", action="store_true", help="copies instead of links: twice the disk space"
    )
    parser.add_argument(
        "--real",
        choices=("expanded", "all"),
        default="expanded",
        help="which real images for training: those that variants were asked of (as with --shots), "
        "or all (default: expanded)",
    )
    parser.add_argument(
        "--selection", metavar="FILE", help="of python -m expansion.filter: the images to take"
    )
    parser.add_argument(
        "--max_variants",
        type=int,
        help="take only the first so many variants of each real image (default: all)",
    )
    parser.add_argument(
        "-d", "--dataset", help="dataset of the real images; default: as the set says"
    )
    parser.add_argument(
        "--data_dir", help="where named datasets lie; default: as the set says, else data"
    )
    parser.add_argument(
        "--test_fraction",
        type=float,
        help="share of each class for testing, of a dataset without a test split; default: as the "
        "set says",
    )
    parser.add_argument(
        "--on_incomplete",
        choices=("fail", "use"),
        default="fail",
        help="what a set that lacks images does: fail, or use what is there (default: fail)",
    )
    parser.add_argument(
        "--on_error",
        choices=("fail", "skip"),
        default="fail",
        help="what an unreadable image does (default: fail)",
    )
    options = parser.parse_args(arguments)
    number = options.max_variants
    require(number is None or number > 0, f"max_variants {number}: give 1 or more")
    require(
        number is None or options.selection is None,
        "selection names the images to take, and max_variants others; give one",
    )
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the folder; `arguments` defaults to the process's own."""
    # Check everything before a file is written.
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    set_dir, target = Path(options.set), Path(options.merge)
    require(set_dir.is_dir(), f"expanded set {set_dir} does not exist; give a folder of expand.py")
    asked = Asked.read(set_dir)
    dataset = _dataset(options, asked, set_dir)
    check_outside(target, {"the dataset": dataset.root, "the expanded set": set_dir})
    _check_target(target)
    merge = _plan(options, asked, dataset, set_dir)
    # Write images, metadata and card.
    claim_folder(target, IDENTITY_FILE, _identity(merge), REMEDY)
    counts = write_images(merge, target, options.copy)
    write_metadata(merge, target)
    write_card(merge, target, set_dir, asked.facts if asked else {})
    remove_partial_files(target)
    sys.stdout.write(_summary(merge, target, counts))


def _dataset(options: argparse.Namespace, asked: Asked | None, set_dir: Path) -> ImageDataset:
    """The dataset that is given, else the one that the set was made from by its own facts."""
    if options.dataset is not None:
        return load_dataset(options.dataset, options.data_dir or "data", options.test_fraction)
    facts = asked.facts if asked else {}
    name, root, data_dir = (facts.get(key) for key in ("dataset", "root", "data_dir"))
    require(
        all(isinstance(text, str) for text in (name, root, data_dir)),
        f"{set_dir} does not say which dataset it was made from; give it with -d",
    )
    fraction = options.test_fraction
    if fraction is None:
        fraction = facts.get("test_fraction")
    require(
        fraction is None or type(fraction) is float,
        f"{set_dir}: test_fraction {brief(fraction)} is no share; give --test_fraction",
    )
    # The set gives both paths relative to itself, so that everything can be moved together.
    root, data_dir = (os.path.realpath(os.path.join(set_dir, path)) for path in (root, data_dir))
    if not is_known(name):
        name = root
    try:
        return load_dataset(name, options.data_dir or os.path.relpath(data_dir), fraction)
    except InputError as error:
        raise InputError(
            f"{error}; there the set {set_dir} has its real images, if they are elsewhere now give "
            "-d, and --data_dir for a named dataset"
        ) from error


def _check_target(target: Path) -> None:
    """Raise InputError unless the folder is new, empty, or was made by this command."""
    require(target.is_dir() or not target.exists(), f"{target} is no folder; {REMEDY}")
    ours = not target.exists() or (target / IDENTITY_FILE).is_file() or not any(target.iterdir())
    require(ours, f"{target} holds files that this command did not make; {REMEDY}")
    check_writable(target)


def _plan(
    options: argparse.Namespace, asked: Asked | None, dataset: ImageDataset, set_dir: Path
) -> Merge:
    """Find and check all images."""
    # Real images.
    everything = dataset.records("train")
    chosen = everything
    if asked is not None and options.real == "expanded":
        wanted = set(asked.sources)
        chosen = [record for record in everything if record.file_name in wanted]
        if len(chosen) < len(everything):
            logger.info(
                f"{len(everything) - len(chosen)} of {len(everything)} real images for training "
                "were not expanded and are left out; --real all takes them in"
            )
    real, _ = readable_records(chosen, options.on_error)
    test, _ = readable_records(_test_records(dataset), options.on_error)
    # Their variants, and names for all of them.
    sources = {record.file_name: record for record in real}
    others = {record.file_name: record for record in everything}
    generated = read_expansion(
        set_dir, sources, options.on_incomplete, others, options.max_variants
    )
    generated, _ = readable_records(generated, options.on_error)
    if options.selection is not None:
        generated = select_images(options.selection, generated, set_dir, sources)
    require(bool(generated), f"{set_dir} holds no variants of the real images of {dataset.root}")
    rows = {row["file_name"]: row for row in read_manifest(set_dir)}
    folders = loader_folders(dataset.class_names)
    parts = {"train": Part(real, generated), "test": Part(test)}
    parts = {split: part for split, part in parts.items() if part.real}
    return Merge(dataset.name, dataset.class_names, folders, parts, rows)


def _test_records(dataset: ImageDataset) -> list[ImageRecord]:
    try:
        return dataset.records("test")
    except InputError as error:
        logger.info(f"there will be no test split: {error}")
        return []


def _identity(merge: Merge) -> dict[str, Any]:
    """Everything that decides what the folder holds."""
    images = {}
    for split, part in merge.parts.items():
        images[f"{split}_images"] = content_summary(part.real)
        if part.generated:
            images["generated"] = content_summary(part.generated)
    return {
        "dataset": merge.title,
        **images,
        "classes": config_hash(list(merge.folders.items())),
        "rows": config_hash([merge.rows[record.file_name] for record in merge.generated]),
    }


def _summary(merge: Merge, target: Path, counts: Counter[str]) -> str:
    lines = [
        f"{target}/{split}: {len(part.real)} real images"
        + (f", {len(part.generated)} generated" if part.generated else "")
        for split, part in merge.parts.items()
    ]
    lines.append(", ".join(f"{number} {kind}" for kind, number in counts.items() if number))
    for split in merge.parts:
        present = {name for name, _ in merge.counts[split]}
        empty = [name for name in merge.class_names if name not in present]
        if empty:
            lines.append(
                f"no image in {split} of {shown(empty)}: for torchvision's ImageFolder give "
                "allow_empty=True"
            )
    lines.append(f"card: {target / 'README.md'}")
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    run_command(main)
