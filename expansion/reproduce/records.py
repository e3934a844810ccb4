"""Which commands fill what, so that a result of other options is not taken for the one asked for.

Folders are named by what the tables say. What the user gives beside (`--clip`, `--inception`,
`--data_dir`), and a table's file that was changed since, show in no name; therefore
`<output_dir>/<scale>/commands.jsonl` keeps the options of whatever was begun.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from expansion.common.errors import JSON_ERRORS, InputError
from expansion.reproduce.nodes import Node, Plan

RECORDS_FILE = "commands.jsonl"
SHARD_OPTIONS = ("total_split", "split")  # which do not change what is made
NUM_SHOWN = 3


class Record(NamedTuple):
    """How a node is made.

    Attributes:
        options: The options of its commands: name -> values, by spaces.
        key: Digest of these and of the keys of all that it needs.
    """

    options: dict[str, str]
    key: str


def check_records(plan: Plan) -> None:
    """Raise InputError if something that is finished was made by other options.

    What has no record, as a file that the user put there, is taken as it is.
    """
    wanted, found = _records_of(plan), _read(plan.root)
    stale = [
        path
        for path, record in found.items()
        if path in wanted and record.key != wanted[path].key and plan.nodes[path].is_finished()
    ]
    if not stale:
        return
    first = min(stale, key=lambda path: (found[path].options == wanted[path].options, path))
    change = _difference(found[first].options, wanted[first].options)
    shown = ", ".join(map(str, stale[:NUM_SHOWN]))
    more = f" and {len(stale) - NUM_SHOWN} more" if len(stale) > NUM_SHOWN else ""
    raise InputError(
        f"{first} was made with other options ({change}); give another --output_dir, or remove "
        f"what was made so: {shown}{more}"
    )


def keep_records(plan: Plan, nodes: Iterable[Node]) -> None:
    """Keep how `nodes` are made, before they are begun here or elsewhere."""
    wanted, found = _records_of(plan), _read(plan.root)
    lines = [
        json.dumps({"path": str(node.path.relative_to(plan.root)), **wanted[node.path]._asdict()})
        for node in nodes
        if found.get(node.path) != wanted[node.path]
    ]
    if lines:
        plan.root.mkdir(parents=True, exist_ok=True)
        with (plan.root / RECORDS_FILE).open("a", encoding="utf-8") as file:
            file.write("".join(f"\n{line}" for line in lines))  # a torn line stays alone


def _records_of(plan: Plan) -> dict[Path, Record]:
    """How each node of a plan is made."""
    records: dict[Path, Record] = {}

    def add(path: Path) -> str:
        if path not in records:
            node = plan.nodes[path]
            options = _options(node, plan.root)
            content = json.dumps([options, [add(needed) for needed in node.needs]])
            records[path] = Record(options, hashlib.sha256(content.encode()).hexdigest()[:16])
        return records[path].key

    for path in plan.nodes:
        add(path)
    return records


def _options(node: Node, root: Path) -> dict[str, str]:
    """The options of a node's commands, but for the number of the shard."""
    options: dict[str, str] = {}
    name = ""
    for word in node.commands[0].arguments:
        if word.startswith("-") and not word[1:2].isdigit():
            name = word.lstrip("-")
            options[name] = ""
        else:
            value = word.replace(str(root), "<root>")
            options[name] = f"{options.get(name, '')} {value}".lstrip()
    return {name: value for name, value in options.items() if name not in SHARD_OPTIONS}


def _read(root: Path) -> dict[Path, Record]:
    """What was begun below `root`; of several records of one path, the last."""
    try:
        lines = (root / RECORDS_FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    records = {}
    for line in lines:
        try:
            content = json.loads(line)
            records[root / content["path"]] = Record(content["options"], content["key"])
        except (*JSON_ERRORS, KeyError, TypeError):  # an empty or torn line
            continue
    return records


def _difference(found: dict[str, str], wanted: dict[str, str]) -> str:
    """How options differ, in words."""
    names = [n for n in {**found, **wanted} if found.get(n) != wanted.get(n)]
    if not names:
        return "those of something it is made from"
    return ", ".join(
        f"{n}: {found.get(n, 'not given')} there, {wanted.get(n, 'not given')} now" for n in names
    )
