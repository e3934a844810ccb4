"""Choose the images of a generated set that are worth training on.

    python -m expansion.evaluate -d digits --exp img2img_10x
    python -m expansion.filter -d digits --exp img2img_10x --at_least own_probability=0.5
    python train_expand.py -d digits --exp img2img_10x --selection \\
        data/digits_expansion/img2img_10x/selected.json

It goes by what expansion.evaluate measured of every image, leaves the set as it is, and writes a
selection: the images that are kept, with their SHA-256, and of the others why not.
"""

from __future__ import annotations

import dataclasses
import logging
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expansion.common.errors import InputError, require
from expansion.common.files import check_writable
from expansion.common.option_parser import OptionParser
from expansion.common.tables import aligned
from expansion.measures.sets import MeasureConfig, Measured, read_images
from expansion.selection.candidates import read_candidates
from expansion.selection.config import FilterConfig
from expansion.selection.rules import Candidate, Dropped, draw_as_many, select
from expansion.store.selection import Selection, numbers_by_class

DEFAULT_NAME = "selected.json"


def parse(arguments: Sequence[str] | None = None) -> FilterConfig:
    """The settings of a command line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--by" in words[:-1]:  # argparse would take the sign of "--by -NAME" for an option
        place = words.index("--by")
        words[place : place + 2] = [f"--by={words[place + 1]}"]
    parser = OptionParser(prog="python -m expansion.filter", description=__doc__)
    return parser.read(words, {"options": FilterConfig}).compose(FilterConfig)[0]


def main(arguments: Sequence[str] | None = None) -> None:
    config = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # The images as they are now, and what was measured of them.
    common = {field.name for field in dataclasses.fields(MeasureConfig)} - {"seed", "dry_run"}
    given = {k: v for k, v in dataclasses.asdict(config).items() if k in common}
    measured = read_images(MeasureConfig(**{**given, "exp": (config.exp,)}))
    image_set = measured.sets[0]
    candidates, measured_by = read_candidates(measured, _evaluate_command(config))
    _check_measured(config, candidates)
    paths = _output_paths(config, image_set.folder)

    # What is kept.
    real = Counter(record.class_name for record in measured.train)
    num_real = {name: real[name] for name in measured.dataset.class_names}
    dropped = select(candidates, config, num_real)
    settings = {**_settings(config), "measured_by": measured_by}
    kept = [(config.rule, dropped)]
    if config.random_control:
        rule = f"at random (seed {config.seed}), numbers per class as by"
        kept.append((f"{rule}: {config.rule}", draw_as_many(candidates, dropped, config.seed)))

    # The files and the table.
    sys.stdout.write(_table(candidates, dropped, list(num_real)) + "\n")
    for path, (rule, dropped) in zip(paths, kept, strict=True):
        selection = _selection(measured, candidates, rule, settings, dropped)
        if not config.dry_run:
            selection.write(path)
            sys.stdout.write(f"written: {path}, {len(selection.kept)} images\n")


def _evaluate_command(config: FilterConfig) -> str:
    """The command that measures the set."""
    words = ["python", "-m", "expansion.evaluate", "-d", config.dataset, "--exp", config.exp]
    words += ["--data_dir", config.data_dir] if config.data_dir != FilterConfig.data_dir else []
    return shlex.join(words)


def _check_measured(config: FilterConfig, candidates: Sequence[Candidate]) -> None:
    """Raise InputError if the rule goes by what nobody judged, with the command that does."""
    command = _evaluate_command(config)
    by_run = f"finish a run of train_original.py, then run {command}"
    for title, remedy in (("clip_", f"run {command} --features clip"), ("", by_run)):
        for name in (f"{title}own_probability", f"{title}entropy"):
            asked = name in (config.by_figure, *(bound.name for bound in config.bounds))
            require(
                not asked or any(name in each.figures for each in candidates),
                f"{config.exp} was measured without {name}; {remedy}",
            )


def _output_paths(config: FilterConfig, folder: Path) -> list[Path]:
    """Where the selections go; raises InputError where other files lie."""
    path = Path(config.output) if config.output else folder / DEFAULT_NAME
    paths = [path]
    if config.random_control:
        paths.append(path.with_name(f"{path.stem}_random.json"))
    for each in paths:
        check_writable(each.parent)
        require(each.parent.is_dir(), f"--output {path}: there is no folder {each.parent}")
        try:
            _ = each.exists() and Selection.read(each)
        except InputError as error:
            raise InputError(
                f"{each} is there and is no selection; give another --output"
            ) from error
    return paths


def _settings(config: FilterConfig) -> dict[str, Any]:
    """What decides, as options."""
    places = ("dataset", "data_dir", "exp", "output", "test_fraction", "random_control", "dry_run")
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in places and getattr(config, field.name) != field.default
    }


def _selection(
    measured: Measured,
    candidates: Sequence[Candidate],
    rule: str,
    settings: dict[str, Any],
    dropped: Dropped,
) -> Selection:
    return Selection(
        dataset=measured.dataset.name,
        set_name=measured.sets[0].folder.resolve().name,
        rule=rule,
        settings=settings,
        classes=numbers_by_class(
            measured.dataset.class_names, {c.file_name: c.class_name for c in candidates}, dropped
        ),
        kept={c.file_name: c.sha256 for c in candidates if c.file_name not in dropped},
        dropped=dict(sorted(dropped.items())),
    )


def _table(candidates: Sequence[Candidate], dropped: Dropped, class_names: Sequence[str]) -> str:
    """Numbers of images by class, and by the reason for which they are dropped."""
    reasons = list(dict.fromkeys(dropped.values()))
    there = Counter(each.class_name for each in candidates)
    lost = Counter((c.class_name, dropped.get(c.file_name)) for c in candidates)
    rows = [["class", "there", "kept", *reasons]]
    for name in class_names:
        numbers = (there[name], lost[name, None], *(lost[name, reason] for reason in reasons))
        rows.append([name, *map(str, numbers)])
    sums = [sum(int(row[place]) for row in rows[1:]) for place in range(1, len(rows[0]))]
    return aligned([*rows, ["all", *map(str, sums)]])
