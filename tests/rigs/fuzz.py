"""Hostile input of every kind, many times: what each ended in.

    python -m tests.rigs.fuzz --count 5000 --seed 1
    python -m tests.rigs.fuzz --kinds manifest checkpoint --count 200 --seed 3

Every input must be accepted or end in an InputError of one line. Status 1 and the traces follow if
one ended in a traceback or a hang, wrote outside of its folder, or ran code.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from expansion.common.tables import aligned
from tests import conftest  # noqa: F401  (offline, one thread)
from tests.rigs.fuzz_checkpoints import classifier, diffusion_load, diffusion_plan
from tests.rigs.fuzz_images import image_file, image_folder
from tests.rigs.fuzz_manifests import links, manifest, names
from tests.rigs.fuzz_rig import OUTCOMES, Kind, Sandbox, input_seed, limited_memory, try_input
from tests.rigs.fuzz_sets import (
    archive_folder,
    class_names_in_files,
    dataset_file,
    metadata,
    split_files,
)
from tests.rigs.fuzz_texts import (
    answers,
    load_settings,
    prompts_file,
    results,
    template,
    yaml_of_dataset,
    yaml_of_expand,
    yaml_of_training,
)

GOOD = ("accepted", "InputError")
# Name in the table -> what makes such an input, and its share among the others.
KINDS: dict[str, tuple[Kind, int]] = {
    "image": (image_file, 8),
    "image folder": (image_folder, 3),
    "settings": (load_settings, 4),
    "expand.py's YAML": (yaml_of_expand, 4),
    "training's YAML": (yaml_of_training, 3),
    "dataset's YAML": (yaml_of_dataset, 3),
    "option": (template, 2),
    "prompts file": (prompts_file, 4),
    "prompt writer": (answers, 2),
    "results": (results, 4),
    "manifest": (manifest, 5),
    "names": (names, 4),
    "links in the output": (links, 3),
    "dataset's files": (dataset_file, 8),
    "metadata": (metadata, 4),
    "stored lists": (split_files, 2),
    "class names in files": (class_names_in_files, 2),
    "links in the dataset": (archive_folder, 2),
    "classifier": (classifier, 5),
    "diffusion folder, plan": (diffusion_plan, 3),
    "diffusion folder": (diffusion_load, 3),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.rigs.fuzz")
    parser.add_argument("--count", type=int, default=2000, help="inputs of all kinds together")
    parser.add_argument("--seed", type=int, default=0, help="which inputs")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--first", type=int, default=0, help="number of each kind's first input")
    options = parser.parse_args(arguments)
    counts, traces = fuzz(options.count, options.seed, options.kinds, options.first)
    print(table(counts))
    for name, lines in traces.items():
        print(f"\n{name}\n{lines}", file=sys.stderr)
    return 1 if traces else 0


def fuzz(
    count: int, seed: int, names: Sequence[str] = tuple(KINDS), first: int = 0
) -> tuple[dict[str, Counter[str]], dict[str, str]]:
    """Try `count` inputs.

    Returns:
        Per kind, how many ended in what; and "kind number" -> trace of those that must not be.
    """
    total = sum(KINDS[name][1] for name in names)
    counts: dict[str, Counter[str]] = {}
    traces: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), limited_memory():
        warnings.simplefilter("ignore")
        sandbox = Sandbox(Path(folder).resolve())
        for name in names:
            kind, share = KINDS[name]
            counts[name] = Counter()
            for index in range(first, first + max(1, count * share // total)):
                finding = try_input(kind, input_seed(seed, name, index), sandbox)
                counts[name][finding.outcome] += 1
                if finding.outcome not in GOOD:
                    traces[f"{name} {index}: {finding.outcome}"] = finding.detail
    return counts, traces


def table(counts: dict[str, Counter[str]]) -> str:
    """One line per kind and one for all, as aligned text."""
    rows = [("kind of input", "tried", *OUTCOMES)]
    rows += [_row(name, found) for name, found in counts.items()]
    rows.append(_row("all", sum(counts.values(), Counter())))
    return aligned(rows)


def _row(name: str, found: Counter[str]) -> tuple[str, ...]:
    return (name, str(found.total()), *(str(found[outcome]) for outcome in OUTCOMES))


if __name__ == "__main__":
    sys.exit(main())
