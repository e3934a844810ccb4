"""Finds expanded sets for the page: their folders, the images that they hold, and their cost."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expansion.common.config import CONFIG_DIR, load_yaml
from expansion.common.errors import JSON_ERRORS, InputError
from expansion.data.datasets import load_dataset
from expansion.generation.plan import IDENTITY_FILE
from expansion.images.records import ImageRecord
from expansion.images.variants import VariantKey
from expansion.metrics.run_folder import Run
from expansion.metrics.runs import Row, folders_below, natural_key
from expansion.metrics.set_figures import SET_FOLDER
from expansion.store.expanded_set import Asked
from expansion.store.manifest import ManifestReader, read_manifest
from expansion.store.other_sets import images_of_others
from expansion.store.places import EXPANSION, generated_record

SELECTION_FILE = "expanded_set.selection_file"  # in results.yaml, relative to the run's folder


@dataclass(eq=False)
class ExpandedSet:
    """What is known about an expanded set on disk.

    Attributes:
        folder: Its folder.
        dataset: Name of its dataset; empty if it is not known.
        identity: Settings that it was begun with.
        facts: Facts of the last expand.py; see `expansion.generation.identity.facts_of`.
        rows: Manifest rows of the images that were asked for.
        seconds: Seconds of all processes together; None in sets of older versions.
        num_bytes: Bytes of all files.
        images: file_name of an image -> its key in `rows`.
    """

    folder: Path
    dataset: str
    identity: Mapping[str, Any]
    facts: Mapping[str, Any]
    rows: Mapping[VariantKey, Mapping[str, Any]]
    seconds: float | None
    num_bytes: int
    images: Mapping[str, VariantKey] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    @property
    def unet_rows(self) -> float | None:
        """U-Net rows that all images took, and what was trained for them; None if not known."""
        per_image = self.facts.get("unet_rows_per_image")
        known = type(per_image) in (int, float) and 0 <= per_image < 1e9
        training = self.facts.get("training_unet_rows")
        before = training if type(training) in (int, float) and 0 <= training < 1e15 else 0
        return per_image * len(self.rows) + before if known else None

    def variant(self, source: str, class_name: str, number: int) -> Mapping[str, Any] | None:
        """The row of a variant of a real image; of a set that tells no real images, of its class.

        Args:
            source: File name of the real image.
            class_name: Its class.
            number: Of the variant, from 0; of the images of the class, if no real one is known.
        """
        if any(known for known, _ in self.rows):
            return self.rows.get((source, number))
        mine = [row for row in self.rows.values() if row["class"] == class_name]
        return mine[number] if number < len(mine) else None

    def record(self, row: Mapping[str, Any]) -> ImageRecord:
        """The image of a manifest row; raises InputError if that is outside the folder."""
        return generated_record(self.folder, row, 0, row["class"])

    def real_images(self) -> dict[str, ImageRecord]:
        """file_name -> real image as it is today; raises InputError if they are gone."""
        dataset, root = self.facts.get("dataset"), self.facts.get("root")
        if not isinstance(dataset, str) or not isinstance(root, str):
            raise InputError(
                f"{self.folder} does not say where its real images lie; the same expand.py "
                "command notes it when it is run again"
            )
        named = (CONFIG_DIR / "datasets" / f"{dataset}.yaml").is_file()
        name = dataset if named else os.path.normpath(self.folder / root)
        data_dir = os.path.normpath(self.folder / str(self.facts.get("data_dir", "data")))
        if named and not os.path.isdir(os.path.normpath(self.folder / root)):
            raise InputError(f"{root}, seen from {self.folder}, is not there any more")
        dataset = load_dataset(name, data_dir, self.facts.get("test_fraction"))
        return {record.file_name: record for record in dataset.records("train")}


def find_sets(root: str, rows: Iterable[Row]) -> tuple[list[ExpandedSet], list[str]]:
    """Find the sets below a folder and those that runs learnt from.

    Args:
        root: The folder.
        rows: Arms, whose runs may tell the folder of their set.

    Returns:
        The sets, and for each one that cannot be read the reason.
    """
    datasets: dict[str, str] = {}
    for row in rows:
        for run in row.runs:
            folder = set_folder(run)
            if folder is not None:
                datasets.setdefault(os.path.realpath(folder), row.text("dataset"))
    below = [folder for folder, files in folders_below(root) if IDENTITY_FILE in files]
    for place in sorted(below, key=natural_key):
        datasets.setdefault(os.path.realpath(place), "")
    sets, problems = [], []
    for path, dataset in datasets.items():
        try:
            expanded = read_set(Path(path), dataset)
        except (InputError, OSError) as error:
            problems.append(str(error))
            continue
        if expanded.rows:
            sets.append(expanded)
    return sets, problems


def set_folder(run: Run) -> Path | None:
    """The folder of the expanded set that a run learnt from; None if it is not known or gone."""
    folder = run.facts.get(SET_FOLDER)
    path = Path(os.path.normpath(Path(run.folder, str(folder)))) if folder else None
    return path if path is not None and path.is_dir() else None


def read_set(folder: Path, dataset: str = "") -> ExpandedSet:
    """Read an expanded set.

    Args:
        folder: Its folder.
        dataset: Name of its dataset; default: from the folder above it or its own facts.

    Raises:
        InputError: Its files hold something else.
    """
    path = folder / IDENTITY_FILE
    identity = load_yaml(path).values if path.is_file() else {}
    asked = Asked.read(folder)
    rows: dict[VariantKey, Mapping[str, Any]] = {}
    wanted = set(asked.sources) if asked else None
    for row in read_manifest(folder):
        if asked is None or (row["source"] in wanted and row["variant"] < asked.num_variants):
            rows[row["source"], row["variant"]] = row
    if not rows and asked is None:
        rows = _rows_of_others(folder)
    facts = asked.facts if asked else {}
    return ExpandedSet(
        folder=folder,
        dataset=dataset or _dataset_of(folder, facts),
        identity=identity,
        facts=facts,
        rows=rows,
        seconds=_seconds(folder),
        num_bytes=sum(_sizes(folder)),
        images={row["file_name"]: pair for pair, row in rows.items()},
    )


def _rows_of_others(folder: Path) -> dict[VariantKey, Mapping[str, Any]]:
    """Rows of a set that expand.py did not make, numbered for each real image."""
    rows: dict[VariantKey, Mapping[str, Any]] = {}
    seen: Counter[str] = Counter()
    for name, class_name, source in images_of_others(folder):
        number = seen[source]
        seen[source] += 1
        row = {"file_name": name, "class": class_name, "source": source, "variant": number}
        rows[source, number] = row
    return rows


def _dataset_of(folder: Path, facts: Mapping[str, Any]) -> str:
    if folder.parent.name.endswith(EXPANSION):
        return folder.parent.name.removesuffix(EXPANSION)
    root = facts.get("root")
    return os.path.basename(os.path.normpath(folder / root)) if isinstance(root, str) else ""


def _seconds(folder: Path) -> float | None:
    """The seconds that the units of all processes took; None if no unit is noted."""
    total, any_unit = 0.0, False
    for line in ManifestReader(folder).new_lines():
        if not line.is_event:
            continue
        try:
            event = json.loads(line.text)
            if event["event"] == "unit":
                total, any_unit = total + max(float(event["seconds"]), 0.0), True
        except (*JSON_ERRORS, KeyError, TypeError):
            continue
    return total if any_unit else None


def _sizes(folder: Path) -> Iterable[int]:
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                yield os.stat(os.path.join(parent, name)).st_size
            except OSError:
                continue


def by_dataset(sets: Sequence[ExpandedSet]) -> dict[str, list[ExpandedSet]]:
    """Name of a dataset -> its expanded sets."""
    groups: dict[str, list[ExpandedSet]] = {}
    for each in sets:
        groups.setdefault(each.dataset, []).append(each)
    return groups
