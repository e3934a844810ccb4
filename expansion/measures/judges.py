"""Classifiers of real images alone that say what generated images show.

A classifier that was trained on the real image recognises its variants too well. Cross-fitted ones
are each trained without a part of the real images, and asked about what was made from that part.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from expansion.classifier.recipe import Recipe
from expansion.common.config import Source, compose, config_hash, deciding, load_yaml
from expansion.common.errors import InputError, require
from expansion.common.seeding import stable_seed
from expansion.data.datasets import ImageDataset
from expansion.images.content import content_summary
from expansion.images.records import ImageRecord
from expansion.measures.features.embedding import Advance, Embedder
from expansion.measures.features.networks import load_network
from expansion.measures.sets import MeasureConfig
from expansion.predict.finished_runs import OPTIONS, RESULTS, find_runs
from expansion.training.experiment import Arm, TrainData, train_seeds
from expansion.training.options import Learning, TrainConfig

logger = logging.getLogger(__name__)

ORIGINAL = "Original"  # arm of runs on the real images as they are
SUPERVISED = Learning(None, "expansion.training.objectives:Supervised")


def find_original(checkpoint_dir: str, dataset: str) -> Path | None:
    """The first finished run, by name, on the real images alone; None: there is none.

    It is not chosen by its accuracy, as that would let the test images decide.

    Args:
        checkpoint_dir: Where runs lie.
        dataset: What folders of results call it.
    """
    for path in sorted(Path(checkpoint_dir, dataset).glob(f"*/seed*/{RESULTS}")):
        try:
            arm = load_yaml(path).values.get("arm")
            find_runs(path.parent)  # has all that is needed
        except InputError:
            continue
        if arm == ORIGINAL:
            return path.parent
    return None


@dataclass(frozen=True)
class Judge:
    """Classifiers with the parts of the real images that each of them has not seen.

    Attributes:
        embedders: One for each part; one alone has seen all.
        part_of: file_name of a real training image -> number of its part.
    """

    embedders: Sequence[Embedder]
    part_of: dict[str, int]
    title: str

    @property
    def saw_sources(self) -> bool:
        return len(self.embedders) == 1

    def missing(self, records: Sequence[ImageRecord]) -> int:
        """Images that a classifier has to look at."""
        return sum(
            embedder.missing(part)
            for embedder, part in zip(self.embedders, self._parts(records), strict=True)
            if part
        )

    def logits(
        self, records: Sequence[ImageRecord], advance: Advance = lambda _: None
    ) -> np.ndarray:
        """(M, N); where there are several classifiers, of one that has not seen the real image."""
        numbers = self._numbers(records)
        found: np.ndarray | None = None
        for number, embedder in enumerate(self.embedders):
            rows = np.flatnonzero(numbers == number)
            if len(rows):
                logits = embedder.embed([records[i] for i in rows.tolist()], advance).logits
                found = np.empty((len(records), logits.shape[1])) if found is None else found
                found[rows] = logits
        return found

    def _parts(self, records: Sequence[ImageRecord]) -> list[list[ImageRecord]]:
        numbers = self._numbers(records)
        return [
            [record for record, k in zip(records, numbers, strict=True) if k == number]
            for number in range(len(self.embedders))
        ]

    def _numbers(self, records: Sequence[ImageRecord]) -> np.ndarray:
        count = len(self.embedders)
        names = [record.source or record.file_name for record in records]
        # Test images were seen by none: any may judge them, and all have their share.
        return np.array([self.part_of.get(n, stable_seed("part", n) % count) for n in names])


def original_judge(run_dir: Path, dataset: ImageDataset, embed_by: Embedder) -> Judge:
    """The one classifier of a run, which saw all real images."""
    return Judge((embed_by,), {}, f"run {run_dir}, which saw the real images they were made from")


def parts_of(records: Sequence[ImageRecord], count: int) -> dict[str, int]:
    """file_name -> part, of equal size in every class, by a hash of the name.

    Raises:
        InputError: A class has a single image: who is trained without it does not know the class.
    """
    sizes = Counter(record.class_name for record in records)
    lone = [name for name, size in sizes.items() if size < 2]
    require(
        not lone,
        f"--cross_fit {count}: class {lone[0] if lone else ''} has one training image alone; leave "
        "the option out",
    )
    require(
        count <= max(sizes.values()),
        f"--cross_fit {count}: no class has so many training images; give at most "
        f"{max(sizes.values())}",
    )
    seen: Counter[str] = Counter()
    found = {}
    for record in sorted(records, key=lambda r: stable_seed("cross-fit", r.file_name)):
        found[record.file_name] = seen[record.class_name] % count
        seen[record.class_name] += 1
    return found


def cross_fitted_judge(
    config: MeasureConfig,
    run_dir: Path,
    dataset: ImageDataset,
    train: Sequence[ImageRecord],
    cache_dir: Path,
    device: str,
) -> Judge:
    """Train one classifier for each part of the real images, or find those that were.

    They get the recipe of a run, but their own number of steps. Each is tested on its own part.

    Args:
        run_dir: Of the run.
        train: Real images that the sets were made from.
        cache_dir: The classifiers' runs lie in it, by what decides them.
    """
    parts = parts_of(train, config.cross_fit)
    recipe = _recipe_of(run_dir, config.cross_fit_steps)
    decisive = [deciding(recipe), content_summary(train), config.cross_fit]
    folder = cache_dir / "cross_fit" / f"{dataset.name}-{config_hash(decisive)}"
    embedders = []
    for number in range(config.cross_fit):
        kept = [r for r in train if parts[r.file_name] != number]
        left_out = [r for r in train if parts[r.file_name] == number]
        arm = Arm(
            name=f"without part {number + 1} of {config.cross_fit}",
            folder=folder / f"part{number}",
            facts={"num_real": len(kept), "num_generated": 0},
            generated=(),
            learning=SUPERVISED,
            learning_config=None,
        )
        data = TrainData(dataset, kept, [], left_out, [])
        train_seeds(TrainConfig(dataset=config.dataset, seeds=(config.seed,)), recipe, data, arm)
        place = str(arm.folder / f"seed{config.seed}")
        network = load_network("run", place, dataset, device)
        embedders.append(Embedder(network, cache_dir, config.batch_size))
    title = (
        f"{config.cross_fit} classifiers of {config.cross_fit_steps} steps, each trained without "
        "the real images that those it judges were made from"
    )
    return Judge(embedders, parts, title)


def _recipe_of(run_dir: Path, num_steps: int) -> Recipe:
    """How a run was trained, for another number of optimiser steps."""
    options = load_yaml(run_dir / OPTIONS).values
    known = {field.name for field in dataclasses.fields(Recipe)}
    chosen = {key: value for key, value in options.items() if key in known}
    if str(chosen.get("weights")).startswith("sha256:"):
        del chosen["weights"]  # of a file that is known by its hash alone: the usual ones then
    own = {
        "budget": "steps",
        "max_train_steps": num_steps,
        "eval_steps": num_steps,
        "val_fraction": 0.0,
        "workers": 0,
    }
    return compose([Recipe], [Source({**chosen, **own}, str(run_dir / OPTIONS))])[0]
