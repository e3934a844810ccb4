"""Seeds that depend on what is computed, and shards that lose nothing."""

from __future__ import annotations

import itertools

import pytest
import torch

from expansion.common.devices import device_and_dtype, usable_device
from expansion.common.errors import InputError
from expansion.common.seeding import image_generator, image_seed, stable_seed
from expansion.common.sharding import make_units, resolve_shard, take_shard


def test_seeds_stay_the_same_for_ever():
    assert stable_seed("a", 1) == 4742018630964328543
    assert image_seed(42, "train/0/0001.png", 3) == 7273020215121948097


def test_seeds_differ_by_run_image_and_variant():
    names = ["train/0/1.png", "train/0/2.png", "train/1/1.png", "train/0/1.jpg"]
    seeds = [image_seed(*k) for k in itertools.product(range(10), names, range(25))]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_parts_of_a_seed_do_not_run_together():
    assert (
        len({stable_seed(*p) for p in [("ab", "c"), ("a", "bc"), ("abc",), ("a", "b", "c")]}) == 4
    )


def test_an_image_generator_repeats_its_noise_and_leaves_the_global_one_alone():
    before = torch.random.get_rng_state()
    first, again, other = (
        torch.randn(8, generator=image_generator(1, "train/a/1.png", variant))
        for variant in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("num_items", "batch_size"), [(0, 4), (1, 4), (7, 3), (12, 4), (10, 1), (5, 50)]
)
def test_every_shard_count_partitions_the_units(num_items, batch_size):
    items = [f"image {i}" for i in range(num_items)]
    units = make_units(items, batch_size)
    assert [item for unit in units for item in unit] == items
    assert all(len(unit) == batch_size for unit in units[:-1])
    assert all(0 < len(unit) <= batch_size for unit in units)
    for total in range(1, len(units) + 3):
        shards = [take_shard(units, split, total) for split in range(total)]
        assert sorted(u for shard in shards for u in shard) == sorted(units)
        sizes = [len(shard) for shard in shards]
        assert max(sizes) - min(sizes) <= 1
        for j, unit in enumerate(units):
            assert unit in shards[j % total]


def test_units_do_not_depend_on_the_shard_count():
    units = make_units(list(range(23)), 4)
    for total in (1, 2, 3, 6, 9):
        computed = [tuple(u) for split in range(total) for u in take_shard(units, split, total)]
        assert set(computed) == set(map(tuple, units))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused(batch_size):
    with pytest.raises(InputError, match=f"--batch_size {batch_size}"):
        make_units([1, 2], batch_size)


LAUNCH = {"RANK": "2", "WORLD_SIZE": "4"}
ARRAY = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "8"}


@pytest.mark.parametrize(
    ("split", "total_split", "environ", "expected"),
    [
        (None, None, {}, (0, 1)),
        (0, 1, {}, (0, 1)),
        (3, 4, {}, (3, 4)),
        (0, 4, {}, (0, 4)),
        (None, None, LAUNCH, (2, 4)),
        (1, 3, LAUNCH | ARRAY, (1, 3)),
        (None, None, LAUNCH | ARRAY, (2, 4)),
        (None, None, ARRAY, (5, 8)),
        (None, None, ARRAY | {"SLURM_ARRAY_TASK_MIN": "1"}, (4, 8)),
    ],
)
def test_the_shard_comes_from_options_then_launcher_then_array(
    split, total_split, environ, expected
):
    shard = resolve_shard(split, total_split, environ)
    assert shard[:2] == expected
    assert bool(shard.origin) == (split is None and bool(environ))  # who decided it is said


def pretend_a_gpu(monkeypatch, kind: str) -> None:
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available: torch.device(kind)
    )
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("cuda", "float16"), ("mps", "float32"), ("xpu", "float32")]
)
def test_any_kind_of_gpu_is_taken_before_the_cpu(monkeypatch, kind, dtype):
    pretend_a_gpu(monkeypatch, kind)
    assert device_and_dtype("auto", "auto") == (f"{kind}:0", dtype)
    assert device_and_dtype("cpu", "auto") == ("cpu", "float32")


