"""Training and evaluation of one classifier: steps, checkpoints, log, curves, results.

What is learnt from which images is the objective's business; it is passed in.

    <run_dir>/options.yaml        settings, versions, commit
    <run_dir>/log.txt             one row per evaluation
    <run_dir>/checkpoint.pth.tar  after every evaluation; a stopped run goes on from it
    <run_dir>/model_best.pth.tar  at the best test accuracy so far
    <run_dir>/curves.png
    <run_dir>/results.yaml        at the end: the run is done when it exists
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from expansion.backbones import classifier_state
from expansion.config import require
from expansion.figures import line_chart, save_figure, stacked
from expansion.image_datasets import ImageRecord
from expansion.objectives import Objective, Progress, Run, images_in_order
from expansion.recipe import Recipe, Schedule
from expansion.runs import claim_folder, is_done, to_yaml, write_atomic
from expansion.seeding import stable_seed

logger = logging.getLogger(__name__)

HEADER = ("Epoch", "Learning Rate", "Train Loss", "Test Loss", "Train Acc.", "Test Acc.")


@torch.inference_mode()
def evaluate(model: nn.Module, loader: Iterable, accelerator: Accelerator) -> tuple[float, float]:
    """(mean cross-entropy, top-1 accuracy in percent); the model's mode is restored."""
    was_training = model.training
    model.eval()
    losses, hits, count = [], [], 0
    for pixels, targets in loader:
        pixels, targets = pixels.to(accelerator.device), targets.to(accelerator.device)
        logits = model(pixels).float()
        losses.append(F.cross_entropy(logits, targets, reduction="sum"))
        hits.append((logits.argmax(dim=1) == targets).sum())
        count += len(targets)
    # Read at the end alone: a batch need not wait for the one before it.
    sums = [float(sum(torch.stack(parts).tolist())) if parts else 0.0 for parts in (losses, hits)]
    totals = torch.tensor([*sums, count], dtype=torch.float64)
    totals = accelerator.reduce(totals.to(accelerator.device)).tolist()
    model.train(was_training)
    return totals[0] / totals[2], 100 * totals[1] / totals[2]


def eval_loader(
    records: Sequence[ImageRecord], recipe: Recipe, accelerator: Accelerator
) -> Iterable[Sequence[Tensor]]:
    """(network inputs, labels) of this process's share of `records`, in order, on its device."""
    mine = list(records)[accelerator.process_index :: accelerator.num_processes]
    return images_in_order(mine, recipe, accelerator.device)


