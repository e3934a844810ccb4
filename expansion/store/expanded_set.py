"""What an expanded set holds on disk: which images are whole, and the images as records.

Manifest rows say what was true when an image was made. They are compared with the real images of
today. An image does not count if its real image is gone or has another label now, if the last
expand.py did not ask for its real image or for its number, or if it exists twice. If its real image
has other content now, that is an error.

    <output>/plan.json   what the last expand.py asked for
    <output>.stale/      images that expand.py moved out of the way of loaders of folders
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from expansion.common.errors import InputError, require, shown
from expansion.common.files import write_atomic
from expansion.common.texts import read_json
from expansion.data.stored_splits import listed_names
from expansion.images.records import ImageRecord, PackedRecord
from expansion.images.variants import Variant, VariantKey
from expansion.store.manifest import ManifestReader, manifest_paths, read_manifest
from expansion.store.other_sets import read_other_set
from expansion.store.places import Place, generated_record, holds_image, image_place

logger = logging.getLogger(__name__)

Sources = Mapping[str, ImageRecord]  # file_name -> real image as it is today

PLAN_FILE = "plan.json"
# Why an image does not count.
GONE = "of real images that are not there any more"
RELABELLED = "made under another label than their real image has now"
UNASKED = "of real images that were not asked for"
SURPLUS = "beyond the number of variants asked for"
TWICE = "made twice"
OTHERS = "of real images that are not trained on"
CHANGED = "of real images whose content has changed"


def fault_of(row: Mapping[str, Any], sources: Sources) -> str | None:
    """Why the image of a manifest row does not belong to today's real images; None if it does.

    Args:
        row: Manifest row.
        sources: The real images as they are today.
    """
    source = sources.get(row["source"])
    if source is None:
        return GONE
    if row["class"] != source.class_name:
        return RELABELLED
    # Rows of older versions do not say what their real image held.
    contents = row.get("source_sha256"), source.content
    return CHANGED if None not in contents and contents[0] != contents[1] else None


def refuse_other_content(output_dir: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Raise InputError if there are any rows; their real images have other content today."""
    names = sorted({row["source"] for row in rows})
    if names:
        raise InputError(
            f"{output_dir} was made from other images of the same names: {len(names)} have "
            f"another content now ({shown(names, 3)}); give another --exp, or --name if this is "
            "another dataset, or give the new images new names, or remove the folder"
        )


class StoredImage(NamedTuple):
    """An image as a manifest lists it."""

    row: Mapping[str, Any]
    place: Place

    @property
    def is_whole(self) -> bool:
        """Whether the file exists and holds this image; opens the file."""
        return holds_image(self.place, self.row.get("png_crc32"))


class StoredSet:
    """The images of a set that are on disk, made by any process; `refresh` reads about new ones.

    Args:
        output_dir: Folder of the expanded set.
        sources: The real images as they are today.

    Attributes:
        stale: Rows that do not count, by the reason.
        failed: Keys of the variants that could not be made.
    """

    def __init__(self, output_dir: Path, sources: Sources):
        self.output_dir = output_dir
        self.sources = sources
        self.stale: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        self.failed: set[VariantKey] = set()
        self._images: dict[VariantKey, list[StoredImage]] = defaultdict(list)
        self._manifests = ManifestReader(output_dir)
        self.refresh()

    def refresh(self) -> None:
        """Read what manifests list beyond what was read before."""
        for line in self._manifests.new_lines():
            if line.is_event:
                self.failed |= line.failed()
                continue
            row = line.row()
            fault = fault_of(row, self.sources)
            if fault:
                self.stale[fault].append(row)
                continue
            image = StoredImage(row, image_place(self.output_dir, row))
            listed = self._images[row["source"], row["variant"]]
            if image not in listed:
                listed.append(image)

    def find(self, variant: Variant) -> StoredImage | None:
        """The whole image of a variant, the latest of several; None without one.

        Opens the file.
        """
        listed = self._images.get(variant.key, ())
        return next((image for image in reversed(listed) if image.is_whole), None)

    def missing(self, variants: Iterable[Variant]) -> list[Variant]:
        """The variants without a whole image, in their order; opens the files of the others."""
        return [variant for variant in variants if self.find(variant) is None]

    def check_sources(self) -> None:
        """Raise InputError if the set was made from other images than today's real ones."""
        refuse_other_content(self.output_dir, self.stale.get(CHANGED, ()))
        if GONE in self.stale and not self._images and RELABELLED not in self.stale:
            names = sorted({row["source"] for row in self.stale[GONE]})
            raise InputError(
                f"{self.output_dir} was made from another dataset: none of its {len(names)} real "
                f"images is here ({shown(names, 3)}); give another --exp, or --name to tell "
                "datasets of one name apart"
            )

    def set_stale_aside(self) -> None:
        """Move images that do not count into `<output>.stale`, since loaders of folders take all.

        Images in tars stay, and so do files that are not the image of their row any more.
        """
        aside = self.output_dir.with_name(f"{self.output_dir.name}.stale")
        for reason in (GONE, RELABELLED):
            num_moved = 0
            for row in self.stale.get(reason, ()):
                place = image_place(self.output_dir, row)
                if place.byte_range or not holds_image(place, row.get("png_crc32")):
                    continue
                target = aside / row["file_name"]
                target.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # another process was quicker
                    place.path.replace(target)
                    num_moved += 1
                with contextlib.suppress(OSError):  # unless the class has other images
                    place.path.parent.rmdir()
            if num_moved:
                logger.info(f"{num_moved} images {reason}: moved to {aside}")


