"""Which unit comes next: claims put units off, finished ones are left out, none is given up."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from expansion.generation.work_queue import Claims, pending_work, remove_claims
from expansion.images.records import ImageRecord
from expansion.store.expanded_set import StoredSet

STEMS = {f"{i}.png": f"c/{i}" for i in range(6)}
SOURCES = {name: ImageRecord(Path(name), name, 0, "c") for name in STEMS}
UNITS = [(i, [(record, 0)]) for i, record in enumerate(SOURCES.values())]


def make(folder: Path, name: str) -> None:
    """Write the image of a unit as another process would."""
    path = folder / f"{STEMS[name]}_expand_0.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(path)
    row = {"file_name": f"{STEMS[name]}_expand_0.png", "class": "c", "source": name, "variant": 0}
    with (folder / "manifest.0-of-1.other.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def claims_in(folder: Path) -> list[str]:
    return sorted(path.name.removeprefix(".claim.") for path in folder.glob(".claim.*"))


def order_of(folder: Path, claims: Claims, units=UNITS) -> list[str]:
    """The units that the queue gives out; each is done when the next is asked for."""
    given = []
    for unit, missing in pending_work(units, StoredSet(folder, STEMS, SOURCES), claims):
        assert missing == {(unit[0][0].file_name, 0)}
        given.append(unit[0][0].file_name)
        make(folder, given[-1])
    return given


def test_claimed_units_come_last_and_none_is_given_up(tmp_path):
    dead = Claims(tmp_path, 6)
    assert dead.take(UNITS[0]) and dead.take(UNITS[3]) and not dead.take(UNITS[3])
    with Claims(tmp_path, 6) as claims:
        assert order_of(tmp_path, claims) == [f"{i}.png" for i in (1, 2, 4, 5, 0, 3)]
    assert claims_in(tmp_path) == ["0-of-6", "3-of-6"]  # only those of the dead
    remove_claims(tmp_path)
    assert claims_in(tmp_path) == []


def test_of_claimed_units_those_given_back_come_first(tmp_path):
    other = Claims(tmp_path, 6)
    for unit in UNITS[:3]:
        other.take(unit)
    stored = StoredSet(tmp_path, STEMS, SOURCES)
    with Claims(tmp_path, 6) as claims:
        given = []
        for unit, _ in pending_work(UNITS, stored, claims):
            given.append(unit[0][0].file_name)
            make(tmp_path, given[-1])
            if given[-1] == "5.png":
                (tmp_path / ".claim.2-of-6").unlink()
    assert given == [f"{i}.png" for i in (3, 4, 5, 2, 0, 1)]


def test_what_others_finish_meanwhile_is_left_out(tmp_path):
    given = []
    with Claims(tmp_path, 6) as claims:
        for unit, _ in pending_work(UNITS, StoredSet(tmp_path, STEMS, SOURCES), claims):
            given.append(unit[0][0].file_name)
            for name in {"0.png": ["1.png", "4.png"]}.get(given[-1], []):
                make(tmp_path, name)
    assert given == ["0.png", "2.png", "3.png", "5.png"]


def test_claims_are_kept_until_the_images_are_on_disk(tmp_path):
    with Claims(tmp_path, 6) as claims:
        work = pending_work(UNITS, StoredSet(tmp_path, STEMS, SOURCES), claims)
        for _ in range(3):
            next(work)
        assert claims_in(tmp_path) == ["0-of-6", "1-of-6", "2-of-6"]
        make(tmp_path, "1.png")
        next(work)
        assert claims_in(tmp_path) == ["0-of-6", "2-of-6", "3-of-6"]
    assert claims_in(tmp_path) == []


def test_claims_that_vanish_stop_nobody(tmp_path):
    with Claims(tmp_path, 6) as claims:
        for _ in pending_work(UNITS, StoredSet(tmp_path, STEMS, SOURCES), claims):
            remove_claims(tmp_path)


@pytest.mark.parametrize("seed", range(20))
def test_interleaved_processes_do_every_unit_and_hardly_any_twice(tmp_path, seed):
    choose = random.Random(seed)
    queues, given = [], Counter()
    for _ in range(3):
        units = choose.sample(UNITS, len(UNITS))
        queues.append(pending_work(units, StoredSet(tmp_path, STEMS, SOURCES), Claims(tmp_path, 6)))
    in_flight: dict[int, str] = {}
    while queues:
        place = choose.randrange(len(queues))
        if place in in_flight:
            make(tmp_path, in_flight.pop(place))
        try:
            unit, _ = next(queues[place])
        except StopIteration:
            in_flight = {i - (i > place): name for i, name in in_flight.items()}
            queues.pop(place)
            continue
        in_flight[place] = unit[0][0].file_name
        given[in_flight[place]] += 1
    items = [unit[0] for _, unit in UNITS]
    assert set(given) == set(STEMS) and not StoredSet(tmp_path, STEMS, SOURCES).missing(items)
    assert given.total() <= 6 + 4  # what two others had in flight when nothing else was left
