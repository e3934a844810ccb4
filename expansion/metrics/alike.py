"""Tells which runs were not trained alike: those that a row averages, and arms and their Original.

Runs of one arm may differ in their seed, in what was measured, and in the real images that were
drawn for them (`--subset_seed`) with what follows from these: generated images, and what of an
expanded set is known by a hash, such as its guide. So images may differ between runs of different
draws, but not between runs of one draw: there, the photos or the set were changed meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from expansion.metrics.run_folder import DECISIVE, ORIGINAL, RESULTS, TEST_SET, Run
from expansion.metrics.runs import Row
from expansion.metrics.set_figures import GROUP as FIGURES

# Settings that a run need not hold, with what they are then.
IF_ABSENT = {
    "weights": "none",
    "zero_shot_head": "False",
    "max_train_steps": "none",
    "eval_steps": "none",
    "crop": "random",
    "augment_probability": "none",
}
# Facts that follow from which real images were drawn, as do those of an expanded set that are a
# hash. How many are drawn is a setting, and so is how many images are generated and not selected.
DRAWN = {
    "subset_seed", "training_images", "validation_images", "generated", "soft_labels",
    "images_per_epoch", "steps",
}  # fmt: skip
HASHED = re.compile(r"sha256:|\d+ images, ")
SUBSET_SEED = re.compile(r"--subset_seed[ =](\d+)")  # in a command
IMAGES = ("training_images", "real_images")
# Facts in which an arm may differ from Original: what its name tells, with what counts only then,
# and what steps and training images tell already.
OF_THE_ARM = {
    "arm", "augment", "augment_probability", "randaugment_ops", "randaugment_magnitude",
    "mix_alpha", "jsd_weight", "crop", "labels", "label_noise", "selection", "max_variants",
    "real_share", "replace_probability", "only_generated", "num_unlabeled", "unlabeled",
    "num_real", "num_generated", *DRAWN, "epochs", "max_train_steps",
}  # fmt: skip
SHOWN_VALUES = 40  # characters of the values of a setting, if a note shows them


def notes_on_training(table: Sequence[Row]) -> list[str]:
    """Notes on runs that differ in more than seeds, arms not trained like Original, tests learnt.

    Args:
        table: Rows of a table.
    """
    unlike: dict[str, list[str]] = {}
    for row in table:
        if differences := differing_runs(row.runs):
            unlike.setdefault(differences, []).append(row.name)
    lines = [note_on_unlike_runs(names, what) for what, names in unlike.items()]
    lines += [note_on_repeats(row.name, row.repeats) for row in table if row.repeats]
    lines += [unequal] if (unequal := trained_otherwise(table)) else []
    learnt = max(run.number("num_test_learnt") or 0 for row in table for run in row.runs)
    if learnt:
        lines.append(
            f"note: {learnt:.0f} of the test images are training images too (pixel by pixel); what "
            "is measured on them says nothing."
        )
    return lines


def note_on_unlike_runs(names: Sequence[str], differences: str) -> str:
    """The note on arms whose runs were not trained alike.

    Args:
        names: Of the arms.
        differences: From `differing_runs`.
    """
    return (
        f"note: {', '.join(names)} average{'s' if len(names) == 1 else ''} runs that differ in "
        f"{differences}: mean and spread are of these too, not of seeds alone. Train the seeds of "
        "an arm alike, and give what differs another --tag."
    )


def note_on_repeats(name: str, repeats: Iterable[Run]) -> str:
    """The note on runs that do not count, because another run of the arm has their seed.

    Args:
        name: Of the arm.
        repeats: These runs.
    """
    folders = ", ".join(f"{run.folder} (seed {run.seed})" for run in repeats)
    return (
        f"note: {name} leaves out {folders}: of several runs of a seed, that in the folder seed<k> "
        "counts. Move the others elsewhere."
    )


def differing_runs(runs: Sequence[Run]) -> str:
    """What runs of one arm differ in, beside seeds, results and images drawn on purpose.

    Returns:
        Names of settings, with their values if these are short; empty if there are none.
    """
    keys = dict.fromkeys(key for run in runs for key in run.facts)
    several = _settings((key for key in keys if len(values_of(key, runs)) > 1), runs)
    # Images differ on purpose, if they do not within any draw.
    drawn = {key for key in several if _is_drawn(key, runs)}
    if drawn:
        draws: dict[str, list[Run]] = {}
        for run in runs:
            draws.setdefault(draw_of(run), []).append(run)
        drawn = {k for k in drawn if all(len(values_of(k, each)) < 2 for each in draws.values())}
        several = [key for key in several if key not in drawn]
    if len(several) > 1:  # the others say why
        several = [key for key in several if key != "steps"]
    return ", ".join(_shown(key, values_of(key, runs)) for key in several)


def _settings(keys: Iterable[str], runs: Sequence[Run]) -> list[str]:
    """Those of the facts that are settings: what options.yaml lacks was measured."""
    found = [
        key
        for key in keys
        if (key not in RESULTS or key == "arm")
        and key not in TEST_SET
        and not key.startswith(f"{FIGURES}.")
    ]
    decisive = {key for run in runs for key in run.options} | DRAWN if found else DRAWN
    known = len(decisive) > len(DRAWN)
    return [key for key in found if not known or "." in key or key in decisive]


def values_of(key: str, runs: Iterable[Run]) -> set[str]:
    """The values of a fact in those of the runs in which it is known, as text."""
    return {text for text in (_text(key, run) for run in runs) if text is not None}


def _text(key: str, run: Run) -> str | None:
    value = run.facts.get(key)
    if value is not None:
        return f"{value:g}" if isinstance(value, float) else str(value)
    # Runs of the released code keep no settings; a group lacks the settings that are off.
    if "." in key:
        group = key[: key.index(".") + 1]
        return "none" if any(other.startswith(group) for other in run.facts) else None
    return IF_ABSENT.get(key) if "steps" in run.facts else None


def draw_of(run: Run) -> str:
    """The `--subset_seed` by which real images were drawn; "0", its default, if it is not known.

    Older runs tell it by the command in options.yaml alone.
    """
    if "subset_seed" in run.facts:
        return str(run.facts["subset_seed"])
    made_with = run.options.get("made_with")
    command = made_with.get("command") if isinstance(made_with, dict) else None
    found = SUBSET_SEED.search(str(command))
    return found[1] if found else "0"


def _is_drawn(key: str, runs: Sequence[Run]) -> bool:
    """Whether a fact may differ between draws of real images."""
    if key == "num_generated":
        return any("selection" in run.facts for run in runs)
    hashed = "." in key and all(map(HASHED.match, values_of(key, runs)))
    return key in DRAWN or hashed


def _shown(key: str, values: Iterable[str]) -> str:
    name, text = key.partition(".")[2] or key, ", ".join(sorted(values, key=_order))
    return name if len(text) > SHOWN_VALUES else f"{name} ({text})"


def _order(value: str) -> tuple[bool, float, str]:
    """A sort key: numbers first, by size."""
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value


def trained_otherwise(table: Sequence[Row]) -> str:
    """The note on arms that were not trained like their Original; empty if there are none."""
    unequal, found = [], set()
    for row in table:
        other = row.original or table[0]
        keys = _differing_settings(row, other)
        if keys and row.text("arm") != ORIGINAL:
            unequal.append(f"{row.name} differs from {other.name} in {', '.join(keys)}")
            found |= set(keys)
    # What that means for the gains.
    meanings = {
        "Arms are only comparable at equal steps.": {"steps"},
        "With other training images, a gain compares these too.": {*IMAGES},
        "Other seeds are not paired.": {"seed"},
        "With other settings, a gain is of these too.": found - {"steps", "seed", *IMAGES},
    }
    said = [text for text, keys in meanings.items() if keys & found]
    return f"note: {'; '.join(unequal)}. {' '.join(said)}" if unequal else ""


def _differing_settings(row: Row, other: Row) -> list[str]:
    """Names of the settings in which an arm differs from another without saying so in its name.

    If that is not its Original, so that there is no gain, they are those of DECISIVE alone.
    """
    differing = []
    for key in dict.fromkeys((*DECISIVE, *row.runs[0].facts, *other.runs[0].facts)):
        mine, its = (values_of(key, each.runs) for each in (row, other))
        if mine and its and mine != its:
            differing.append(key)
    if row.original is None:
        return [key for key in differing if key in DECISIVE]
    further = {
        key
        for key in _settings(differing, [*row.runs, *other.runs])
        if "." not in key and key not in OF_THE_ARM
        if not all(_is_named(row.text("arm"), key, value) for value in values_of(key, row.runs))
    }
    return [key for key in differing if key in DECISIVE or key in further]


def _is_named(arm: str, key: str, value: str) -> bool:
    """Whether the name of an arm tells a setting, as sweeps and --tag do: "weight_decay0.01"."""
    part = {"True": key, "False": f"no_{key}"}.get(value, f"{key}{value}")
    return f"_{part}_".replace("-", "_") in f"_{arm}_".replace("-", "_")
