"""`expand.py --status`: from the manifests of processes that run, ended or died."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import expand
from expansion.common.errors import InputError
from expansion.generation.status import status_text
from expansion.store.expanded_set import Asked
from expansion.store.manifest import ManifestReader, merge_manifests, read_manifest
from tests.conftest import ROOT

NOW = 1_000_000.0
SOURCES = [f"train/{i}.png" for i in range(10)]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty set of 20 images in units of 4, at the time NOW."""
    monkeypatch.setattr(time, "time", lambda: NOW)
    Asked(2, SOURCES, {"batch_size": 4}).write(tmp_path)
    return tmp_path


def unit(images: int, seconds: float) -> dict:
    return {"event": "unit", "images": images, "seconds": seconds}


END = {"event": "end"}


def image(index: int) -> dict:
    source, variant = divmod(index, 2)
    name = f"c/{source}_expand_{variant}.png"
    return {"file_name": name, "class": "c", "source": f"train/{source}.png", "variant": variant}


def write(folder: Path, whose: str, *lines: dict, ago: float = 0) -> None:
    """A manifest that was last written `ago` seconds before NOW."""
    path = folder / f"manifest.{whose}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(path, (NOW - ago, NOW - ago))


def cells(folder: Path, title: str) -> list[str]:
    lines = status_text(folder).splitlines()
    return re.split(r"\s{2,}", next(line for line in lines if line.startswith(title)))


def test_images_count_for_the_shard_they_belong_to_whoever_made_them(folder):
    # Units 0, 2, 4 are shard 0's: images 0-3, 8-11, 16-19; the others are shard 1's.
    write(folder, "0-of-2.aa", *map(image, range(4)), unit(4, 2.0))
    write(folder, "1-of-2.bb", *map(image, range(4, 8)), unit(4, 4.0), ago=5)
    write(folder, "0-of-1.cc", *map(image, (8, 9, 4, 5)), unit(4, 1.0), END, ago=50)
    assert cells(folder, "shard 0") == ["shard 0 of 2", "6", "6", "0", "2.00", "3 s", "0 s ago"]
    assert cells(folder, "shard 1") == ["shard 1 of 2", "4", "4", "0", "1.00", "4 s", "5 s ago"]
    assert cells(folder, "all") == ["all", "10", "10", "0", "3.00", "3 s"]


def test_processes_that_ended_died_or_never_came_have_no_rate(folder):
    write(folder, "0-of-3.aa", unit(4, 1.0), END, ago=90)
    write(folder, "1-of-3.bb", unit(4, 1.0), ago=7000)
    assert cells(folder, "shard 0")[1:] == ["0", "8", "0", "ended, 1:30 min ago"]
    assert cells(folder, "shard 1")[1:] == ["0", "8", "0", "1:56 h ago"]
    assert cells(folder, "shard 2")[1:] == ["0", "4", "0", "not begun"]
    assert cells(folder, "all") == ["all", "0", "20", "0"]


def test_after_a_restart_the_newest_process_of_a_shard_counts(folder):
    write(folder, "0-of-1.aa", image(0), unit(4, 1.0), ago=9)
    write(folder, "0-of-1.bb", image(1), unit(4, 2.0), ago=1)
    assert cells(folder, "shard 0") == ["shard 0 of 1", "2", "18", "0", "2.00", "9 s", "1 s ago"]


def test_failures_count_until_the_image_is_made(folder):
    failed = {"event": "failed", "reason": "not finite"}
    failures = [{**failed, "source": "train/0.png", "variant": v} for v in (0, 1)]
    write(folder, "0-of-1.aa", *failures, image(1))
    assert cells(folder, "all")[1:4] == ["1", "19", "1"]


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_clock_that_jumps_disturbs_only_the_times_that_are_shown(folder, jump):
    write(folder, "0-of-1.aa", image(0), unit(4, 2.0), ago=-jump / 1000)
    shown = cells(folder, "shard 0")
    assert shown[1:4] == ["1", "19", "0"] and "-" not in " ".join(shown[1:])
    write(folder, "0-of-1.aa", unit(4, 0.0), unit(4, -3.0))
    assert cells(folder, "all") == ["all", "0", "20", "0"]  # no rate, rather than an infinite one


