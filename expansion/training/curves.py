"""The course of a training: what the trainer writes after every evaluation, and how it is read.

<run_dir>/log.txt     tab-separated, as the DistDiff repository writes it
<run_dir>/curves.csv  the same numbers and more by the optimiser step, earlier stages counted
<run_dir>/curves.png
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expansion.common.files import write_atomic
from expansion.pictures.figures import line_charts, save_figure

HEADER = ("Epoch", "Learning Rate", "Train Loss", "Test Loss", "Train Acc.", "Test Acc.")
LOGGED = ("epoch", "lr", "train_loss", "test_loss", "train_accuracy", "test_accuracy")
LEAST_SECONDS = 30.0  # between two drawings, each of which takes a fifth of a second

Row = Mapping[str, float]


class RunLog:
    """Log and curves of a run.

    Args:
        title: First line of log.txt.
    """

    def __init__(self, run_dir: Path, title: str):
        self.run_dir, self.title = run_dir, title
        self.drawn = time.monotonic()

    def write(self, history: Sequence[Row], steps_before: int) -> None:
        """Write the evaluations so far; the picture now and then.

        Args:
            history: One row per evaluation: "step", LOGGED, and perhaps "val_accuracy".
            steps_before: Optimiser steps of earlier stages.
        """
        write_atomic(self.run_dir / "log.txt", _log_text(self.title, history))
        write_atomic(self.run_dir / "curves.csv", _csv_text(history, steps_before))
        if time.monotonic() - self.drawn > LEAST_SECONDS:
            self.draw(history)

    def draw(self, history: Sequence[Row]) -> None:
        """Write curves.png."""
        charts = {
            "top-1 accuracy (%)": _series(history, "accuracy"),
            "cross-entropy": _series(history, "loss"),
        }
        save_figure(line_charts(charts, "optimiser step"), self.run_dir / "curves.png")
        self.drawn = time.monotonic()


def read_curve(run_dir: str | Path, key: str, num_steps: float) -> list[tuple[float, float]]:
    """(optimiser step, value) of every evaluation of a run; empty where nothing can be read.

    Args:
        key: One of LOGGED.
        num_steps: Of the whole run: log.txt of older runs counts in epochs of any size.
    """
    path = Path(run_dir, "curves.csv")
    try:
        if path.is_file():
            lines = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
            return [(float(line["step"]), float(line[key])) for line in lines]
        return _curve_of_log(Path(run_dir), key, num_steps)
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return []


def _curve_of_log(run_dir: Path, key: str, num_steps: float) -> list[tuple[float, float]]:
    if any(run_dir.glob("stage*")):  # the log is of the last stage, which began at an unknown step
        return []
    rows = []
    for line in (run_dir / "log.txt").read_text(encoding="utf-8").splitlines():
        cells = line.rstrip("\t").split("\t")
        if len(cells) == len(LOGGED) and cells[0] != HEADER[0]:
            rows.append([float(cell) for cell in cells])
    place = LOGGED.index(key)
    return [(num_steps * row[0] / rows[-1][0], row[place]) for row in rows]


def _log_text(title: str, history: Sequence[Row]) -> str:
    lines = [title, "".join(f"{name}\t" for name in HEADER)]
    best = 0.0
    for row in history:
        lines.append("".join(f"{row[key]:.6f}\t" for key in LOGGED))
        if row["test_accuracy"] > best:
            best = row["test_accuracy"]
            lines.append(f"The best performance:{best}")
    return "\n".join(lines) + "\n"


def _csv_text(history: Sequence[Row], steps_before: int) -> str:
    text = io.StringIO()
    rows: list[dict[str, Any]] = [{**row, "step": row["step"] + steps_before} for row in history]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _series(history: Sequence[Row], kind: str) -> dict[str, list[tuple[float, float]]]:
    names = [name for name in ("train", "val", "test") if f"{name}_{kind}" in history[0]]
    return {name: [(row["step"], row[f"{name}_{kind}"]) for row in history] for name in names}
