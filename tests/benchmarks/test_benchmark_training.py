"""The benchmark of classifier training, tiny: it runs, and counts what it says."""

from __future__ import annotations

import re

import pytest
import torch

from expansion.benchmarks import training as benchmark_training
from expansion.benchmarks.training import Row, table
from expansion.benchmarks.training_arms import Clock
from expansion.common.errors import InputError

pytestmark = pytest.mark.slow  # whole benchmarks

TINY = "--num_images 12 --image_size 16 --resize_size 20 --batch_size 4 --workers 0 --steps 2"
TINY += " --warmup 1 --rounds 2"


def test_every_arm_has_its_rates_and_its_ratios(capsys):
    benchmark_training.main(f"{TINY} -a linear resnet10_tiny".split())
    text = capsys.readouterr().out
    assert re.search(r"12 PNG images of 20 pixels, \d+ kB each", text)
    rows = re.findall(
        r"^((?:loader|steps),.*?)  +([\d.]+) +([\d.]+) +([\d.]+)(.*)$", text, re.MULTILINE
    )
    titles = [row[0] for row in rows]
    assert titles[:3] == ["loader, plain", "loader, ours, first pass", "loader, ours, later"]
    assert titles[3:] == [
        f"steps, {whose}, {arch}"
        for arch in ("linear", "resnet10_tiny")
        for whose in ("plain", "ours")
    ]
    for title, low, middle, high, ratios in rows:
        assert 0 < float(low) <= float(middle) <= float(high)
        assert len(ratios.split()) == (0 if "plain" in title else 3)


def test_photos_of_a_folder_take_the_place_of_the_made_up_ones(make_folder, capsys):
    folder = make_folder("photos", {"train": {"a": ["1.jpg", "2.png"]}}, size=50)
    benchmark_training.main([*TINY.split(), "-a", "--image_dir", str(folder)])
    assert "12 PNG images of 20 pixels, 0 kB each" in capsys.readouterr().out  # of one colour


@pytest.mark.parametrize(
    "line, words",
    [
        ("-a resnet19", "unknown arch 'resnet19'"),
        ("--steps 0", "steps 0: give 1 or more"),
        ("--num_images 5", "num_images 5: give at least 10 and a batch"),
        ("--image_size 300", "resize_size 256 is smaller than image_size 300"),
    ],
)
def test_wrong_options_are_named(line, words):
    with pytest.raises(InputError, match=words):
        benchmark_training.main(line.split())


def test_ratios_are_taken_within_a_round():
    plain = Row("plain", rates=[10.0, 20.0, 40.0])
    ours = Row("ours", plain, [30.0, 80.0, 200.0])
    assert ours.ratios() == [3, 4, 5]
    assert table([plain, ours]).splitlines()[2].split() == [
        *("ours", "30.0", "80.0", "200.0"),
        *("3.00", "4.00", "5.00"),
    ]


def test_the_clock_counts_the_steps_between_its_two(monkeypatch):
    now = iter([5.0, 7.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = Clock(2, 6, torch.device("cpu"))
    for step in range(9):
        clock(step)
    assert clock.seconds == 2.5
