"""Measure generated sets before anybody trains on them.

    python -m expansion.evaluate -d digits --exp img2img_10x other_10x

One row per set, and three of real images for comparison: half of the real images against the other
half, the training images as they are, and the half under the names of other classes. Beside each
set stand then evaluation.json and, image by image, evaluation.jsonl. docs/measures.md says what the
figures mean. Features are kept, so that a command that was stopped goes on.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from expansion.common.errors import require
from expansion.common.files import check_writable
from expansion.common.option_parser import OptionParser
from expansion.measures.sets import MeasureConfig, Measured, halves, read_images


def parse(arguments: Sequence[str] | None = None) -> MeasureConfig:
    """The settings of a command line."""
    parser = OptionParser(prog="python -m expansion.evaluate", description=__doc__)
    return parser.read(arguments, {"options": MeasureConfig}).compose(MeasureConfig)[0]


def main(arguments: Sequence[str] | None = None) -> None:
    config = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    measured = read_images(config)
    _check_reference(config, measured)
    _check_paper(config, measured)
    for image_set in measured.sets:
        check_writable(image_set.folder)
    from expansion.measures.session import Session

    session = Session(config, measured)
    if config.dry_run:
        sys.stdout.write(session.plan() + "\n")
        return
    sys.stdout.write(session.report(session.evaluate()) + "\n")


def _check_reference(config: MeasureConfig, measured: Measured) -> None:
    """Raise InputError unless a distance is defined from half of the reference to the other."""
    reference = measured.test if config.reference == "test" else measured.train
    half, _ = halves(reference, config.seed)
    require(
        len(half) > 1,
        f"--reference {config.reference}: half of these real images of each class, which is "
        f"compared with the other half, is {len(half)} in all, and two are needed; give another "
        "--reference, or sets of more real images",
    )


def _check_paper(config: MeasureConfig, measured: Measured) -> None:
    """Raise InputError unless every set has the images that the papers' columns ask for."""
    for image_set in measured.sets:
        count = len(image_set.images)
        require(
            config.paper_images is None or count >= config.paper_images,
            f"--paper_images {config.paper_images}: {image_set.folder} has {count} images; two "
            "numbers cannot stand in one table, so give no more than the smallest set has",
        )
