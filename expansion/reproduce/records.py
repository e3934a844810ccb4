"""Which commands fill what, so that a result of other options is not taken for the one asked for.

Folders are named by what the tables say. What the user gives beside (`--clip`, `--inception`,
`--data_dir`), and a table's file that was changed since, show in no name; therefore
`<output_dir>/<scale>/commands.jsonl` keeps the options of whatever was begun.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
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
        jobs: The file of `--jobs` that its commands were written to; empty if they were run.
    """

    options: dict[str, str]
    key: str
    jobs: str = ""


def check_records(plan: Plan, jobs: str | None = None) -> None:
    """Raise InputError if something that is finished was made by other options, or may come to be.

    What has no record, as a file that the user put there, is taken as it is.

    Args:
        plan: What is wanted.
        jobs: The file that its commands are to be written to; what that holds will be gone.
    """
    wanted, records = _records_of(plan), _read(plan.root)
    _check_jobs(plan, wanted, records, jobs)
    found = {path: list(each.values())[-1] for path, each in records.items()}
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


def _check_jobs(
    plan: Plan,
    wanted: Mapping[Path, Record],
    records: Mapping[Path, Mapping[str, Record]],
    jobs: str | None,
) -> None:
    """Raise InputError if another file of jobs may still make something by other options."""
    risky = [
        (path, file)
        for path, by_file in records.items()
        for file, record in by_file.items()
        if path in wanted and record.key != wanted[path].key
        if file != _absolute(jobs) and Path(file).is_file() and not plan.nodes[path].is_finished()
    ]
    if not risky:
        return
    options = {each: records[each[0]][each[1]].options for each in risky}
    first = min(risky, key=lambda each: (options[each] == wanted[each[0]].options, each))
    raise InputError(
        f"{first[1]} has commands that make {first[0]} with other options "
        f"({_difference(options[first], wanted[first[0]].options)}); give another --output_dir, or "
        "remove that file if they are not to be run"
    )


def keep_records(plan: Plan, nodes: Iterable[Node], jobs: str | None = None) -> None:
    """Keep how `nodes` are made, before they are begun here or, by the file `jobs`, elsewhere."""
    wanted, found = _records_of(plan), _read(plan.root)
    lines = []
    for node in nodes:
        record = wanted[node.path]._replace(jobs=_absolute(jobs))
        if found.get(node.path, {}).get(record.jobs) != record:
            name = str(node.path.relative_to(plan.root))
            lines.append(json.dumps({"path": name, **record._asdict()}))
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
            options = options_of(node, plan.root)
            content = json.dumps([options, [add(needed) for needed in node.needs]])
            records[path] = Record(options, hashlib.sha256(content.encode()).hexdigest()[:16])
        return records[path].key

    for path in plan.nodes:
        add(path)
    return records


def options_of(node: Node, root: Path) -> dict[str, str]:
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


def _absolute(jobs: str | None) -> str:
    return os.path.abspath(jobs) if jobs is not None else ""


def _read(root: Path) -> dict[Path, dict[str, Record]]:
    """What was begun below `root`: path -> file of jobs -> its last record, the latest at the end.

    Records of what was run, and not written to a file, stand under "".
    """
    try:
        lines = (root / RECORDS_FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    records: dict[Path, dict[str, Record]] = {}
    for line in lines:
        try:
            content = json.loads(line)
            record = Record(content["options"], content["key"], content.get("jobs", ""))
            by_file = records.setdefault(root / content["path"], {})
        except (*JSON_ERRORS, KeyError, TypeError):  # an empty or torn line
            continue
        by_file.pop(record.jobs, None)
        by_file[record.jobs] = record
    return records


def _difference(found: dict[str, str], wanted: dict[str, str]) -> str:
    """How options differ, in words."""
    names = [n for n in {**found, **wanted} if found.get(n) != wanted.get(n)]
    if not names:
        return "those of something it is made from"
    return ", ".join(
        f"{n}: {found.get(n, 'not given')} there, {wanted.get(n, 'not given')} now" for n in names
    )
