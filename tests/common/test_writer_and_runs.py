"""The expanded set on disk and run folders: whole or absent, one owner, readable by others."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from torchvision.datasets import ImageFolder

from expansion.common.errors import InputError
from expansion.common.files import IDENTITY_FORMAT, claim_folder, is_done, write_atomic
from expansion.images.records import ImageRecord
from expansion.images.variants import Variant, variant_name
from expansion.store.expanded_set import StoredSet, read_expansion
from expansion.store.manifest import MadeWith, manifest_row, merge_manifests, read_manifest
from expansion.store.places import png_checksum
from expansion.store.writer import ExpansionWriter, encode_png
from tests.conftest import ROOT

CLASSES = ("cat", "dog")
STEMS = {"train/cat/a.png": "cat/a", "train/dog/b.png": "dog/b"}
SOURCES = {
    name: ImageRecord(Path(name), name, label, CLASSES[label]) for label, name in enumerate(STEMS)
}
MADE_WITH = MadeWith("img2img", "sha256:0", "0", 1)


def variant_of(name: str, number: int) -> Variant:
    file_name = variant_name(STEMS[name], number)
    return Variant(SOURCES[name], number, file_name, "a photo of a \u72d7 {caf\u00e9}")


VARIANTS = [variant_of(name, number) for name in STEMS for number in range(2)]
ROWS = [manifest_row(variant, MADE_WITH, {}) for variant in VARIANTS]


def missing_in(folder: Path, variants: Sequence[Variant] = VARIANTS) -> list[tuple[str, int]]:
    return [variant.key for variant in StoredSet(folder, SOURCES).missing(variants)]


def pixels_of(value: int) -> np.ndarray:
    return np.random.default_rng(value).integers(0, 256, (16, 12, 3), dtype=np.uint8)


def written(i: int, **changes) -> dict:
    """The manifest's row of the image that `expanded` writes under number `i`."""
    checksum = png_checksum(encode_png(pixels_of(i), ROWS[i]))
    return {**ROWS[i], "png_crc32": checksum, **changes}


@pytest.fixture
def expanded(tmp_path) -> Path:
    """A folder with all four images, written by two shards."""
    for split in range(2):
        with ExpansionWriter(tmp_path, MADE_WITH, split, 2) as writer:
            for i in range(split, 4, 2):
                writer.write(pixels_of(i), VARIANTS[i], {})
    return tmp_path


@pytest.fixture
def manifest(expanded) -> Path:
    """The first shard's manifest, of two rows."""
    return next(expanded.glob("manifest.0-of-2.*.jsonl"))


