"""Rules that hold for every input: names, shards, seeds and manifests, tried on generated ones."""

from __future__ import annotations

import json
import os
import tempfile
import unicodedata
from pathlib import Path, PureWindowsPath

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from expansion.common.errors import InputError, brief, one_line
from expansion.common.seeding import image_seed, stable_seed
from expansion.common.sharding import make_units, resolve_shard, take_shard
from expansion.data.naming import folder_names, image_stems, ordered_folders
from expansion.data.splits import few_shot, hold_out
from expansion.images.records import ImageRecord
from expansion.images.variants import variant_name
from expansion.store.manifest import merge_manifests, read_manifest

# The same inputs on every machine and in every run, none kept on disk.
fixed = settings(
    derandomize=True,
    deadline=None,
    max_examples=100,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
# Any text at all, half surrogate pairs included, and much of what has hurt before.
HURTFUL = "aA.:/\\- \x00\n\u00e9e\u0301\u0130i\u00dfs\ufb01\uff21\u202e\udcff\U0001f408_CONnul0"
any_text = st.text(max_size=12) | st.text(HURTFUL, max_size=9) | st.text("\u732bx", min_size=90)
utf8_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
counts = st.integers(1, 40)


def folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def assert_safe_component(name: str) -> None:
    assert name == os.path.basename(name) and PureWindowsPath(name).parts == (name,)
    assert name not in ("", ".", "..") and name[0] != "." and name == name.rstrip(". ")
    assert len(name.encode()) <= 200  # which also says that it is text
    assert not any(ord(c) < 32 for c in name)


@pytest.mark.slow
@fixed
@given(st.lists(any_text, unique=True, max_size=12))
def test_any_class_names_get_distinct_folders_of_one_safe_component(names):
    folders = folder_names(names)
    assert set(folders) == set(names)
    assert len({folded(folder) for folder in folders.values()}) == len(names)
    for folder in folders.values():
        assert_safe_component(folder)


@pytest.mark.slow
@fixed
@given(st.lists(any_text, unique=True, max_size=12))
def test_loaders_of_folders_number_the_classes_as_the_dataset_does(names):
    folders = ordered_folders(names)
    assert [folders[name] for name in names] == sorted(folders.values())


@fixed
@given(st.lists(st.tuples(st.sampled_from("ab"), any_text), unique=True, max_size=10))
def test_every_variant_of_any_images_has_a_file_of_its_own_in_its_class_folder(images):
    records = [
        ImageRecord(Path(), f"{kind}/{name}", "ab".index(kind), kind) for kind, name in images
    ]
    folders = {"a": "ant", "b": "bee"}
    stems = image_stems(records, folders)
    places = [variant_name(stems[r.file_name], v) for r in records for v in (0, 1, 10)]
    assert len({folded(place) for place in places}) == 3 * len(records)
    for record in records:
        folder, _, file = variant_name(stems[record.file_name], 3).partition("/")
        assert folder == folders[record.class_name]
        assert_safe_component(file)


@fixed
@given(st.integers(0, 200), counts, counts)
def test_any_shards_partition_any_items_in_units_of_equal_size(num_items, batch_size, total):
    units = make_units(range(num_items), batch_size)
    assert [item for unit in units for item in unit] == list(range(num_items))
    assert all(len(unit) == batch_size for unit in units[:-1])
    shards = [take_shard(units, split, total) for split in range(total)]
    assert sorted(unit for shard in shards for unit in shard) == sorted(units)
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


@fixed
@given(st.integers(0, 50), st.integers(1, 9), counts)
def test_the_tasks_of_any_slurm_array_take_each_shard_once(start, step, count):
    environ = {
        "SLURM_ARRAY_TASK_MIN": str(start),
        "SLURM_ARRAY_TASK_STEP": str(step),
        "SLURM_ARRAY_TASK_COUNT": str(count),
    }
    ids = range(start, start + step * count, step)
    found = [resolve_shard(None, None, {**environ, "SLURM_ARRAY_TASK_ID": str(i)}) for i in ids]
    assert [shard[:2] for shard in found] == [(split, count) for split in range(count)]


@fixed
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "RANK",
                "WORLD_SIZE",
                "SLURM_ARRAY_TASK_ID",
                "SLURM_ARRAY_TASK_COUNT",
                "SLURM_ARRAY_TASK_STEP",
            ]
        ),
        st.integers(-3, 9).map(str) | any_text,
    )
)
def test_any_environment_gives_a_shard_below_the_total_or_an_input_error(environ):
    try:
        split, total, _ = resolve_shard(None, None, environ)
    except InputError:
        return
    assert 0 <= split < total


@pytest.mark.slow
@fixed
@given(st.integers(), st.sets(st.tuples(any_text, st.integers(0, 10**6)), max_size=20))
def test_seeds_fit_a_generator_repeat_and_differ_by_image_and_variant(run_seed, images):
    seeds = [image_seed(run_seed, *image) for image in images]
    assert seeds == [image_seed(run_seed, *image) for image in images]
    assert len(set(seeds)) == len(images) and all(0 <= seed < 2**63 for seed in seeds)
    assert not set(seeds) & {image_seed(run_seed + 1, *image) for image in images}


