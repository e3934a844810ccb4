"""A real study from end to end, interrupted and resumed."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import yaml

from expansion.common.errors import InputError
from expansion.study import __main__ as study
from expansion.study import jobs, opening, talk
from tests.conftest import TINY_MODEL
from tests.helpers.stand_ins import draw, folders
from tests.study.conftest import HereAlone

pytestmark = pytest.mark.slow  # whole studies

QUICK = {
    "num_images_per_prompt": 2,
    "seeds": [1],
    "methods": ["img2img"],
    "arms": [{}, {"method": "each"}],
    "train": {"max_train_steps": 2, "eval_steps": 1, "batch_size": 4, "workers": 0},
    "expand": {"batch_size": 1, "num_inference_steps": 40, "device": "cpu"},
    "page": False,
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with photos, and one process for all commands."""
    folders(tmp_path / "photos", {"ant": 3, "bee": 3})
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(QUICK))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs, "num_cores", lambda: 1)
    return tmp_path


@pytest.fixture
def nothing_runs(place, monkeypatch):
    monkeypatch.setattr(opening, "Runner", HereAlone)


def run(*words: str) -> int:
    return study.main(["photos", "--config", "quick.yaml", "--model", str(TINY_MODEL), *words])


def interrupt_once_there_is(folder, pattern: str, number: int) -> threading.Thread:
    def work() -> None:
        until = time.monotonic() + 120
        while not list(folder.glob(pattern)) and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_study_is_stopped_goes_on_where_it_was_and_ends_with_its_table(place, capsys):
    results = place / "study" / "photos-rehearsal"
    images = "expanded/img2img_2x/*/*.png"
    thread = interrupt_once_there_is(results, images, signal.SIGINT)
    assert run("--yes") == 130
    thread.join()
    out = capsys.readouterr().out
    assert out.endswith("stopped; run the same command to go on\n")
    assert "Step 3 of 5: images with img2img" in out and "Step 4" not in out
    assert (place / "photos" / "split-photos-test-0.3-seed0.json").is_file()
    first = {path: path.stat().st_mtime_ns for path in results.glob(images)}
    assert 0 < len(first) < 8

    assert run() == 0  # not a terminal: nobody is asked
    out = capsys.readouterr().out
    assert first.items() <= {p: p.stat().st_mtime_ns for p in results.glob(images)}.items()
    assert len(list(results.glob(images))) == 8
    assert len(list(results.glob("checkpoint/photos/*/seed1/results.yaml"))) == 2
    lines = out.splitlines()
    assert any(line.startswith("img2img_2x") and "4 + 8" in line for line in lines)
    assert "REHEARSAL" in out and "This was the rehearsal" in lines[-1]
    typed = [line for line in lines if line.startswith("$ ")]
    assert [line.split()[2] for line in typed] == [
        "-m", "train_original.py", "expand.py", "train_expand.py", "parse_logs.py"
    ]  # fmt: skip

    draw(place / "photos" / "ant" / "new.jpg")
    with pytest.raises(InputError, match="does not name 1 images: ant/new.jpg"):
        run()


def test_a_dry_run_prints_the_commands_and_makes_nothing_but_the_split(place, nothing_runs, capsys):
    assert run("--dry_run") == 0
    out = capsys.readouterr().out
    assert out.count("\n$ python") == 5
    assert not (place / "study").exists()


def test_other_settings_for_a_begun_study_are_an_error_that_shows_them(place, nothing_runs):
    assert run("--dry_run") == 0
    folder = place / "study" / "photos-rehearsal"
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text("format: 2\ndataset: other\nsettings: {lr: 0.2}\n")
    with pytest.raises(InputError, match="was begun with other settings .*dataset: 'other'"):
        run()


def test_without_a_model_a_terminal_is_asked_and_nobody_else(
    place, nothing_runs, monkeypatch, capsys
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = ["photos", "--config", "quick.yaml"]
    with pytest.raises(InputError, match="is not on this machine and cannot be downloaded"):
        study.main(words)
    monkeypatch.setattr(talk, "on_terminal", lambda: True)
    with pytest.raises(InputError, match="cannot be downloaded"):
        study.main([*words, "--yes"])  # that answers how long it takes, not this
    questions = []

    def answer(question: str) -> str:
        questions.append(question)
        return "y" if "Rehearse" in question else "n"

    monkeypatch.setattr("builtins.input", answer)
    assert study.main(words) == 1
    assert questions == ["Rehearse with the tiny model now? [Y/n] ", "Go on? [Y/n] "]
    out = capsys.readouterr().out
    assert "REHEARSAL" in out and out.rstrip().endswith("Nothing was begun.")
    assert not (place / "study").exists()


def test_a_disk_without_room_is_told_before_anything_runs(place, nothing_runs, monkeypatch):
    monkeypatch.setattr(opening.shutil, "disk_usage", lambda place: type("U", (), {"free": 1000}))
    with pytest.raises(InputError, match=r"has only 0\.0 GB free"):
        run()
