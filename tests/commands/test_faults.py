"""Faults around a real expansion: its disk, its folder, its clock, its network, its neighbours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from expansion.common.files import partial_path, remove_partial_files, write_atomic
from expansion.store.manifest import read_manifest
from tests.rigs import fault_rig
from tests.rigs.fault_rig import compare
from tests.rigs.warm_processes import NUM_DIGITS, Expansion

pytestmark = pytest.mark.slow  # real processes and faults of disks

NUM_UNITS = 5

# Runs `fault()` before the third of five batches is computed.
BEFORE_THE_THIRD_BATCH = """
import itertools, sys
from expansion.diffusion.img2img import Img2ImgSampler
sample, numbers = Img2ImgSampler.sample, itertools.count(1)
def disturbed(*arguments):
    if next(numbers) == 3:
        fault(sys.argv[sys.argv.index("--output_dir") + 1])
    return sample(*arguments)
Img2ImgSampler.sample = disturbed
"""

# `disturb(noise_pred, number)` changes the U-Net's output; `number` counts its calls from 1.
IN_THE_NETWORK = """
import itertools
from expansion.diffusion import stable_diffusion
load, numbers = stable_diffusion.load_pipeline, itertools.count(1)
def load_and_disturb(*arguments, **options):
    pipeline = load(*arguments, **options)
    pipeline.unet.register_forward_hook(lambda _, inputs, output: disturb(output[0], next(numbers)))
    return pipeline
stable_diffusion.load_pipeline = load_and_disturb
"""


def assert_same(folder: Path, whole_set: Path) -> None:
    assert not +compare(folder, whole_set), compare(folder, whole_set)


def assert_goes_on(expansion: Expansion, whole_set: Path) -> None:
    status, lines = expansion.run()
    assert status == 0, lines
    assert_same(expansion.output, whole_set)


def mount(*arguments: object) -> bool:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False)
    return done.returncode == 0


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """Function from options of a tmpfs ("size=64k") to its mount point, for root on Linux."""
    place = tmp_path / "disk"

    def make(options: str) -> Path:
        place.mkdir()
        if not (shutil.which("mount") and mount("-t", "tmpfs", "-o", options, "none", place)):
            pytest.skip("no small disk can be mounted here; it takes root")
        return place

    yield make
    if shutil.which("umount"):
        subprocess.run(["umount", "-l", place], capture_output=True, check=False)


def test_a_disk_that_is_full_again_and_again_loses_nothing(expansion, small_disk, whole_set):
    """It grows by 16 KiB, four or fewer images, each time that it is full."""
    disk = small_disk("size=4k")
    expansion.output = disk / "out"
    ends = []
    for size in range(4, 400, 16):
        assert mount("-o", f"remount,size={size}k", disk)
        status, lines = expansion.run()
        ends.append(status)
        if status == 0:
            break
        assert status == 2 and not list(disk.rglob(".*.partial"))
        (error,) = [line for line in lines if "No space left on device" in line]
        assert re.match(rf"error: {disk}/\S+: No space left on device; make room, then", error)
        assert not any("Traceback" in line for line in lines)
        for path in expansion.images:
            Image.open(path).load()
    assert 5 < len(ends) and ends[-1] == 0
    assert_same(expansion.output, whole_set)


def test_a_full_disk_is_noticed_before_all_else_is_computed(expansion, small_disk):
    expansion.output = small_disk("size=20k") / "out"
    counting = BEFORE_THE_THIRD_BATCH.replace(
        "    if next(numbers)",
        "    time.sleep(0.1); print('batch', flush=True)\n    if next(numbers)",
    )
    status, lines = expansion.run(code=f"import time\ndef fault(_): pass\n{counting}")
    assert status == 2 and lines.count("batch") < NUM_UNITS


def test_a_folder_that_cannot_be_written_is_named_before_weights_load(expansion, small_disk):
    disk = small_disk("ro")
    expansion.output = disk / "deep" / "out"
    status, lines = expansion.run(
        code="from expansion.diffusion import stable_diffusion as s; s.load_pipeline = None"
    )
    assert status == 2 and len(lines) == 1
    assert lines[0].startswith(f"error: {disk} cannot be written; change its permissions")


def test_a_disk_that_becomes_read_only_ends_in_one_line(expansion, small_disk, whole_set):
    disk = small_disk("size=2m")
    expansion.output = disk / "out"
    # The kernel refuses while a file is open for writing.
    fault = f"while subprocess.run(['mount', '-o', 'remount,ro', {str(disk)!r}]).returncode: pass"
    code = f"import subprocess\ndef fault(_):\n    {fault}\n{BEFORE_THE_THIRD_BATCH}"
    status, lines = expansion.run(code=code)
    errors = [line for line in lines if "Read-only file system" in line]
    assert status == 2 and len(errors) == 1 and errors[0].startswith(f"error: {disk}")
    assert not any("Traceback" in line for line in lines)
    assert mount("-o", "remount,rw", disk)
    assert_goes_on(expansion, whole_set)


def test_a_folder_that_vanishes_is_named_and_made_anew(expansion, whole_set):
    fault = "import os\ndef fault(folder): os.rename(folder, folder + '.gone')\n"
    status, lines = expansion.run(code=fault + BEFORE_THE_THIRD_BATCH)
    assert status == 2 and lines[-1].startswith(
        f"error: {expansion.output} vanished during the run"
    )
    assert not any("Traceback" in line for line in lines) and not expansion.output.exists()
    assert_goes_on(expansion, whole_set)


def test_a_class_folder_that_vanishes_is_made_anew(expansion, whole_set):
    code = "import shutil\ndef fault(folder): shutil.rmtree(folder + '/0', ignore_errors=True)\n"
    status, _ = expansion.run(code=code + BEFORE_THE_THIRD_BATCH)
    assert status == 0
    assert_goes_on(expansion, whole_set)


JUMPING_CLOCK = """
import itertools, sys, time, tqdm.std
real, jumps = time.time, itertools.cycle((0, 9e6, -9e6, 5e3, -5e3))
time.time = tqdm.std.time = lambda: real() + next(jumps)
sys.stderr.isatty = lambda: True  # so that the bar is drawn
"""


def test_a_clock_that_jumps_changes_neither_images_nor_rates(expansion, whole_set):
    status, lines = expansion.run(code=JUMPING_CLOCK)
    text = "\n".join(lines)
    assert status == 0 and "20/20" in text
    assert not re.search(r"(\[|<|, |; )-\d|-\d+(\.\d+)? ?(image/s|s/image|images/s|s,)", text), text
    assert_same(expansion.output, whole_set)


# Steps 2 per batch: call 3 is the second batch's first. Rows 1 and 6 of (uncond, cond) x 4 images.
NOT_FINITE = """
def disturb(noise_pred, number):
    if number == 3:
        noise_pred[1], noise_pred[6, 0, 2, 2] = float("nan"), float("inf")