def test_launched_processes_of_two_machines_take_each_shard_once_and_each_gpu_once(monkeypatch):
    pretend_a_gpu(monkeypatch, "cuda")
    shards, devices = [], []
    for machine in range(2):
        for local_rank in range(4):
            environ = ARRAY | {"RANK": str(4 * machine + local_rank), "WORLD_SIZE": "8"}
            shards.append(resolve_shard(None, None, environ))  # the launcher wins over the array
            monkeypatch.setenv("LOCAL_RANK", str(local_rank))
            devices.append((machine, usable_device("auto")))
    assert [shard[:2] for shard in shards] == [(i, 8) for i in range(8)]
    assert devices == [(machine, f"cuda:{i}") for machine in range(2) for i in range(4)]


@pytest.mark.parametrize("task_ids", [range(0, 4), range(1, 9), range(3, 12, 4), range(10, 31, 5)])
def test_a_slurm_array_of_any_start_and_step_takes_each_shard_once(task_ids):
    shards = []
    for task_id in task_ids:
        environ = {
            "SLURM_ARRAY_TASK_ID": str(task_id),
            "SLURM_ARRAY_TASK_COUNT": str(len(task_ids)),
            "SLURM_ARRAY_TASK_MIN": str(task_ids.start),
            "SLURM_ARRAY_TASK_STEP": str(task_ids.step),
        }
        shards.append(resolve_shard(None, None, environ))
    assert [shard[:2] for shard in shards] == [(i, len(task_ids)) for i in range(len(task_ids))]


@pytest.mark.parametrize(
    ("split", "total_split", "environ", "named"),
    [
        (4, 4, {}, "--split 4"),
        (-1, 4, {}, "--split -1"),
        (0, 0, {}, "--total_split 0"),
        (0, -2, {}, "--total_split -2"),
        (2, None, {}, "--split 2"),
        (0, None, {}, "--split"),  # alone, it would quietly do everything
        (None, None, {"WORLD_SIZE": "4"}, "RANK"),
        (None, None, {"WORLD_SIZE": "4", "RANK": "x"}, "--split"),
        (None, None, {"SLURM_ARRAY_TASK_COUNT": "4"}, "SLURM_ARRAY_TASK_ID"),
        (None, None, ARRAY | {"SLURM_ARRAY_TASK_ID": "8"}, "--split 8"),
    ],
)
def test_an_impossible_shard_is_refused_with_its_numbers(split, total_split, environ, named):
    with pytest.raises(InputError, match=named):
        resolve_shard(split, total_split, environ)


def test_a_unit_never_cuts_a_group_and_is_as_full_as_groups_allow():
    items = [(image, k) for image in "abcd" for k in range(5)]
    for size, batch_size in itertools.product((1, 2, 3, 5), (5, 6, 7, 20, 50)):
        group_of = lambda item, size=size: (item[0], item[1] // size)  # noqa: E731
        units = make_units(items, batch_size, group_of)
        assert [item for unit in units for item in unit] == items
        assert all(len(unit) <= batch_size for unit in units)
        groups = [{group_of(item) for item in unit} for unit in units]
        assert not any(a & b for a, b in itertools.combinations(groups, 2))
        # The next group would not have fitted.
        for unit, following in itertools.pairwise(units):
            first = sum(group_of(item) == group_of(following[0]) for item in items)
            assert len(unit) + first > batch_size
    assert make_units(items, 6, lambda item: item) == make_units(items, 6)


def test_a_group_that_no_unit_can_hold_is_one_line_of_error():
    with pytest.raises(InputError, match="--batch_size 2: 3 variants .* give 3 or more") as error:
        make_units(range(6), 2, lambda item: item // 3)
    assert "\n" not in str(error.value)
    assert make_units([], 2, lambda item: item) == []