@contextmanager
def disk_space_per_file(num_bytes: int):
    """Writing beyond `num_bytes` of a file fails part of the way, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_was_written_is_whole_listed_and_without_partial_files(expanded):
    assert missing_in(expanded) == []
    files = {p.relative_to(expanded).as_posix() for p in expanded.rglob("*") if p.is_file()}
    assert {f for f in files if not f.startswith("manifest.")} == {r["file_name"] for r in ROWS}
    assert len(files) == 4 + 2
    assert np.array_equal(Image.open(expanded / "dog/b_expand_1.png"), pixels_of(3))


def test_an_image_says_what_it_is(expanded):
    text = Image.open(expanded / "dog/b_expand_1.png").text
    assert text.pop("synthetic") == "true"
    keys = ("method", "source", "seed", "prompt", "model")
    assert text == {key: str(ROWS[3][key]) for key in keys}


@pytest.mark.parametrize("damage", ["cut", "cut, no row", "no file", "no row", "empty"])
def test_an_image_without_a_whole_file_or_without_a_row_is_missing(expanded, manifest, damage):
    path = expanded / "cat/a_expand_0.png"
    path.write_bytes({"e": b"", "c": path.read_bytes()[:-5]}.get(damage[0], path.read_bytes()))
    if damage == "no file":
        path.unlink()
    if "no row" in damage:
        lines = manifest.read_text().splitlines(keepends=True)
        manifest.write_text("".join(line for line in lines if "cat/a_expand_0" not in line))
    assert missing_in(expanded) == [("train/cat/a.png", 0)]


def test_everything_is_missing_before_the_first_image(tmp_path):
    assert len(missing_in(tmp_path / "new")) == 4


@pytest.mark.parametrize("keep", [5, 60, -10])
def test_a_last_line_cut_off_by_a_crash_is_ignored(expanded, manifest, keep):
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text(lines[0] + lines[1][:keep])
    lost = json.loads(lines[1])
    assert missing_in(expanded) == [(lost["source"], lost["variant"])]


@pytest.mark.parametrize("broken", ['{"file_name": "a', "[1, 2]", '{"label": 0}', "17", '"text"'])
def test_a_broken_line_in_the_middle_is_named(expanded, manifest, broken):
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([lines[0], broken, lines[1]]) + "\n")
    with pytest.raises(InputError, match=rf"{manifest.name}, line 2"):
        read_manifest(expanded)


def test_the_last_row_of_an_image_wins_and_rows_are_sorted(expanded, manifest):
    with manifest.open("a") as file:
        file.write(json.dumps(written(0, prompt="newer")) + "\n")
    assert read_manifest(expanded) == [written(0, prompt="newer"), *map(written, range(1, 4))]


def test_merged_manifests_hold_one_row_per_image_of_all_shards(expanded):
    for _ in range(2):
        merge_manifests(expanded)
        text = (expanded / "metadata.jsonl").read_text(encoding="utf-8")
        assert [json.loads(line) for line in text.splitlines()] == list(map(written, range(4)))


@pytest.mark.parametrize("num_images", [3, 300])  # 300: more than may wait for the disk
def test_a_write_error_surfaces_and_leaves_no_row_and_no_partial_file(tmp_path, num_images):
    (tmp_path / "cat").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="cat"):
        with ExpansionWriter(tmp_path, MADE_WITH) as writer:
            for variant in range(num_images):
                writer.write(pixels_of(0), variant_of("train/cat/a.png", variant), {})
    assert read_manifest(tmp_path) == [] and os.listdir(tmp_path) == ["cat"]


def test_an_image_that_does_not_fit_on_the_disk_leaves_no_file(tmp_path):
    with pytest.raises(OSError, match="File too large"):
        with disk_space_per_file(300), ExpansionWriter(tmp_path, MADE_WITH) as writer:
            writer.write(pixels_of(0), VARIANTS[0], {})
    assert list(tmp_path.rglob("*.p*")) == [] and read_manifest(tmp_path) == []


def test_a_disk_that_is_full_for_a_while_leaves_a_manifest_that_can_be_read(tmp_path):
    dot = np.zeros((1, 1, 3), dtype=np.uint8)
    cats = [variant_of("train/cat/a.png", number) for number in range(20)]
    with pytest.raises(OSError, match="No space left"):
        with ExpansionWriter(tmp_path, MADE_WITH) as writer:
            with disk_space_per_file(1500):  # room for some rows, and part of another
                for variant in range(10):
                    writer.write(dot, cats[variant], {})
                while not all(future.done() for future in writer.pending):
                    time.sleep(0.001)
            for variant in range(10, 20):
                writer.write(dot, cats[variant], {})
    assert 1 <= len(missing_in(tmp_path, cats)) <= 17


def test_an_expansion_is_read_back_with_the_labels_of_its_real_images(expanded):
    later = {name: replace(record, label=record.label + 1) for name, record in SOURCES.items()}
    records = read_expansion(expanded, later)  # a class "bird" came before the others
    assert [(r.file_name, r.class_name, r.source) for r in records] == [
        (row["file_name"], row["class"], row["source"]) for row in ROWS
    ]
    assert [r.label for r in records] == [1, 1, 2, 2]
    assert np.array_equal(records[3].load(), pixels_of(3))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"file_name": "cat/lost_expand_2.png", "variant": 2}, "variant 2 of train/cat/a.png"),
        ({"variant": -1}, "variant"),
        ({"variant": True}, "variant"),
        ({"file_name": "../cat/a_expand_0.png"}, "outside"),
        ({"file_name": "/etc/hostname"}, "outside"),
        ({"class": None}, "class"),
    ],
)
def test_an_expansion_that_does_not_fit_is_refused(expanded, manifest, changes, named):
    row = {key: value for key, value in {**ROWS[0], **changes}.items() if value is not None}
    with manifest.open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=named):
        read_expansion(expanded, SOURCES)


def test_missing_images_are_listed_and_left_out_where_that_is_asked_for(expanded, caplog):
    for name in (ROWS[0]["file_name"], ROWS[2]["file_name"]):
        (expanded / name).unlink()
    with pytest.raises(InputError) as caught:
        read_expansion(expanded, SOURCES)
    message = str(caught.value)
    assert "2 of 4 images are missing" in message and "--on_incomplete use" in message
    assert all(f"variant 0 of {row['source']}" in message for row in (ROWS[0], ROWS[2]))
    records = read_expansion(expanded, SOURCES, "use")
    assert [r.file_name for r in records] == [ROWS[1]["file_name"], ROWS[3]["file_name"]]
    assert "2 of 4 images are missing" in caplog.text


def test_a_folder_without_a_manifest_is_no_expansion(tmp_path):
    with pytest.raises(InputError, match="expand.py"):
        read_expansion(tmp_path, SOURCES)


def test_torchvision_loads_the_expanded_set_as_an_image_folder(expanded):
    merge_manifests(expanded)
    dataset = ImageFolder(str(expanded))
    assert dataset.classes == list(CLASSES) and Counter(dataset.targets) == {0: 2, 1: 2}
    assert np.array_equal(dataset[3][0], pixels_of(3))


NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.EINVAL)
IDENTITY = {"seed": 1, "settings": {"rho": 1e-05, "words": ("a", "b")}, "model": None}


def stored_seed(folder: Path) -> int:
    return yaml.safe_load((folder / "run.yaml").read_text())["seed"]


def test_the_same_identity_may_claim_a_folder_again(tmp_path):
    for _ in range(2):
        claim_folder(tmp_path / "deep/run", "run.yaml", IDENTITY, "remedy")
    assert os.listdir(tmp_path / "deep/run") == ["run.yaml"]
    stored = yaml.safe_load((tmp_path / "deep/run/run.yaml").read_text())
    assert stored.pop("made_with")["versions"]["torch"]
    assert stored.pop("format") == IDENTITY_FORMAT
    assert stored == {"seed": 1, "settings": {"rho": 1e-05, "words": ["a", "b"]}, "model": None}


@pytest.mark.parametrize("no_link", [None, *NO_LINKS])  # file systems without hard links
def test_another_identity_is_refused_with_each_difference(tmp_path, monkeypatch, no_link):
    def refuse(*_):
        raise OSError(no_link, os.strerror(no_link))

    if no_link:
        monkeypatch.setattr(os, "link", refuse)
    claim_folder(tmp_path, "run.yaml", IDENTITY, "remedy")
    before = (tmp_path / "run.yaml").read_text()
    other = {**IDENTITY, "seed": 2, "settings": {"rho": 0.5, "words": ["a", "b"]}, "dtype": "fp16"}
    with pytest.raises(InputError, match="give another folder") as error:
        claim_folder(tmp_path, "run.yaml", other, "give another folder")
    for shown in (
        "seed: 1 there, 2 now",
        "rho: 1e-05 there, 0.5 now",
        "dtype: not given there, 'fp16'",
    ):
        assert shown in str(error.value)
    assert "words" not in str(error.value) and "model" not in str(error.value)
    assert (tmp_path / "run.yaml").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize("num_identities", [1, 4])
def test_of_processes_that_claim_together_the_first_identity_wins(tmp_path, num_identities):
    code = (
        "import sys; from pathlib import Path\n"
        "from expansion.common.errors import InputError\n"
        "from expansion.common.files import claim_folder\n"
        "print('ready', flush=True); input(); seed = int(sys.argv[2])\n"
        "try: claim_folder(Path(sys.argv[1]), 'run.yaml', {'seed': seed}, 'remedy'); print(seed)\n"
        "except InputError: print('refused')\n"
    )
    pipe, seeds = subprocess.PIPE, [str(i % num_identities) for i in range(4)]
    commands = [[sys.executable, "-c", code, tmp_path / "run", seed] for seed in seeds]
    claims = [subprocess.Popen(c, cwd=ROOT, text=True, stdin=pipe, stdout=pipe) for c in commands]
    assert {claim.stdout.readline() for claim in claims} == {"ready\n"}
    for claim in claims:
        claim.stdin.write("\n")
        claim.stdin.flush()
    said = sorted(claim.communicate(timeout=60)[0].strip() for claim in claims)
    winner = str(stored_seed(tmp_path / "run"))
    assert said == ([winner, *["refused"] * 3] if num_identities == 4 else [winner] * 4)
    assert os.listdir(tmp_path / "run") == ["run.yaml"]


# Threads stand for machines whose containers give their processes equal numbers.
def test_of_claims_with_one_process_number_the_first_identity_wins(tmp_path, monkeypatch):
    first_waits, second_came, link = threading.Event(), threading.Event(), os.link

    def link_in_order(source, target):
        if not first_waits.is_set():
            first_waits.set()
            second_came.wait(2)
        else:
            second_came.set()
            time.sleep(0.2)  # the first goes on
        link(source, target)

    def claim(seed: int) -> int:
        try:
            claim_folder(tmp_path / "run", "run.yaml", {"seed": seed}, "remedy")
        except InputError:
            return 0
        return seed

    monkeypatch.setattr(os, "link", link_in_order)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(claim, 1)
        first_waits.wait(2)
        second = pool.submit(claim, 2)
    assert (first.result(), second.result(), stored_seed(tmp_path / "run")) == (1, 0, 1)


def test_atomic_writes_with_one_process_number_do_not_disturb_each_other(tmp_path, monkeypatch):
    both_wrote, replace = threading.Barrier(2, timeout=5), os.replace

    def replace_together(*paths):
        both_wrote.wait()
        replace(*paths)

    monkeypatch.setattr(os, "replace", replace_together)
    path = tmp_path / "metadata.jsonl"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda content: write_atomic(path, content), ("one", "two")))
    assert path.read_text() in ("one", "two") and os.listdir(tmp_path) == ["metadata.jsonl"]


@pytest.mark.parametrize("content", ["new \u72d7", b"\x00\xff"])
def test_an_atomic_write_replaces_the_content(tmp_path, content):
    (tmp_path / "file").write_text("old")
    write_atomic(tmp_path / "file", content)
    expected = content if isinstance(content, bytes) else content.encode()
    assert (tmp_path / "file").read_bytes() == expected and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("failure", ["full disk", "rename", "encoding"])
def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, failure):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    if failure == "rename":
        monkeypatch.setattr(os, "replace", fail)
        monkeypatch.setattr(os, "rename", fail)
    (tmp_path / "file").write_text("old")
    content = "\udcff" if failure == "encoding" else "new " * 5000
    space = 1000 if failure == "full disk" else 1_000_000
    with pytest.raises((OSError, UnicodeEncodeError)), disk_space_per_file(space):
        write_atomic(tmp_path / "file", content)
    assert (tmp_path / "file").read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_a_run_is_done_when_its_results_exist(tmp_path):
    (tmp_path / "options.yaml").touch()
    assert not is_done(tmp_path)
    (tmp_path / "results.yaml").touch()
    assert is_done(tmp_path)
