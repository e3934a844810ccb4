"""Training and evaluation of one classifier: steps, checkpoints, log, curves, results.

What is learnt from which images is the objective's business; it is passed in.

    <run_dir>/options.yaml        settings, versions, commit
    <run_dir>/log.txt             one row per evaluation; curves.csv and curves.png likewise
    <run_dir>/checkpoint.pth.tar  after every evaluation; a stopped run goes on from it
    <run_dir>/model_best.pth.tar  at the best test accuracy so far
    <run_dir>/predictions.npz     probabilities of the test images after the last step
    <run_dir>/results.yaml        at the end: the run is done when it exists
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from expansion.classifier.backbones import classifier_state
from expansion.classifier.recipe import Recipe, Schedule
from expansion.common.files import to_yaml, write_atomic
from expansion.common.seeding import stable_seed
from expansion.images.records import ImageRecord
from expansion.metrics.classification import measured
from expansion.metrics.predictions import PREDICTIONS_FILE, Predictions
from expansion.training.curves import RunLog
from expansion.training.divergence import LossWatch, remedy
from expansion.training.objectives import Objective, Progress, ProgressBar, Run, images_in_order

logger = logging.getLogger(__name__)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Iterable,
    accelerator: Accelerator,
    collected: list[Tensor] | None = None,
) -> tuple[float, float]:
    """(mean cross-entropy, top-1 accuracy in percent); the model's mode is restored.

    Args:
        loader: Batches (network inputs, labels) of this process, on the device.
        collected: Gets the probabilities of this process's images, batch by batch.
    """
    was_training = model.training
    model.eval()
    losses, hits, count = [], [], 0
    for pixels, targets in loader:
        logits = model(pixels).float()
        losses.append(F.cross_entropy(logits, targets, reduction="sum"))
        hits.append((logits.argmax(dim=1) == targets).sum())
        count += len(targets)
        if collected is not None:
            collected.append(logits.softmax(dim=1))
    # Read at the end alone: a batch need not wait for the one before it.
    sums = [float(sum(torch.stack(parts).tolist())) if parts else 0.0 for parts in (losses, hits)]
    model.train(was_training)
    return _means(sums[0], sums[1], count, accelerator)


def _means(loss: float, hits: float, count: float, accelerator: Accelerator) -> tuple[float, float]:
    """(mean loss, accuracy in percent) from all processes' sums of losses, hits and images."""
    if accelerator.num_processes > 1:
        totals = torch.tensor((loss, hits, count), dtype=torch.float64).to(accelerator.device)
        loss, hits, count = accelerator.reduce(totals).tolist()
    return loss / count, 100 * hits / count


def eval_loader(
    records: Sequence[ImageRecord], recipe: Recipe, accelerator: Accelerator
) -> Iterable[Sequence[Tensor]]:
    """(network inputs, labels) of this process's share of `records`, in order, on its device."""
    mine = list(records)[accelerator.process_index :: accelerator.num_processes]
    return images_in_order(mine, recipe, accelerator.device)