def test_images_beyond_what_was_asked_for_do_not_count(folder):
    Asked(1, SOURCES[:5], {"batch_size": 4}).write(folder)
    write(folder, "0-of-1.aa", *map(image, range(20)), END)
    assert cells(folder, "all") == ["all", "5", "0", "0"]


@pytest.mark.parametrize("facts", [{}, {"batch_size": None}, {"batch_size": "4"}])
def test_a_set_of_an_older_version_shows_how_many_images_there_are(folder, facts):
    Asked(2, SOURCES, facts).write(folder)
    start = {"event": "start", "shard": [0, 1], "unit": 4, "order": "abc", "time": NOW}
    write(folder, "0-of-1.aa", start, *map(image, range(3)))
    write(folder, "joined.bb", {**start, "shard": None}, image(3))
    assert cells(folder, "all") == ["all", "4"]
    (folder / "plan.json").unlink()
    assert cells(folder, "all") == ["all", "4"]


def test_a_finished_set_is_complete(folder):
    write(folder, "0-of-1.aa", *map(image, range(20)), END)
    assert cells(folder, "shard 0")[-1] == "complete"


@pytest.mark.parametrize(
    "line", ['{"event": "unit"}', '{"event": 3', '{"event": "failed", "source": "x"}']
)
def test_a_broken_event_is_named(folder, line):
    (folder / "manifest.0-of-1.aa.jsonl").write_text(f"{line}\n")
    with pytest.raises(InputError, match=r"manifest.0-of-1.aa.jsonl, line 1"):
        status_text(folder)


def test_a_folder_without_manifests_is_an_error(folder):
    with pytest.raises(InputError, match="expand.py"):
        status_text(folder)


def test_events_never_reach_the_merged_rows(folder):
    write(folder, "0-of-1.aa", image(0), unit(4, 1.0))
    assert read_manifest(folder) == [image(0)]
    merge_manifests(folder)
    assert (folder / "metadata.jsonl").read_text() == json.dumps(image(0)) + "\n"


def test_rows_of_a_process_that_ends_during_the_merge_are_merged_too(folder, monkeypatch):
    from expansion.store import manifest

    write(folder, "0-of-1.aa", image(0))
    replace = manifest.write_atomic

    def end_meanwhile(path, content):
        replace(path, content)
        if not (folder / "manifest.0-of-1.bb.jsonl").exists():
            write(folder, "0-of-1.bb", image(1), END)

    monkeypatch.setattr(manifest, "write_atomic", end_meanwhile)
    assert merge_manifests(folder) == [image(0), image(1)]
    assert (folder / "metadata.jsonl").read_text().count("\n") == 2


def test_growing_manifests_are_read_line_by_line_once(folder):
    reader, path = ManifestReader(folder), folder / "manifest.0-of-1.aa.jsonl"
    seen = []
    with path.open("a", buffering=1) as file:
        for part in ("", '{"a"', ": 1}\n", '{"b": 2}\n{"c"', ": 3}", "\n\n"):
            file.write(part)
            file.flush()
            seen.append([(line.number, line.text.decode()) for line in reader.new_lines()])
    assert seen == [[], [], [(1, '{"a": 1}')], [(2, '{"b": 2}')], [], [(3, '{"c": 3}')]]


@pytest.mark.slow
def test_status_needs_no_torch_and_reads_no_images(tmp_path):
    write(tmp_path, "0-of-1.aa", image(0))
    code = (
        "import sys, expand\n"
        "expand.main(['-d', 'digits', '--output_dir', sys.argv[1], '--status'])\n"
        "assert not {'torch', 'diffusers'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].split() == ["all", "1"], (
        done.stderr
    )


def test_status_finds_the_folder_by_the_options_of_the_run(tmp_path, capsys):
    (tmp_path / "digits_expansion" / "img2img_3x").mkdir(parents=True)
    write(tmp_path / "digits_expansion" / "img2img_3x", "0-of-1.aa", image(0))
    line = f"-d digits --data_dir {tmp_path} --method img2img --num_images_per_prompt 3 --status"
    expand.main(line.split())
    assert "img2img_3x" in capsys.readouterr().out
    assert not (tmp_path / "digits").exists()
