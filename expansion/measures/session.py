"""One command's networks and figures: from images to the rows of its table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expansion.common.config import deciding
from expansion.common.devices import usable_device
from expansion.common.errors import require
from expansion.common.files import check_writable
from expansion.common.progress import SteadyBar
from expansion.images.records import ImageRecord
from expansion.measures import distributions, judges
from expansion.measures.distributions import (
    LEAST_OF_CLASS,
    NEIGHBOURS,
    Reference,
    Sample,
    Settings,
)
from expansion.measures.evaluation import Evaluation, Real, evaluate
from expansion.measures.features.cache import Features, default_cache_dir
from expansion.measures.features.embedding import Embedder
from expansion.measures.features.networks import load_network
from expansion.measures.memorisation import limits_of
from expansion.measures.output import listed, table, worst_lines, write_evaluation
from expansion.measures.sets import (
    HALF,
    OTHER,
    ImageSet,
    MeasureConfig,
    Measured,
    halves,
    zero_lines,
)

logger = logging.getLogger(__name__)


class Session:
    """The networks of one command, and the images that they look at.

    Args:
        config: Settings.
        measured: All images.
    """

    def __init__(self, config: MeasureConfig, measured: Measured):
        self.config, self.measured = config, measured
        self.cache_dir = Path(config.cache_dir) if config.cache_dir else default_cache_dir()
        check_writable(self.cache_dir)
        self.device = usable_device(config.device)
        kind, place = config.network
        self.run_dir = self._run_dir(place if kind == "run" else None, needed=kind == "run")
        place = str(self.run_dir) if kind == "run" else place
        network = load_network(kind, place, measured.dataset, self.device)
        self.embedder = Embedder(network, self.cache_dir, config.batch_size)
        self.judge = self._judge()

    def _run_dir(self, place: str | None, needed: bool) -> Path | None:
        """The run that gives the features, or the labels alone; None: there is none."""
        if place is not None:
            return Path(place)
        name, folder = self.measured.dataset.name, self.config.checkpoint_dir
        found = judges.find_original(folder, name)
        require(
            found is not None or not needed,
            f"no finished run on the real images of {name} alone in {folder}; train one with "
            f"train_original.py -d {self.config.dataset}, or give --features run:DIR, "
            "inception:FILE, clip or dinov2",
        )
        if found is None:
            logger.info(f"no run on the real images alone in {folder}, so no labels are judged")
        return found

    def _judge(self) -> judges.Judge | None:
        """Who says what the images show. Cross-fitted classifiers are trained here."""
        config, dataset, run = self.config, self.measured.dataset, self.run_dir
        require(
            run is not None or not config.cross_fit,
            f"--cross_fit {config.cross_fit} takes its recipe from a run of train_original.py, and "
            f"there is none in {config.checkpoint_dir}",
        )
        if run is None:
            return None
        if config.cross_fit and not config.dry_run:
            return judges.cross_fitted_judge(
                config, run, dataset, self.measured.train, self.cache_dir, self.device
            )
        embedder = self.embedder
        if embedder.network.kind != "run":
            network = load_network("run", str(run), dataset, self.device)
            embedder = Embedder(network, self.cache_dir, config.batch_size)
        return judges.original_judge(run, dataset, embedder)

    @property
    def reference(self) -> Sequence[ImageRecord]:
        """The real images that sets are compared with."""
        return self.measured.test if self.config.reference == "test" else self.measured.train

    def plan(self) -> str:
        """What would be done."""
        measured, config = self.measured, self.config
        lines = [
            f"features: {self.embedder.network.title}",
            f"labels judged by: {self._judge_title()}",
            f"compared with: {len(self.reference)} {config.reference} images",
        ]
        real = ImageSet("real images", [*measured.train, *measured.test])
        for each in (real, *measured.sets):
            missing = self.embedder.missing(each.images)
            lines.append(
                f"{each.name}: {len(each.images)} images, {missing} of them to be embedded"
            )
        lines += [f"output: {each.folder}/evaluation.json, .jsonl" for each in measured.sets]
        return "\n".join(lines)

    def _judge_title(self) -> str:
        if self.config.dry_run and self.config.cross_fit:
            return f"{self.config.cross_fit} classifiers that are trained first, if they were not"
        return self.judge.title if self.judge else "nobody"

    def evaluate(self) -> list[Evaluation]:
        """All sets and zero lines; the files of a set are written as soon as it is measured."""

        measured = self.measured
        real = self._real()
        zero = [self._evaluated(each, real) for each in self._zero_lines()]
        figures = {each.image_set.name: each.figures() for each in zero}
        settings = self.settings()
        found = []
        for image_set in measured.sets:
            found.append(self._evaluated(image_set, real))
            write_evaluation(found[-1], measured, settings, figures)
        return [*found, *zero]

    def _zero_lines(self) -> list[ImageSet]:
        return zero_lines(self.measured, self.reference, self.config.seed)

    def _real(self) -> Real:
        """Features of the real images, and what follows from them."""

        config, measured = self.config, self.measured
        settings = Settings(config.seed, config.paper_images)
        samples = {}
        for name, records in (("train", measured.train), ("test", measured.test)):
            real = ImageSet(f"{name} images", records)
            samples[name] = Sample(self._features(real).features, real.labels)
        references = {name: Reference(sample, settings) for name, sample in samples.items()}
        train, test = samples["train"].features, samples["test"].features
        return Real(
            measured,
            train,
            test,
            references[config.reference],
            references["train"],
            limits_of(train, test),
        )

    def _features(self, image_set: ImageSet) -> Features:
        return self.embedder.embed(image_set.images, _Bar(image_set, "features").advance)

    def _evaluated(self, image_set: ImageSet, real: Real) -> Evaluation:

        found = self._features(image_set)
        judged = None
        if self.judge is not None:
            same = self.judge.saw_sources and self.judge.embedders[0] is self.embedder
            bar = _Bar(image_set, "labels")
            judged = found.logits if same else self.judge.logits(image_set.images, bar.advance)
        by_clip = found.logits if self.embedder.network.kind == "clip" else None
        reference = real.reference
        if image_set.name in (HALF, OTHER) and image_set.folder is None:
            reference = self._other_half(real)
        logger.info(f"{image_set.name}: figures of {len(image_set.images)} images")
        with_paper = reference is real.reference
        return evaluate(image_set, found.features, real, reference, judged, by_clip, with_paper)

    def _other_half(self, real: Real) -> Any:
        """The half of the reference that the zero lines are compared with."""

        _, second = halves(self.reference, self.config.seed)
        names = {record.file_name for record in second}
        chosen = [i for i, r in enumerate(self.reference) if r.file_name in names]
        return Reference(real.reference.sample.take(np.array(chosen)), real.reference.settings)

    def settings(self) -> dict[str, Any]:
        """What the figures depend on beside the images of a set."""

        unimportant = ("exp", "data_dir", "features", "checkpoint_dir", "dry_run")
        given = {k: v for k, v in deciding(self.config).items() if k not in unimportant}
        return {
            **given,
            "features": self.embedder.network.title,
            "network": self.embedder.network.identity,
            "labels_judged_by": self.judge.title if self.judge else None,
            "labels_judged_by_networks": [
                each.network.identity for each in (self.judge.embedders if self.judge else ())
            ],
            "num_train": len(self.measured.train),
            "num_test": len(self.measured.test),
            "neighbours": distributions.NEIGHBOURS,
            "permutations": distributions.PERMUTATIONS,
            "least_of_class": distributions.LEAST_OF_CLASS,
        }

    def report(self, evaluations: Sequence[Evaluation]) -> str:
        """What the command prints."""

        config, network = self.config, self.embedder.network
        names = self.measured.dataset.class_names
        paper = None
        if config.paper_images:
            kind = "FID" if network.kind == "inception" else "Frechet"
            paper = f"{kind}@{config.paper_images}"
        sized = [len(each.classes) for each in evaluations if each.image_set.folder]
        left_out = len(names) - min(sized)
        notes = [
            f"features: {network.title}; compared with {len(self.reference)} {config.reference} "
            f"images; coverage and density by {NEIGHBOURS} neighbours at equal numbers",
            f"recognised: by {self._judge_title()}",
            *(
                [f"{paper}: {config.paper_images} images against all training images"]
                if paper
                else []
            ),
            *(
                [
                    f"by class: of classes with {LEAST_OF_CLASS} images on either side; up to "
                    f"{left_out} of {len(names)} have fewer"
                ]
                if left_out
                else []
            ),
        ]
        parts = [table(evaluations, paper), *worst_lines(evaluations, names), *listed(evaluations)]
        return "\n".join([parts[0], "", *parts[1:], *notes])


class _Bar:
    """Progress of a network over the images of a set; closed when all are done."""

    def __init__(self, image_set: ImageSet, title: str):
        self.options: dict[str, Any] = {
            "desc": f"{image_set.name}: {title}",
            "total": len(image_set.images),
            "unit": "image",
            "disable": None,
        }
        self.bar: SteadyBar | None = None
        self.done = 0

    def advance(self, count: int) -> None:
        if self.bar is None:
            self.bar = SteadyBar(**self.options)
        self.bar.update(count)
        self.done += count
        if self.done >= self.options["total"]:
            self.bar.close()
