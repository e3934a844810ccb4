"""One training per folder: a lock that a living process holds, and no dead one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train_original
from expansion.common.errors import InputError
from expansion.training import run_lock
from expansion.training.run_lock import EXPIRY, FILE_NAME, only_training


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write_lock(folder: Path, age: float = 0, **changes: object) -> Path:
    """A lock as this process would write it, with changes."""
    path, me = folder / FILE_NAME, os.getpid()
    holder = {"place": run_lock._place(), "pid": me, "started": run_lock._start_of(me), **changes}
    path.write_text(json.dumps(holder))
    os.utime(path, times=(time.time() - age,) * 2)
    return path


def test_the_lock_is_there_inside_and_gone_afterwards_also_after_an_error(tmp_path):
    with only_training(tmp_path):
        assert json.loads((tmp_path / FILE_NAME).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt), only_training(tmp_path):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_second_training_of_the_folder_is_refused_in_one_line(tmp_path):
    with only_training(tmp_path):
        with pytest.raises(InputError, match=f"is being trained by process {os.getpid()} on"):
            with only_training(tmp_path):
                pass
        assert (tmp_path / FILE_NAME).is_file()


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": -1},
        {"pid": 10**30},
        {"pid": "7"},
        {"started": "another process under this number"},
        {"place": "another machine", "age": EXPIRY + 5},
    ],
)
def test_a_lock_that_no_living_process_holds_is_void(tmp_path, changes):
    write_lock(tmp_path, **changes)
    with only_training(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_torn_lock_is_void(tmp_path, content):
    (tmp_path / FILE_NAME).write_bytes(content)
    with only_training(tmp_path):
        pass


def test_a_killed_training_does_not_refuse_the_next_one(tmp_path):
    write_lock(tmp_path, pid=dead_pid())
    with only_training(tmp_path):
        pass


def test_another_machine_holds_its_lock_while_it_beats(tmp_path, monkeypatch):
    path = write_lock(tmp_path, place="far away", age=EXPIRY - 60)
    with pytest.raises(InputError, match="on far; .*if it is gone, remove .*lock"):
        with only_training(tmp_path):
            pass
    assert [p.name for p in tmp_path.iterdir()] == [FILE_NAME]
    path.unlink()
    monkeypatch.setattr(run_lock, "BEAT", 0.02)
    with only_training(tmp_path):
        os.utime(path, times=(0, 0))
        until = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def test_who_takes_away_a_void_lock_gives_back_one_that_came_between(tmp_path):
    path = write_lock(tmp_path)
    run_lock._take_away(path, {"pid": 1})
    assert json.loads(path.read_text())["pid"] == os.getpid()
    assert [p.name for p in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.slow
def test_a_run_folder_that_is_in_training_is_left_alone(make_folder, tmp_path):
    tree = {c: ["0.png", "1.png"] for c in ("ant", "bee")}
    root = make_folder("set", {"train": tree, "test": tree})
    line = f"-d {root} --checkpoint_dir {tmp_path / 'runs'} -a resnet10_tiny --image_size 32"
    line += " --resize_size 36 --workers 0 --seeds 1 --budget steps --max_train_steps 2"
    seed = tmp_path / "runs/set/resnet10_tiny_unpretrained_lr0.1/seed1"
    seed.mkdir(parents=True)
    with only_training(seed), pytest.raises(InputError, match="seed1 is being trained by process"):
        train_original.main(line.split())
    assert not (seed / "checkpoint.pth.tar").exists()
    train_original.main(line.split())
    assert (seed / "results.yaml").is_file() and not (seed / FILE_NAME).exists()
    with only_training(seed):
        train_original.main(line.split())  # done before: nothing to wait for