def keep_predictions(run: Run, collected: Sequence[Tensor]) -> None:
    """Write `predictions.npz`, in the order of the test set.

    Args:
        collected: What `evaluate` collects in this process: of image rank, rank + processes, ...
    """
    accelerator, num_classes = run.accelerator, len(run.class_names)
    nothing = torch.empty(0, num_classes, device=accelerator.device)
    mine = accelerator.pad_across_processes(torch.cat([nothing, *collected]))
    shares = accelerator.gather(mine).view(accelerator.num_processes, -1, num_classes)
    # Image i is number i // processes of its share; what was padded comes last.
    rows = shares.transpose(0, 1).reshape(-1, num_classes)[: len(run.test_records)]
    if accelerator.is_main_process:
        Predictions(
            tuple(record.file_name for record in run.test_records),
            np.array([record.label for record in run.test_records]),
            rows.cpu().numpy(),
            tuple(run.class_names),
        ).save(run.run_dir / PREDICTIONS_FILE)


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
        # Both, as they share their weights, or are one and the same.
        self.networks = nn.ModuleList([self.classifier, self.module])
        self.average = None
        if objective.ema_decay:
            mean = get_ema_multi_avg_fn(objective.ema_decay)
            self.average = AveragedModel(self.networks, multi_avg_fn=mean)
        if recipe.compile:
            self.model = torch.compile(self.model)  # weights and their names stay `module`'s
        self.test_loader = eval_loader(run.test_records, recipe, run.accelerator)
        self.val_loader = None
        if run.val_records:
            self.val_loader = eval_loader(run.val_records, recipe, run.accelerator)
        self.history: list[dict[str, float]] = []
        self.log = RunLog(self.run_dir, f"Namespace({self.recipe})")
        self.watch = LossWatch(run.accelerator, remedy("lr", recipe.lr, recipe.mixed_precision))

    def fit(self, progress: Progress) -> dict[str, float]:
        """Train to the end, going on from a checkpoint if there is one.

        Args:
            progress: Called after every step with its number and the last evaluation.

        Returns:
            `best_accuracy` and `last_accuracy` on the test set, percent; with a validation set also
            `selected_accuracy`: the test accuracy of the evaluation that was best on it.

        Raises:
            InputError: A loss or a weight is not finite; the last checkpoint stays.
        """
        first = self._resume()
        start = f"the weights of {self._checkpoint}" if first else "the weights it begins with"
        another = f"remove {self.run_dir} to begin anew" if first else "give other --weights"
        self.watch.require_finite_tensors(self._state(), start, another)
        if first and self.accelerator.is_main_process:
            # The earlier run may have been killed before it did.
            self.log.write(self.history, self.objective.steps_before)
        batches = self.objective.batches(self.schedule.batch_sizes, first, self.accelerator)
        self.model.train()
        loss_sum = correct = count = 0.0
        for step, batch in enumerate(batches, start=first):
            loss, hits = self._step(step, batch)
            self.watch.note(step + 1, loss)
            loss_sum += loss * len(hits)
            correct += hits.sum()
            count += len(hits)
            if self.schedule.evaluates_after(step + 1):
                self.watch.look()
                sums = (float(loss_sum), float(correct), count)
                self._evaluate(step + 1, *_means(*sums, self.accelerator))
                loss_sum = correct = count = 0.0
            progress(step + 1, self.history[-1] if self.history else {})
        if self.accelerator.is_main_process:
            self.log.draw(self.history)
        return self.summary()

    def fit_with_bar(self, progress_bar: ProgressBar, title: str) -> dict[str, float]:
        """`fit` under a progress bar over all its steps."""
        with progress_bar(title, len(self.schedule.batch_sizes)) as progress:
            return self.fit(progress)

    def _step(self, step: int, batch: Any) -> tuple[Tensor, Tensor]:
        torch.manual_seed(stable_seed("step", self.run.seed, step))  # dropout, mixing
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(step)
        with self.accelerator.autocast():
            loss, hits = self.objective.loss(self.model, batch, self.schedule.progress(step))
        self.accelerator.backward(loss)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.networks)
        self.optimizer.zero_grad()
        return loss.detach(), hits

    def _evaluate(self, step: int, train_loss: float, train_accuracy: float) -> None:
        model = self._for_evaluation()
        # The checkpoint comes later: a run that has it has the predictions too.
        collected: list[Tensor] | None = [] if step == len(self.schedule.batch_sizes) else None
        test_loss, test_accuracy = evaluate(model, self.test_loader, self.accelerator, collected)
        self.watch.require_finite(test_loss, f"the test loss after step {step}")
        if collected is not None:
            keep_predictions(self.run, collected)
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
            val_loss, row["val_accuracy"] = evaluate(model, self.val_loader, self.accelerator)
            self.watch.require_finite(val_loss, f"the validation loss after step {step}")
        self.watch.require_finite_tensors(self._state(), f"the weights after step {step}")
        best_before = max((r["test_accuracy"] for r in self.history), default=-1.0)
        self.history.append(row)
        if self.accelerator.is_main_process:
            self._save(step, is_best=test_accuracy > best_before)
            self.log.write(self.history, self.objective.steps_before)

    def _for_evaluation(self) -> nn.Module:
        """The network without what makes processes wait for each other in every batch.

        They may have unequal numbers of test batches. What batch normalisation has counted is the
        main process's, as in the checkpoint.
        """
        if self.accelerator.num_processes == 1 and self.average is None:
            return self.model
        module = self._evaluated[1]
        if self.accelerator.num_processes > 1:
            for buffer in module.buffers():
                broadcast(buffer)
        return module

    @property
    def _evaluated(self) -> nn.ModuleList:
        """The classifier and what is trained, with the weights that are evaluated and saved."""
        return self.networks if self.average is None else self.average.module

    def _state(self) -> list[Any]:
        """All that is learnt."""
        return [*self.module.state_dict().values(), *self.objective.state_dict().values()]

    @property
    def _checkpoint(self) -> Path:
        return self.run_dir / "checkpoint.pth.tar"

    @property
    def _saves_module(self) -> bool:
        """Whether what is trained has other weights than the classifier that is saved."""
        return self.module is not self.classifier or self.average is not None

    def _save(self, step: int, is_best: bool) -> None:
        best = max(row["test_accuracy"] for row in self.history)
        state = {
            **classifier_state(self._evaluated[0]),
            "class_names": list(self.run.class_names),
            "epoch": self.history[-1]["epoch"],
            "step": step,
            "acc": self.history[-1]["test_accuracy"],
            "best_acc": best,
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "module": self.module.state_dict() if self._saves_module else {},
            "objective": dict(self.objective.state_dict()),
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        # The checkpoint last: a run killed in between evaluates again and finds the best again.
        names = (["model_best.pth.tar"] if is_best else []) + ["checkpoint.pth.tar"]
        for name in names:
            partial = self.run_dir / f".{name}.partial"
            torch.save(state, partial)
            partial.replace(self.run_dir / name)

    def _resume(self) -> int:
        """Load the last checkpoint; returns the number of steps done."""
        if not self._checkpoint.is_file():
            return 0
        state = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
        self.classifier.load_state_dict(state["state_dict"])
        if self._saves_module:
            self.module.load_state_dict(state["module"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = state["history"]
        logger.info("going on after step %d of %s", state["step"], self.run_dir)
        return state["step"]

    def summary(self) -> dict[str, float]:
        """What `fit` returns."""
        accuracies = [row["test_accuracy"] for row in self.history]
        results = {"best_accuracy": max(accuracies), "last_accuracy": accuracies[-1]}
        if self.val_loader is not None:
            chosen = max(self.history, key=lambda row: row["val_accuracy"])
            results["val_accuracy"] = chosen["val_accuracy"]
            results["selected_accuracy"] = chosen["test_accuracy"]
        return {**results, **self.objective.results()}


def write_results(trainer: Trainer, facts: Mapping[str, Any], begun: float) -> None:
    """Write `results.yaml`, by which a run counts as done.

    Args:
        trainer: After the last step.
        facts: What else belongs there.
        begun: When this process began the run, by `time.monotonic`.
    """
    path = trainer.run_dir / PREDICTIONS_FILE
    # A run that an older version had all but finished has no predictions.
    more = measured(Predictions.load(path)) if path.is_file() else {}
    steps = trainer.objective.steps_before + trainer.history[-1]["step"]
    course = {"steps": steps, "seconds": round(time.monotonic() - begun, 1)}
    write_atomic(
        trainer.run_dir / "results.yaml", to_yaml({**more, **trainer.summary(), **course, **facts})
    )
