"""AMST, DreamDA's self-training, as an objective: stages 1 and 2 run before it, it is stage 3.

Stages are described in `dreamda/self_training/voting.py`. Files of a run: `stage1/` (a run folder
of its own), `pseudo_labels.*` of stage 2, then the run's usual files of stage 3. A stopped run goes
on in the stage where it stopped. Further rounds add `stage1_round2/` and so on.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dreamda.self_training.config import AmstConfig
from dreamda.self_training.pseudo_labels import (
    PseudoLabel,
    acceptance_warnings,
    read_pseudo_labels,
    relabeled,
    summarize,
    write_pseudo_labels,
    write_report,
)
from dreamda.self_training.voting import HeadTraining, dropout_votes
from expansion.classifier.recipe import Recipe, split_budget
from expansion.common.devices import in_main_process
from expansion.common.seeding import stable_seed
from expansion.images.records import ImageRecord
from expansion.training.objectives import Run, TrainingImages
from expansion.training.softmatch import SoftMatch
from expansion.training.trainer import Trainer

logger = logging.getLogger(__name__)

RESULTS = ("acceptance_rate", "accepted_accuracy", "seed_accuracy")


class SelfTraining(SoftMatch):
    """Stage 3: Eq. 8 on real and accepted images, Eq. 9 on rejected and unlabelled ones."""

    title = "stage 3 of 3"
    summary: Mapping[str, Any] = {}  # of stage 2, see `summarize`

    def results(self) -> Mapping[str, float]:
        return {k: self.summary[k] for k in RESULTS if self.summary.get(k) is not None}

    @classmethod
    def check(cls, recipe: Recipe, config: AmstConfig, num_processes: int) -> None:
        """Raise InputError where a stage would have no step."""
        _recipes(recipe, config)

    @classmethod
    def prepare(cls, images: TrainingImages, config: Any, run: Run) -> SelfTraining:
        """Run stages 1 and 2, or what is left of them; unlabelled images have no part in these."""
        # Stages 1 and 2, as often as there are rounds: heads learn, then vote on every image.
        stage1, stage3 = _recipes(run.recipe, config)
        start = {name: value.clone() for name, value in run.classifier.state_dict().items()}
        labeled, steps = images.real, 0
        for number in range(config.rounds):
            suffix = f"_round{number + 1}" if number else ""
            trainer = _train_heads(labeled, config, stage1, run, f"stage1{suffix}")
            steps += int(trainer.history[-1]["step"])
            path = run.run_dir / f"pseudo_labels{suffix}.jsonl"
            rows = _vote(trainer, images.generated, config, run, path)
            accepted, rejected = relabeled(images.generated, rows, run.class_names)
            labeled = [*images.real, *accepted]
        # What came of the vote, for people.
        if run.accelerator.is_main_process:
            write_report(run.run_dir, images.generated, rows, run.class_names)
            objective: Any = trainer.objective
            num_heads = len(objective.module.heads)
            for line in acceptance_warnings(rows, config, num_heads, run.class_names):
                logger.warning("%s", line)
        # Stage 3: labelled are real and accepted images, unlabelled the rejected ones and others.
        if config.reinit:
            run.classifier.load_state_dict(start)
        unlabeled = [*(rejected if config.consistency else []), *images.unlabeled]
        objective = cls(
            labeled,
            unlabeled,
            config,
            stage3,
            num_classes=run.classifier.num_classes,
            seed=run.seed,
            head_dropout=config.head_dropout,
            mixing=images.mixing,
        )
        if images.unlabeled:
            objective.num_images = config.epoch_images(objective.num_images, len(unlabeled))
        objective.steps_before, objective.summary = steps, summarize(rows, run.class_names)
        return objective


def _recipes(recipe: Recipe, config: AmstConfig) -> tuple[Recipe, Recipe]:
    """Recipes of one round of stage 1, and of stage 3."""
    share, epochs = config.stage1_share, config.stage1_epochs
    return split_budget(recipe, share=share, epochs=epochs, rounds=config.rounds)


def _train_heads(
    records: Sequence[ImageRecord], config: AmstConfig, recipe: Recipe, run: Run, name: str
) -> Trainer:
    """Stage 1; ends at once, with its weights loaded, if it was done before."""
    folder = run.run_dir / name
    folder.mkdir(exist_ok=True)
    objective = HeadTraining(records, config, recipe, stable_seed(name, run.seed))
    trainer = Trainer(dataclasses.replace(run, run_dir=folder), objective)
    trainer.fit_with_bar(run.progress_bar, f"stage 1 of 3{_round(name)}")
    return trainer


def _round(name: str) -> str:
    """Which round a folder or file belongs to, for a progress bar."""
    number = name.partition("_round")[2].partition(".")[0]
    return f", round {number}" if number else ""


def _vote(
    trainer: Trainer,
    records: Sequence[ImageRecord],
    config: AmstConfig,
    run: Run,
    path: Path,
) -> list[PseudoLabel]:
    """Stage 2, unless its file is there."""

    def vote() -> None:
        seed = stable_seed(path.name, run.seed)
        objective: Any = trainer.objective
        module = objective.module
        with run.progress_bar(f"stage 2 of 3{_round(path.name)}", len(records)) as progress:
            votes = dropout_votes(module, records, config, run.recipe, seed, progress)
        seed_labels = torch.tensor([record.label for record in records])
        accepted = votes.accepted(config, len(module.heads), seed_labels)
        rows = [
            PseudoLabel(
                file_name=record.file_name,
                seed_label=record.label,
                pseudo_label=int(votes.labels[i]),
                uncertainty=round(float(votes.uncertainty[i]), 6),
                agreement=int(votes.agreement[i]),
                confidence=round(float(votes.confidence[i]), 6),
                accepted=bool(accepted[i]),
                true_label=record.true_label,
            )
            for i, record in enumerate(records)
        ]
        write_pseudo_labels(path, rows)

    if not path.is_file():
        in_main_process(run.accelerator, vote)
    run.accelerator.wait_for_everyone()
    return read_pseudo_labels(path)
