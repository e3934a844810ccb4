"""Lays out the variants of several expanded sets side by side, as one picture.

    python -m expansion.report.paired --classes 0 3 8 \\
        data/digits_expansion/img2img_10x data/digits_expansion/distdiff_10x

A row for each of a few real images; beside it what each set has made of it, under one number and
from the same noise. Sets whose noise differs are refused: they show two things at once.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from expansion.common.errors import InputError, require, run_command, shown, unknown_name
from expansion.common.option_parser import OptionParser
from expansion.images.records import ImageRecord
from expansion.images.variants import VariantKey
from expansion.pictures.figures import save_contact_sheets
from expansion.report.sets import ExpandedSet, read_set

CELL = 112  # longer side of an image on the sheet, pixels


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line, checked."""
    parser = OptionParser(prog="python -m expansion.report.paired", description=__doc__)
    parser.add_argument("sets", nargs="+", metavar="set", help="folder of an expanded set")
    parser.add_argument(
        "--output",
        default="paired.png",
        help="a PNG file; 20 rows a page, the next ones in paired_2.png etc. (default: paired.png)",
    )
    parser.add_argument(
        "--classes", nargs="+", metavar="CLASS", default=[], help="which (default: all)"
    )
    parser.add_argument(
        "--rows", type=int, default=1, help="real images of each class (default: 1)"
    )
    parser.add_argument(
        "--variants",
        type=int,
        default=1,
        help="variants of each real image and set, the first ones (default: 1)",
    )
    options = parser.parse_args(arguments)
    for name in ("rows", "variants"):
        require(getattr(options, name) > 0, f"{name} {getattr(options, name)}: give 1 or more")
    require(
        options.output.endswith(".png"), f"output {options.output}: give a name that ends in .png"
    )
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output, sets = Path(options.output), [read_set(Path(folder)) for folder in options.sets]
    rows = paired_rows(sets, options.classes, options.rows, options.variants)
    save_contact_sheets(rows, output, headings(sets, options.variants), CELL)
    sys.stdout.write(f"{output}: {len(rows)} real images, {len(sets)} sets\n")


def paired_rows(
    sets: Sequence[ExpandedSet], classes: Sequence[str], num_rows: int, num_variants: int
) -> list[tuple[str, list[Image.Image]]]:
    """Class, real image and variants of each row: number 0 of all sets, then number 1, ...

    Args:
        sets: Two or more of one dataset.
        classes: Which; none: all, in label order.
        num_rows: Real images of each class, the first ones by name; fewer where there are none.
        num_variants: Of each real image.

    Raises:
        InputError: The sets have no such variants in common, or began from different noise.
    """
    require(len(sets) > 1, "give two or more expanded sets")
    common = _common(sets, num_variants)
    _require_same_noise(sets, [(source, k) for source in common for k in range(num_variants)])
    # The first real images of each class.
    by_class: dict[str, list[str]] = {}
    for source, class_name in common.items():
        by_class.setdefault(class_name, []).append(source)
    for name in classes:
        if name not in by_class:
            raise unknown_name("class", name, list(by_class))
    real = sets[0].real_images()
    chosen = [s for name in classes or by_class for s in by_class[name][:num_rows]]
    gone = [source for source in chosen if source not in real]
    require(not gone, f"{sets[0].folder}: its real images {shown(gone, 3)} are not there any more")
    # Their rows.
    return [
        (
            common[source],
            [
                real[source].load(),
                *(_record(e, (source, k)).load() for k in range(num_variants) for e in sets),
            ],
        )
        for source in chosen
    ]


def headings(sets: Sequence[ExpandedSet], num_variants: int) -> list[str]:
    """What stands above the columns: names of folders, with those above them if names recur."""
    count = Counter(each.name for each in sets)
    names = [e.name if count[e.name] == 1 else f"{e.folder.parent.name}/{e.name}" for e in sets]
    numbers = [f" {k}" if num_variants > 1 else "" for k in range(num_variants)]
    return ["real", *(f"{name}{number}" for number in numbers for name in names)]


def _common(sets: Sequence[ExpandedSet], num_variants: int) -> dict[str, str]:
    """Real image -> its class, of those that have the variants in all sets; by label and name."""
    keys = set.intersection(*(set(each.rows) for each in sets))
    first = sets[0].rows
    sources = {s for s, _ in keys if all((s, k) in keys for k in range(num_variants))}
    require(
        bool(sources),
        f"no real image has {num_variants} variants in each of "
        f"{', '.join(str(e.folder) for e in sets)}; give sets of one dataset that expand.py made",
    )
    order = sorted(sources, key=lambda s: (_label(sets[0], s), s))
    return {source: first[source, 0]["class"] for source in order}


def _label(expanded: ExpandedSet, source: str) -> int:
    label = expanded.rows[source, 0].get("label")
    return label if type(label) is int else 0


def _require_same_noise(sets: Sequence[ExpandedSet], keys: Sequence[VariantKey]) -> None:
    for each in sets:
        seeds = {each.rows[key].get("seed") for key in keys}
        require(None not in seeds, f"{each.folder} does not say which noise its images began from")
        require(
            all(each.rows[key]["seed"] == sets[0].rows[key]["seed"] for key in keys),
            f"{each.folder} began from other noise than {sets[0].folder}; make them with one "
            "--seed of expand.py",
        )
        contents = [(e.rows[key].get("source_sha256") for e in (sets[0], each)) for key in keys]
        require(
            all(len({*pair} - {None}) < 2 for pair in contents),
            f"{each.folder} was made of other real images than {sets[0].folder}",
        )


def _record(expanded: ExpandedSet, key: VariantKey) -> ImageRecord:
    record = expanded.record(expanded.rows[key])
    if not record.path.is_file():
        raise InputError(f"{record.path} is missing; run its expand.py command again")
    return record


if __name__ == "__main__":
    run_command(main)
