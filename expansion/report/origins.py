"""The origin of results: settings, commands, versions, and whether they are from a rehearsal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expansion.common.config import PROJECT_ROOT, load_yaml
from expansion.common.errors import InputError
from expansion.diffusion.model_files import model_fingerprint
from expansion.metrics.run_folder import RESULTS, flat, is_plain
from expansion.report.sets import ExpandedSet
from expansion.report.verdict import Findings

TINY_MODEL = PROJECT_ROOT / "assets" / "tiny-sd-digits"
TINY_DATASET = "digits"  # the dataset that the tiny model was trained on


@dataclass(frozen=True)
class Setting:
    """A setting, with its value for each arm or each expanded set."""

    name: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether there are different values."""
        return len(set(self.values)) > 1


def common_settings(findings: Findings) -> list[Setting]:
    """The settings of the arms, without those of their expanded sets (see `set_settings`)."""
    rows = [arm.row for arm in findings.arms]
    keys = dict.fromkeys(key for row in rows for run in row.runs for key in run.facts)
    return [
        Setting(key, tuple(row.text(key) for row in rows))
        for key in keys
        if key not in RESULTS and not key.startswith("expanded_set.")
    ]


def set_settings(sets: Sequence[ExpandedSet]) -> tuple[list[str], list[Setting]]:
    """The names of the sets, and their settings with a value for each set."""
    facts = [_facts_of_set(each) for each in sets]
    keys = dict.fromkeys(key for each in facts for key in each)
    lines = [Setting(key, tuple(_shown(each.get(key)) for each in facts)) for key in keys]
    return [each.name for each in sets], lines


def _facts_of_set(each: ExpandedSet) -> Mapping[str, Any]:
    identity = {k: v for k, v in each.identity.items() if k not in ("made_with", "format")}
    facts = flat(identity)
    named = {key.removeprefix("settings."): value for key, value in facts.items()}
    return {key: value for key, value in named.items() if is_plain(value)}


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Commands:
    """The commands that made the results.

    Attributes:
        lines: Commands in an order in which they can be repeated.
        versions: Versions of libraries ("torch 2.9.0") and of this project ("commit ...").
        num_unknown: Number of older run folders and sets that do not tell their command.
    """

    lines: list[str]
    versions: list[str]
    num_unknown: int


def commands(findings: Sequence[Findings], sets: Sequence[ExpandedSet]) -> Commands:
    """The commands: of arms on real images, then of the sets, then of the arms that use the sets.

    Args:
        findings: Give the arms.
        sets: All expanded sets.
    """
    arms = [arm for each in findings for arm in each.arms]
    plain, generated = ([a for a in arms if a.generated is kind] for kind in (False, True))
    made_with = [
        *(_made_with(run.folder) for arm in plain for run in arm.row.runs),
        *(each.identity.get("made_with") for each in sets),
        *(_made_with(run.folder) for arm in generated for run in arm.row.runs),
    ]
    known = [facts if isinstance(facts, dict) else {} for facts in made_with]
    typed = [str(facts["command"]) for facts in known if facts.get("command")]
    versions: dict[str, None] = {}
    for facts in known:
        libraries = facts.get("versions")
        named = libraries.items() if isinstance(libraries, dict) else ()
        versions |= dict.fromkeys(f"{name} {number}" for name, number in named)
        if facts.get("commit"):
            versions[f"commit {str(facts['commit'])[:12]}"] = None
    return Commands(list(dict.fromkeys(typed)), list(versions), len(known) - len(typed))


def _made_with(folder: str) -> Any:
    try:
        return load_yaml(Path(folder, "options.yaml")).values.get("made_with")
    except InputError:
        return None


def rehearsal(sets: Sequence[ExpandedSet]) -> bool:
    """Whether the tiny model made images of another dataset than the one that it can draw."""
    others = {
        each.identity.get("model")
        for each in sets
        if TINY_DATASET not in (each.dataset, each.facts.get("dataset"))
    }
    if not others or not TINY_MODEL.is_dir():
        return False
    return model_fingerprint(str(TINY_MODEL)) in others