def make_optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD or AdamW (PyTorch's betas 0.9, 0.999) over all parameters, at the peak learning rate."""
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(
            module.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay
        )
    return torch.optim.SGD(
        module.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )


def check_compiler() -> None:
    """Raise InputError where torch.compile would find no compiler at its first step."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    require(
        any(name and shutil.which(name) for name in names),
        "--compile needs a C++ compiler; install g++, or leave the option out",
    )


class Trainer:
    """Trains the classifier of a run in place.

    Args:
        run: Classifier, images to evaluate on, folder, seed.
        objective: See `Objective`; its recipe says how to train.
    """

    def __init__(self, run: Run, objective: Objective):
        recipe = objective.recipe
        self.run, self.objective, self.recipe = run, objective, recipe
        self.classifier, self.accelerator = run.classifier, run.accelerator
        self.run_dir = run.run_dir
        self.schedule = Schedule(recipe, objective.num_images, 2 * run.accelerator.num_processes)
        self.module = objective.wrap(run.classifier).to(memory_format=torch.channels_last)
        self.model, self.optimizer = run.accelerator.prepare(
            self.module, make_optimizer(self.module, recipe)
        )
        if recipe.compile:
            check_compiler()
            self.model = torch.compile(self.model)  # weights and their names stay `module`'s
        self.test_loader = eval_loader(run.test_records, recipe, run.accelerator)
        self.val_loader = None
        if run.val_records:
            self.val_loader = eval_loader(run.val_records, recipe, run.accelerator)
        self.history: list[dict[str, float]] = []

    def fit(self, progress: Progress) -> dict[str, float]:
        """Train to the end, going on from a checkpoint if there is one.

        Args:
            progress: Called after every step with its number and the last evaluation.

        Returns:
            `best_accuracy` and `last_accuracy` on the test set, percent; with a validation set also
            `selected_accuracy`: the test accuracy of the evaluation that was best on it.
        """
        first = self._resume()
        if first and self.accelerator.is_main_process:
            self._write_log()  # the earlier run may have been killed before it did
        batches = self.objective.batches(self.schedule.batch_sizes, first, self.accelerator)
        self.model.train()
        loss_sum = correct = count = 0.0
        for step, batch in enumerate(batches, start=first):
            loss, hits = self._step(step, batch)
            loss_sum += loss * len(hits)
            correct += hits.sum()
            count += len(hits)
            if self.schedule.evaluates_after(step + 1):
                self._evaluate(step + 1, float(loss_sum) / count, 100 * float(correct) / count)
                loss_sum = correct = count = 0.0
            progress(step + 1, self.history[-1] if self.history else {})
        return self._summary()

    def _step(self, step: int, batch: Any) -> tuple[Tensor, Tensor]:
        torch.manual_seed(stable_seed("step", self.run.seed, step))  # dropout, mixing
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(step)
        self.objective.progress = self.schedule.progress(step)
        device = self.accelerator.device
        batch = [part.to(device, non_blocking=True) for part in batch]
        with self.accelerator.autocast():
            loss, hits = self.objective.loss(self.model, batch)
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach(), hits

    def _evaluate(self, step: int, train_loss: float, train_accuracy: float) -> None:
        test_loss, test_accuracy = evaluate(self.model, self.test_loader, self.accelerator)
        row = {
            "step": step,
            "epoch": step / self.schedule.steps_per_epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": train_loss,
            "test_loss": test_loss,
            "train_accuracy": train_accuracy,
            "test_accuracy": test_accuracy,
        }
        if self.val_loader is not None:
            _, row["val_accuracy"] = evaluate(self.model, self.val_loader, self.accelerator)
        best_before = max((r["test_accuracy"] for r in self.history), default=-1.0)
        self.history.append(row)
        if self.accelerator.is_main_process:
            self._save(step, is_best=test_accuracy > best_before)
            self._write_log()

    def _save(self, step: int, is_best: bool) -> None:
        best = max(row["test_accuracy"] for row in self.history)
        state = {
            **classifier_state(self.classifier),
            "class_names": list(self.run.class_names),
            "epoch": self.history[-1]["epoch"],
            "step": step,
            "acc": self.history[-1]["test_accuracy"],
            "best_acc": best,
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "module": self.module.state_dict() if self.module is not self.classifier else {},
            "objective": dict(self.objective.state_dict()),
        }
        # The checkpoint last: a run killed in between evaluates again and finds the best again.
        names = (["model_best.pth.tar"] if is_best else []) + ["checkpoint.pth.tar"]
        for name in names:
            partial = self.run_dir / f".{name}.partial"
            torch.save(state, partial)
            partial.replace(self.run_dir / name)

    def _resume(self) -> int:
        """Load the last checkpoint; returns the number of steps done."""
        path = self.run_dir / "checkpoint.pth.tar"
        if not path.is_file():
            return 0
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.classifier.load_state_dict(state["state_dict"])
        if self.module is not self.classifier:
            self.module.load_state_dict(state["module"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = state["history"]
        logger.info("going on after step %d of %s", state["step"], self.run_dir)
        return state["step"]

    def _write_log(self) -> None:
        """log.txt (tab-separated, as the DistDiff repository writes it) and curves.png."""
        lines = [f"Namespace({self.recipe})", "".join(f"{name}\t" for name in HEADER)]
        best = 0.0
        for row in self.history:
            keys = ("epoch", "lr", "train_loss", "test_loss", "train_accuracy", "test_accuracy")
            lines.append("".join(f"{row[key]:.6f}\t" for key in keys))
            if row["test_accuracy"] > best:
                best = row["test_accuracy"]
                lines.append(f"The best performance:{best}")
        write_atomic(self.run_dir / "log.txt", "\n".join(lines) + "\n")
        steps = [row["step"] for row in self.history]

        def curves(kind: str) -> dict[str, list[tuple[float, float]]]:
            names = [n for n in ("train", "val", "test") if f"{n}_{kind}" in self.history[0]]
            return {n: list(zip(steps, (r[f"{n}_{kind}"] for r in self.history))) for n in names}

        charts = [
            line_chart(curves("accuracy"), "top-1 accuracy (%)", "optimiser step"),
            line_chart(curves("loss"), "cross-entropy", "optimiser step"),
        ]
        save_figure(stacked(charts), self.run_dir / "curves.png")

    def _summary(self) -> dict[str, float]:
        accuracies = [row["test_accuracy"] for row in self.history]
        results = {"best_accuracy": max(accuracies), "last_accuracy": accuracies[-1]}
        if self.val_loader is not None:
            chosen = max(self.history, key=lambda row: row["val_accuracy"])
            results["val_accuracy"] = chosen["val_accuracy"]
            results["selected_accuracy"] = chosen["test_accuracy"]
        return {**results, **self.objective.results()}


def run_once(
    run_dir: Path,
    identity: Mapping[str, Any],
    make_trainer: Callable[[], Trainer],
    progress: Progress,
    accelerator: Accelerator,
) -> bool:
    """Train unless the run is done; returns whether it was trained now.

    Args:
        identity: All that decides the result; goes into options.yaml and results.yaml.
    """
    if accelerator.is_main_process:
        remedy = "give another --tag or --checkpoint_dir, or --name if this is another dataset, or remove the folder"
        claim_folder(run_dir, "options.yaml", identity, remedy)
    accelerator.wait_for_everyone()
    if is_done(run_dir):
        return False
    begun = time.monotonic()
    trainer = make_trainer()
    results = trainer.fit(progress)
    if accelerator.is_main_process:
        steps = trainer.objective.steps_before + trainer.history[-1]["step"]
        facts = {"steps": steps, "seconds": round(time.monotonic() - begun, 1)}
        write_atomic(run_dir / "results.yaml", to_yaml({**results, **facts, **identity}))
    accelerator.wait_for_everyone()
    return True