@dataclass(frozen=True)
class Asked:
    """What the last expand.py asked for.

    Attributes:
        num_variants: Number of variants of each real image.
        sources: file_name of every real image.
        facts: Facts for reports, such as where the real images are and what an image costs.
    """

    num_variants: int
    sources: Sequence[str]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exclusive(self) -> frozenset[str] | None:
        """Names of the only real images whose variants count; None: those of all.

        A folder that was asked for one part of a cross-validation holds other parts besides.
        """
        return None if self.facts.get("fold") else frozenset(self.sources)

    @property
    def trained_on(self) -> frozenset[str]:
        """Names of the real images that a classifier learns from beside the set."""
        names = self.facts.get("training_images")
        return frozenset(names if isinstance(names, list) else self.sources)

    def write(self, output_dir: Path) -> None:
        """Write it to the folder, for the commands that use the set."""
        content = {
            "num_images_per_prompt": self.num_variants,
            **self.facts,
            "real_images": list(self.sources),
        }
        write_atomic(output_dir / PLAN_FILE, json.dumps(content, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, output_dir: Path) -> Asked | None:
        """Read what `write` wrote; None in a folder of an older version.

        Raises:
            InputError: The file holds something else.
        """
        path = output_dir / PLAN_FILE
        if not path.is_file():
            return None
        content = read_json(path, dict)
        number = content.get("num_images_per_prompt")
        if type(number) is not int or number < 1:
            raise InputError(f"{path}: expected num_images_per_prompt; run expand.py again")
        names = listed_names(path, content, "real_images")
        known = ("num_images_per_prompt", "real_images")
        return cls(number, names, {k: v for k, v in content.items() if k not in known})


def current_rows(
    output_dir: Path,
    rows: Iterable[dict[str, Any]],
    sources: Sources,
    num_variants: int | None,
    asked: Container[str] | None = None,
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Choose the rows that count, at most one for each real image and number.

    Args:
        output_dir: Folder of the expanded set.
        rows: Rows as `read_manifest` gives them.
        sources: The real images as they are today.
        num_variants: Number of variants that are asked for; None: all.
        asked: Names of the real images whose variants are asked for; None: all.

    Returns:
        The rows, sorted by file name, and how many others there are, by the reason.

    Raises:
        InputError: Real images have other content than when their variants were made.
    """
    chosen: dict[VariantKey, dict[str, Any]] = {}
    left_out: Counter[str] = Counter()
    changed = []
    for row in rows:
        pair = row["source"], row["variant"]
        # Why the row does not count; of two for one variant the one with a whole image does.
        fault = fault_of(row, sources)
        if fault is None and asked is not None and row["source"] not in asked:
            fault = UNASKED
        if fault is None and num_variants is not None and row["variant"] >= num_variants:
            fault = SURPLUS
        if fault is None and pair in chosen:
            fault = TWICE
            place = image_place(output_dir, row)
            if not holds_image(image_place(output_dir, chosen[pair]), None) and holds_image(
                place, row.get("png_crc32")
            ):
                chosen[pair] = row
        if fault is None:
            chosen[pair] = row
            continue
        left_out[fault] += 1
        if fault == CHANGED:
            changed.append(row)
    refuse_other_content(output_dir, changed)
    return sorted(chosen.values(), key=lambda row: row["file_name"]), left_out


def read_expansion(
    output_dir: Path,
    sources: Sources,
    on_incomplete: str = "fail",
    others: Sources | None = None,
    max_variants: int | None = None,
) -> list[ImageRecord]:
    """The images of a set that count, as records with today's labels of their real images.

    A folder without manifests is a set of another tool; see `read_other_set`. How many images are
    left out, and why, is logged.

    Args:
        output_dir: Folder of the expanded set.
        sources: The real images whose variants are wanted, as they are today, by file name.
        on_incomplete: What happens if images are missing that were asked for: "fail" raises, "use"
            goes on with the others after a warning.
        others: Further real images of the dataset, for testing too; their variants are left out.
        max_variants: The set counts as if no more variants of each image had been asked for.

    Raises:
        InputError: There are no images, a manifest names a file outside the folder, the set was
            made from other real images, it was asked for fewer variants than `max_variants`, or
            images are missing and `on_incomplete` is "fail".
    """
    # The rows that count.
    rows = read_manifest(output_dir)
    if not rows:
        return _records_of_others(output_dir, sources, others or {}, max_variants)
    asked = Asked.read(output_dir)
    num_variants = asked.num_variants if asked else None
    if max_variants is not None:
        made = num_variants or 1 + max(row["variant"] for row in rows)
        require(
            max_variants <= made,
            f"{output_dir} holds {made} variants of each image, max_variants {max_variants} asks "
            "for more",
        )
        num_variants = max_variants
    known = {**(others or {}), **sources}
    names = asked.exclusive if asked else None
    rows, left_out = current_rows(output_dir, rows, known, num_variants, names)
    left_out[OTHERS] = sum(row["source"] not in sources for row in rows)
    rows = [row for row in rows if row["source"] in sources]
    for reason, number in sorted((+left_out).items()):
        logger.info(f"{output_dir}: {number} images are left out, {reason}")
    # Those whose files exist, and what is missing of what was asked for.
    records = _records_that_are_there(output_dir, rows, sources)
    expected = {(row["source"], row["variant"]) for row in rows}
    if asked:
        numbers = range(num_variants)
        expected = {(name, k) for name in asked.sources if name in sources for k in numbers}
    absent = expected - set(records)
    if absent:
        _report_absent(output_dir, absent, len(expected), on_incomplete)
    return list(records.values())


def is_other_set(output_dir: Path) -> bool:
    """Whether a folder holds what another tool made: neither a manifest nor a plan is there."""
    return not (output_dir / PLAN_FILE).is_file() and not manifest_paths(output_dir)


def _records_of_others(
    output_dir: Path, sources: Sources, others: Sources, max_variants: int | None
) -> list[ImageRecord]:
    """The images of a set that expand.py did not make, but those of `others`."""
    if not is_other_set(output_dir) or not output_dir.is_dir():
        raise InputError(f"{output_dir} holds no expanded set; make it first with expand.py")
    require(
        max_variants is None,
        f"{output_dir} was not made by expand.py, so its images have no numbers; leave out "
        "--max_variants",
    )
    known = {**others, **sources}
    labels = {record.label: record.class_name for record in known.values()}
    classes = {labels[label]: label for label in sorted(labels)}
    records = read_other_set(output_dir, classes, known)
    kept = [r for r in records if r.source not in known or r.source in sources]
    if len(kept) < len(records):
        logger.info(f"{output_dir}: {len(records) - len(kept)} images are left out, {OTHERS}")
    return kept


def _records_that_are_there(
    output_dir: Path, rows: Iterable[Mapping[str, Any]], sources: Sources
) -> dict[VariantKey, ImageRecord]:
    sizes: dict[Path, int] = {}
    records: dict[VariantKey, ImageRecord] = {}
    for row in rows:
        source = sources[row["source"]]
        record = generated_record(output_dir, row, source.label, source.class_name)
        if record.path not in sizes:
            sizes[record.path] = record.path.stat().st_size if record.path.is_file() else -1
        end = sum(record.byte_range) if isinstance(record, PackedRecord) else 0
        if end <= sizes[record.path]:
            records[row["source"], row["variant"]] = record
    return records


def _report_absent(
    output_dir: Path, absent: Iterable[VariantKey], num_expected: int, on_incomplete: str
) -> None:
    names = [f"variant {number} of {source}" for source, number in sorted(absent)]
    message = f"{output_dir}: {len(names)} of {num_expected} images are missing ({shown(names, 3)})"
    if on_incomplete == "fail":
        raise InputError(
            f"{message}; run the same expand.py command again to make them (every shard, if there "
            "were several), or go on without them with --on_incomplete use"
        )
    logger.warning(message)
