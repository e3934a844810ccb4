"""Sets with hand-made measurements, and the selections of them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from expansion.common.errors import InputError
from expansion.selection import command
from expansion.store.selection import Selection
from tests.measures.conftest import digits, measured_digits, varied, write_set  # noqa: F401

REAL = {"ant": 6, "bee": 3, "cat": 3}  # real images, with three variants each


def measure(folder: Path) -> None:
    """Write what expansion.evaluate would, as far as the filter reads it."""
    rows, seen = [], Counter()
    for line in (folder / "metadata.jsonl").read_text().splitlines():
        name, class_name = (json.loads(line)[key] for key in ("file_name", "class"))
        rows.append(
            {
                "file_name": name,
                "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
                "class": class_name,
                "own_probability": round(0.95 - 0.05 * seen[class_name], 2),
                "test_distance": 1.0 if seen[class_name] else None,
            }
        )
        seen[class_name] += 1
    content = {
        "format": 1,
        "settings": {"features": "run R", "labels_judged_by": "run R"},
        **{"copies": [], "leaks": [], "twins": []},
    }
    write_measurement(folder, rows, content)


def write_measurement(folder: Path, rows: list[dict], content: dict) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "evaluation.jsonl").write_text(text)
    (folder / "evaluation.json").write_text(json.dumps(content))


def read_measurement(folder: Path) -> tuple[list[dict], dict]:
    lines = (folder / "evaluation.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], json.loads(
        (folder / "evaluation.json").read_text()
    )


def line(made: Path, *options: str) -> list[str]:
    zoo = made.parents[2] / "zoo"
    return ["-d", str(zoo), "--data_dir", str(made.parents[1]), "--exp", made.name, *options]


def selected(made: Path, *options: str) -> Selection:
    command.main(line(made, *options))
    return Selection.read(made / "selected.json")


def numbers(selection: Selection) -> dict[str, int]:
    return dict(Counter(Path(name).parts[0] for name in selection.kept))


def refusal(main, arguments: list[str]) -> str:
    with pytest.raises(InputError) as error:
        main(arguments)
    assert "\n" not in str(error.value)
    return str(error.value)
