"""Faults put into a set of digits are found: copies, leaks, wrong labels, noise, collapse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expansion.measures import command
from tests.measures.conftest import noise, varied, write_set

pytestmark = pytest.mark.slow  # sets are made and measured

VARIANTS = 3
NOISE, COLLAPSED = "3", "7"  # classes


@pytest.fixture(scope="module")
def found(measured_digits, digits) -> dict[str, dict]:
    """Both sets as measured: `plain`, and `planted` with all faults; names of faulty images."""
    train, test = digits.records("train"), digits.records("test")
    whole = [r for r in train if r.class_name not in (NOISE, COLLAPSED)]
    first = {r.file_name for r in train if r.class_name == COLLAPSED}
    lone = next(r for r in train if r.class_name == COLLAPSED)
    # Of 480 images in the sound classes: 30 copies, 30 leaks (each 5 % of the set), 120 wrong.
    copied = {(r.file_name, 0): r for r in whole[:150:5]}
    others = {c: [r for r in test if r.class_name == c] for c in digits.class_names}
    leaked = {(r.file_name, 1): others[r.class_name].pop() for r in whole[:150:5]}
    wrong = {
        (r.file_name, 2): next(o for o in train if o.class_name == str((r.label + 4) % 10))
        for r in whole[:120]
    }
    stems = {r.file_name: f"{r.class_name}/{Path(r.file_name).stem}" for r in train}

    def draw(record, number):
        key = record.file_name, number
        if record.class_name == NOISE:
            return noise(record, number)
        if record.file_name in first:
            return lone.load().transpose(0)
        if key in copied or key in leaked:
            return (copied | leaked)[key].load()
        return varied(wrong.get(key, record), number)

    data = measured_digits / "data"
    folders = [data / "digits_expansion" / name for name in ("plain", "planted")]
    write_set(folders[0], train, VARIANTS, varied)
    write_set(folders[1], train, VARIANTS, draw)
    places = {"data_dir": data, "checkpoint_dir": measured_digits / "checkpoint"}
    places["cache_dir"] = measured_digits / "cache"
    options = [word for name, place in places.items() for word in (f"--{name}", str(place))]
    command.main(["-d", "digits", "--exp", "plain", "planted", *options])
    sets = {f.name: json.loads((f / "evaluation.json").read_text()) for f in folders}
    rows = [json.loads(line) for line in (folders[1] / "evaluation.jsonl").open()]
    keys = {
        title: {f"{stems[name]}_expand_{number}.png" for name, number in chosen}
        for title, chosen in (("copied", copied), ("leaked", leaked), ("wrong", wrong))
    }
    return {**sets, "rows": {row["file_name"]: row for row in rows}, "names": keys}


def listed(content: dict, kind: str) -> list[str]:
    return [entry["file_name"] for entry in content[kind]]


def test_copies_of_training_images_are_listed_first(found):
    names = found["names"]["copied"]
    assert len(names) == 30
    assert set(listed(found["planted"], "copies")[:30]) == names
    assert found["plain"]["figures"]["copies"] <= 12  # 2 %: real images come to 1 %


def test_copies_of_test_images_are_listed_first_and_the_image_is_named(found, digits):
    names = found["names"]["leaked"]
    assert len(names) == 30
    assert set(listed(found["planted"], "leaks")[:30]) == names
    assert found["plain"]["figures"]["leaks"] <= 12
    entry = found["planted"]["leaks"][0]
    assert entry["distance"] == 0
    assert entry["of"] in {r.file_name for r in digits.records("test")}


def test_wrong_labels_lower_the_share_that_is_recognised(found):
    shares = {
        name: [
            facts["recognised"]
            for c, facts in found[name]["classes"].items()
            if c not in (NOISE, COLLAPSED)
        ]
        for name in ("plain", "planted")
    }
    lost = sum(shares["plain"]) / 8 - sum(shares["planted"]) / 8
    assert lost == pytest.approx(120 / 480, abs=0.08)
    rows = [found["rows"][name] for name in found["names"]["wrong"]]
    assert sum(row["recognised_as"] != row["class"] for row in rows) > 0.9 * len(rows)
    assert sum(row["own_probability"] < 0.3 for row in rows) > 0.85 * len(rows)


def test_a_class_of_noise_is_the_worst(found):
    planted = found["planted"]
    assert planted["worst_classes"]["kid"][0] == NOISE
    assert planted["classes"][NOISE]["density"] < 0.05
    assert planted["classes"][NOISE]["coverage"] < 0.1


def test_a_class_of_one_image_covers_nothing_and_consists_of_twins(found):
    planted = found["planted"]
    assert planted["classes"][COLLAPSED]["coverage"] < 0.35
    assert COLLAPSED in planted["worst_classes"]["coverage"][:2]
    twins = {name for name in listed(planted, "twins") if name.startswith(f"{COLLAPSED}/")}
    assert len(twins) == planted["classes"][COLLAPSED]["images"] == 60
    assert found["plain"]["figures"]["twins"] < 20


def test_the_set_with_faults_is_farther_from_the_real_images(found):
    plain, planted = found["plain"]["figures"], found["planted"]["figures"]
    assert planted["class_kid"] > 2 * plain["class_kid"]
    assert planted["class_coverage"] < plain["class_coverage"]


def test_the_zero_lines_are_what_is_known_beforehand(found):
    lines = found["plain"]["zero_lines"]
    half, copied, other = (lines[n] for n in lines)
    assert half["p_value"] > 0.05 and half["coverage"] > 0.9
    assert abs(half["class_kid"]) < 0.1 * abs(found["plain"]["figures"]["class_kid"])
    assert copied["copies"] == copied["images"] == 200 and copied["recognised"] > 0.95
    assert other["class_coverage"] < 0.1 and other["recognised"] < 0.1
    assert half["leaks"] < 0.04 * half["images"]