"""


def test_images_that_are_not_finite_are_counted_and_made_by_the_next_run(expansion, whole_set):
    status, lines = expansion.run(code=NOT_FINITE + IN_THE_NETWORK)
    assert status == 1 and len(expansion.images) == NUM_DIGITS - 2
    assert any("18 images written, 0 already there, 2 failed" in line for line in lines)
    assert sum("not finite, not written" in line for line in lines) == 2
    assert len(read_manifest(expansion.output)) == NUM_DIGITS - 2
    assert_goes_on(expansion, whole_set)


def test_what_is_not_finite_in_bfloat16_is_repeated_in_float32(expansion):
    in_16_bits = NOT_FINITE.replace("number == 3", "noise_pred.dtype.itemsize == 2 and number == 3")
    status, lines = expansion.run("--dtype", "bfloat16", code=in_16_bits + IN_THE_NETWORK)
    assert status == 0 and len(expansion.images) == NUM_DIGITS
    assert sum("repeating its batch in float32" in line for line in lines) == 1


@pytest.mark.parametrize(
    "shards", [((), ()), tuple(("--total_split", 2, "--split", i) for i in (0, 1))]
)
def test_two_processes_side_by_side_complete_one_set(expansion, whole_set, shards):
    processes = [expansion.start(*line, log=f"{i}.txt") for i, line in enumerate(shards)]
    assert [process.wait() for process in processes] == [0, 0]
    assert_same(expansion.output, whole_set)


def test_of_two_processes_that_end_together_the_later_merge_has_all_rows(expansion, whole_set):
    """The first has read the manifests when the second writes its last images and merges."""
    late = (
        "import expand, json, os, time\n"
        "from expansion.store import manifest\n"
        "write = manifest.write_atomic\n"
        "def write_late(path, content):\n"
        "    if path.name == 'metadata.jsonl':\n"
        "        (path.parent.parent / 'waiting').touch()\n"
        "        while not (path.parent.parent / 'done').exists(): time.sleep(0.01)\n"
        "    write(path, content)\n"
        "manifest.write_atomic = write_late\n"
    )
    first = expansion.start("--total_split", 2, "--split", 0, code=late)
    while not expansion.output.with_name("waiting").exists() and first.poll() is None:
        pass
    second = expansion.start("--total_split", 2, "--split", 1, log="second.txt")
    assert second.wait() == 0
    expansion.output.with_name("done").touch()
    assert first.wait() == 0
    assert_same(expansion.output, whole_set)


def test_damaged_images_under_their_final_names_are_made_again(expansion, whole_set):
    shutil.copytree(whole_set, expansion.output)
    first, *others = expansion.images[3:15:3]
    content = first.read_bytes()
    first.write_bytes(content[: len(content) // 2])
    for path, damaged in zip(
        others, (bytes(len(content)), b"", b"<html>no image</html>"), strict=True
    ):
        path.write_bytes(damaged)  # zeros: what a power cut leaves
    assert_goes_on(expansion, whole_set)


def test_a_manifest_cut_off_in_its_last_line_costs_one_image(expansion, whole_set):
    shutil.copytree(whole_set, expansion.output)
    (manifest,) = expansion.output.glob("manifest.*.jsonl")
    rows = manifest.read_bytes().splitlines(keepends=True)
    last = max(i for i, row in enumerate(rows) if row.startswith(b'{"file_name"'))
    manifest.write_bytes(b"".join(rows[: last + 1])[:-30])
    status, lines = expansion.run()
    assert status == 0 and "1 images written, 19 already there" in lines[0]
    assert_same(expansion.output, whole_set)


def test_a_garbage_line_amid_a_manifest_is_named_and_changes_nothing(expansion, whole_set):
    shutil.copytree(whole_set, expansion.output)
    (manifest,) = expansion.output.glob("manifest.*.jsonl")
    whole = manifest.read_text()
    manifest.write_text(whole.replace("\n", '\n{"file_name": "0/x\n', 1))
    before = {path: path.stat().st_mtime_ns for path in expansion.output.rglob("*")}
    status, lines = expansion.run()
    assert status == 2 and len(lines) == 1
    assert lines[0].startswith(f"error: {manifest}, line 2: no manifest row")
    assert {path: path.stat().st_mtime_ns for path in expansion.output.rglob("*")} == before
    manifest.write_text(whole)
    assert_goes_on(expansion, whole_set)


def test_what_a_killed_process_left_half_written_is_no_image_and_is_removed(expansion, whole_set):
    shutil.copytree(whole_set, expansion.output)
    for name in ("0/a.png", "3/b.png", "metadata.jsonl"):
        partial_path(expansion.output / name).write_bytes(b"half")
    assert len(ImageFolder(str(expansion.output)).samples) == NUM_DIGITS
    status, lines = expansion.run()
    assert status == 0
    assert "removed 3 half-written files of processes that were killed" in lines
    assert_same(expansion.output, whole_set)


def test_a_living_process_writes_again_what_was_removed_as_half_written(tmp_path, monkeypatch):
    rename, removed = os.replace, []

    def rename_what_is_left(partial, path):
        removed.append(len(removed) == 0 and remove_partial_files(tmp_path))
        rename(partial, path)

    monkeypatch.setattr(os, "replace", rename_what_is_left)
    write_atomic(tmp_path / "image.png", b"whole")
    assert removed == [1, False]
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("image.png", b"whole")]


def test_killed_processes_lose_duplicate_and_change_nothing(warm_processes, tmp_path):
    rig = fault_rig.Rig(tmp_path / "rig", warm_processes, cold_share=0, seed=5)
    counts = fault_rig.run(rig, ("img2img", "two_shards"), num_kills=10, kills_per_set=6)
    assert counts.kills >= 10 and not counts.faults.total(), fault_rig.describe(counts)


def test_the_rig_sees_every_kind_of_fault(whole_set, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(whole_set, folder)
    images = sorted(folder.glob("*/*.png"))
    images[0].unlink()
    images[1].write_bytes(images[2].read_bytes())
    images[3].write_bytes(b"no image")
    shutil.copy(images[4], images[4].with_name("more.png"))
    (folder / "0" / ".x.png.0123456789ab.partial").touch()
    lines = (folder / "metadata.jsonl").read_text().splitlines(keepends=True)
    (folder / "metadata.jsonl").write_text("".join([*lines[1:], lines[5]]))
    (folder / "classes.json").unlink()
    found = compare(folder, whole_set)
    expected = {"lost": 2, "duplicated": 2, "corrupt": 1, "different": 3, "left over": 1}
    assert +found == expected