@fixed
@given(utf8_text)
def test_seeds_of_ordinary_names_are_the_hash_of_their_utf8_bytes(name):
    import hashlib

    digest = hashlib.sha256(f"a\x1f{name}".encode()).digest()
    assert stable_seed("a", name) == int.from_bytes(digest[:8], "big") >> 1


def record_of(label: int, name: str) -> ImageRecord:
    return ImageRecord(Path(), name, label, str(label), pixels=name)


records_of = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 99)), unique=True, min_size=1
).map(lambda pairs: [record_of(c, f"{c}/{i}.png") for c, i in pairs])


@fixed
@given(records_of, st.integers(1, 5), st.integers(0, 9))
def test_fewer_shots_are_a_subset_of_more_for_any_images(records, shots, seed):
    try:
        more = {r.file_name for r in few_shot(records, shots + 1, seed)}
    except InputError:
        return  # a class has too few
    assert {r.file_name for r in few_shot(records, shots, seed)} < more


@fixed
@given(records_of, st.floats(0.01, 0.99), st.integers(0, 9))
def test_held_out_images_and_the_rest_partition_any_images(records, fraction, seed):
    try:
        training, validation = hold_out(records, fraction, seed)
    except InputError:
        return
    assert sorted(r.file_name for r in training + validation) == sorted(
        r.file_name for r in records
    )
    assert (
        {r.label for r in training} == {r.label for r in validation} == {r.label for r in records}
    )


json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
safe_name = st.integers(0, 9).map(lambda i: f"cat/{i}_expand_0.png")
good_row = st.builds(
    lambda name, more: {
        **more,
        "file_name": name,
        "class": "cat",
        "source": "a.png",
        "variant": 0,
        "details": {},
    },
    safe_name,
    st.dictionaries(any_text, json_value, max_size=3),
)


@pytest.mark.slow
@fixed
@given(st.lists(st.lists(good_row, max_size=5), max_size=3))
def test_what_several_manifests_hold_is_read_back_once_per_image(manifests):
    with tempfile.TemporaryDirectory() as folder:
        for number, rows in enumerate(manifests):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            Path(folder, f"manifest.{number}-of-3.x.jsonl").write_text(lines)
        last = {row["file_name"]: row for rows in manifests for row in rows}
        assert read_manifest(Path(folder)) == [last[name] for name in sorted(last)]
        assert merge_manifests(Path(folder)) == [last[name] for name in sorted(last)]
        merged = Path(folder, "metadata.jsonl").read_bytes().decode().split("\n")
        assert [json.loads(line) for line in merged if line] == [
            last[name] for name in sorted(last)
        ]


@pytest.mark.slow
@fixed
@given(st.lists(good_row, min_size=1, max_size=4, unique_by=lambda r: r["file_name"]), st.data())
def test_a_manifest_cut_off_anywhere_keeps_the_rows_before(rows, data):
    content = "".join(json.dumps(row) + "\n" for row in rows)
    place = data.draw(st.integers(0, len(content)))
    whole = content[:place].count("\n")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "manifest.0-of-1.x.jsonl").write_text(content[:place])
        found = {row["file_name"] for row in read_manifest(Path(folder))}
    assert found == {row["file_name"] for row in rows[:whole]}


@pytest.mark.slow
@fixed
@given(
    st.dictionaries(
        st.sampled_from(["file_name", "class", "source", "variant", "details"]), json_value
    )
)
def test_any_row_is_refused_or_names_an_image_below_the_folder(changes):
    row = {"file_name": "c/a.png", "class": "c", "source": "a.png", "variant": 0, **changes}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "manifest.0-of-1.x.jsonl").write_text(json.dumps(row) + "\n")
        try:
            (found,) = read_manifest(Path(folder))
        except InputError as error:
            assert "line 1" in str(error)
            return
        assert Path(os.path.abspath(Path(folder, found["file_name"]))).is_relative_to(folder)
        assert isinstance(found["class"], str)


@pytest.mark.parametrize(
    "name", ["/etc/hostname", "../x.png", "a/../../x", "C:\\x.png", "a\\..\\x"]
)
def test_a_row_that_leads_out_of_the_folder_is_refused(name, tmp_path):
    row = {"file_name": name, "class": "cat", "source": "a.png", "variant": 0}
    (tmp_path / "manifest.0-of-1.x.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="outside"):
        read_manifest(tmp_path)


@pytest.mark.slow
@fixed
@given(any_text | st.text(min_size=3000, max_size=3001) | json_value)
def test_a_message_is_one_line_of_bounded_length_whatever_it_shows(value):
    for text in (str(InputError(value)) if isinstance(value, str) else "", one_line(brief(value))):
        assert len(text.splitlines()) <= 1 and len(text) < 20_000
        text.encode()
