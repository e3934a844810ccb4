"""Measures the share of generated images that a classifier of real images takes for their class.

    python -m expansion.report.recognised checkpoint/pets/resnet50_unpretrained_lr0.1/seed2 \\
        data/pets_expansion/img2img_5x data/pets_expansion/dreamda_5x

The run must have learnt from real images alone. Each set gets a file `recognised.json`, which the
page shows. A high share alone is no merit: copies of the real images are recognised best.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expansion.classifier.recipe import Recipe
from expansion.common.config import Source, compose, load_yaml
from expansion.common.devices import usable_device
from expansion.common.errors import JSON_ERRORS, InputError, require, run_command
from expansion.common.files import write_atomic
from expansion.common.option_parser import OptionParser
from expansion.report.sets import ExpandedSet, read_set

FILE_NAME = "recognised.json"
MOST_IMAGES = 5000  # images of a set that are looked at; the share's standard error is below 1 %


def main(arguments: Sequence[str] | None = None) -> None:
    parser = OptionParser(prog="python -m expansion.report.recognised", description=__doc__)
    parser.add_argument("run", help="run folder of train_original.py")
    parser.add_argument("sets", nargs="+", metavar="set", help="folder of an expanded set")
    parser.add_argument("--device", default="auto", help="cuda, cpu, ...")
    options = parser.parse_args(arguments)
    for folder in options.sets:
        counts = recognised_share(Path(options.run), read_set(Path(folder)), options.device)
        write_atomic(Path(folder, FILE_NAME), json.dumps(counts, ensure_ascii=False) + "\n")
        share = 100 * counts["recognised"] / counts["images"]
        sys.stdout.write(f"{folder}: {share:.1f} % of {counts['images']} images recognised\n")


def recognised_share(run_dir: Path, expanded: ExpandedSet, device: str = "auto") -> dict[str, Any]:
    """Count the images of a set that the classifier of a run takes for their class.

    Args:
        run_dir: A finished run on real images alone.
        expanded: The set; of more than MOST_IMAGES images, evenly spread ones are looked at.
        device: Where the classifier runs, such as "cuda".

    Returns:
        The content of `recognised.json`.

    Raises:
        InputError: The run is of another kind, or does not know the set's classes.
    """
    from expansion.classifier.backbones import load_classifier
    from expansion.training.objectives import images_in_order, predict

    # The run must be one of real images alone.
    path = run_dir / "checkpoint.pth.tar"
    require(path.is_file(), f"{path} is not there; give a run folder of train_original.py")
    options = load_yaml(run_dir / "options.yaml").values
    require(options.get("num_generated") == 0, f"{run_dir} learnt from generated images as well")
    known = {field.name for field in dataclasses.fields(Recipe)}
    recipe = compose(
        [Recipe], [Source({k: v for k, v in options.items() if k in known}, str(run_dir))]
    )[0]
    # Images and classifier must have the same classes.
    rows = list(expanded.rows.values())
    require(bool(rows), f"{expanded.folder} holds no images")
    rows = rows[:: -(-len(rows) // MOST_IMAGES)]
    classifier = load_classifier(path).to(usable_device(device))
    names = _class_names(path)
    unknown = sorted({row["class"] for row in rows} - set(names))
    require(not unknown, f"{run_dir} does not know the class {unknown[0] if unknown else ''}")
    # Classify the images and count.
    records = [expanded.record(row) for row in rows]
    right: Counter[str] = Counter()
    predicted: list[int] = []
    place = next(classifier.parameters()).device
    for pixels, _ in images_in_order(records, recipe, place):
        predicted += predict(classifier, pixels).argmax(dim=1).tolist()
    for row, label in zip(rows, predicted, strict=True):
        right[row["class"]] += names[label] == row["class"]
    total = Counter(row["class"] for row in rows)
    results = load_yaml(run_dir / "results.yaml").values
    return {
        "run": str(run_dir),
        "seed": options.get("seed"),
        "test_accuracy": results.get("last_accuracy"),
        "images": len(rows),
        "recognised": sum(right.values()),
        "by_class": {name: [right[name], total[name]] for name in names if name in total},
    }


def read_recognised(expanded: ExpandedSet) -> Mapping[str, Any] | None:
    """The `recognised.json` of a set; None if it does not exist or holds something else."""
    try:
        counts = json.loads((expanded.folder / FILE_NAME).read_text(encoding="utf-8"))
        pairs = list(counts["by_class"].values())
        numbers = [counts["images"], counts["recognised"], *(n for pair in pairs for n in pair)]
        whole = all(type(number) is int and number >= 0 for number in numbers)
        accuracy = counts.get("test_accuracy")
        plain = accuracy is None or type(accuracy) in (int, float)
        sizes = counts["images"] > 0 and all(len(pair) == 2 for pair in pairs)
        named = {"seed": None, "test_accuracy": None, **counts}
        return named if whole and plain and sizes else None
    except (OSError, *JSON_ERRORS, KeyError, TypeError, AttributeError):
        return None


def worst_classes(counts: Mapping[str, Any], count: int = 3) -> list[tuple[str, list[int]]]:
    """The classes with the smallest shares below 1, as (name, [recognised, images]).

    Args:
        counts: As `recognised_share` returns them.
        count: Largest number of classes.
    """
    counted = [(name, both) for name, both in counts["by_class"].items() if both[0] < both[1]]
    return sorted(counted, key=lambda each: each[1][0] / each[1][1])[:count]


def _class_names(path: Path) -> list[str]:
    import torch

    names = torch.load(path, map_location="cpu", weights_only=True).get("class_names")
    if not isinstance(names, list):
        raise InputError(f"{path} is of an older version, which did not keep the class names")
    return names


if __name__ == "__main__":
    run_command(main)
