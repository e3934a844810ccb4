"""The course of a training: written after every evaluation, read again for the page."""

from __future__ import annotations

import math

import pytest
from PIL import Image

from expansion.training.curves import RunLog, read_curve


def history(*accuracies: float) -> list[dict[str, float]]:
    return [
        {"step": 10 * i, "epoch": i / 2, "lr": 0.1, "train_loss": 1.0, "test_loss": 2.0,
         "train_accuracy": 50.0, "test_accuracy": accuracy}
        for i, accuracy in enumerate(accuracies, start=1)
    ]  # fmt: skip


def test_a_curve_counts_the_steps_of_earlier_stages(tmp_path):
    RunLog(tmp_path, "title").write(history(40.0, 60.0), steps_before=100)
    assert read_curve(tmp_path, "test_accuracy", 120) == [(110, 40.0), (120, 60.0)]
    assert read_curve(tmp_path, "test_loss", 120) == [(110, 2.0), (120, 2.0)]


def test_the_log_of_an_older_run_is_spread_over_its_steps(tmp_path):
    RunLog(tmp_path, "title").write(history(40.0, 50.0, 60.0, 45.0), steps_before=0)
    (tmp_path / "curves.csv").unlink()
    curve = read_curve(tmp_path, "test_accuracy", 40)
    assert curve == [(10, 40.0), (20, 50.0), (30, 60.0), (40, 45.0)]
    (tmp_path / "stage1").mkdir()  # where its last stage began is not known
    assert read_curve(tmp_path, "test_accuracy", 40) == []


@pytest.mark.parametrize("text", ["", "step\n1\n", "step,test_accuracy\n1,x\n", "\x00"])
def test_a_file_that_is_no_curve_is_left_out(tmp_path, text):
    (tmp_path / "curves.csv").write_text(text)
    assert read_curve(tmp_path, "test_accuracy", 40) == []
    assert read_curve(tmp_path / "nowhere", "test_accuracy", 40) == []


def test_the_picture_is_drawn_at_the_end_even_of_numbers_that_are_none(tmp_path):
    log = RunLog(tmp_path, "title")
    rows = history(40.0, math.nan)
    log.write(rows, steps_before=0)
    assert not (tmp_path / "curves.png").exists()  # it takes long for a step of a short run
    log.draw(rows)
    assert Image.open(tmp_path / "curves.png").size == (640, 720)
