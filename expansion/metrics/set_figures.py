"""Figures of the set that a run learnt from, as `python -m expansion.evaluate` left them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expansion.common.errors import JSON_ERRORS

SET_FOLDER = "expanded_set.folder"  # in results.yaml, relative to the run's folder
FIGURES_FILE = "evaluation.json"
GROUP = "evaluation"  # the figures are facts of a run such as "evaluation.kid"
SHOWN = ("kid", "coverage", "recognised")  # columns of the page, if they are known


def figures_of_set(run_dir: str | Path, facts: Mapping[str, Any]) -> dict[str, float]:
    """The figures of the generated images that a run learnt from, by name.

    There are none if nobody measured them, or if what was measured are other images: before the
    set grew, or the whole set where the run learnt from some of its images.

    Args:
        run_dir: Folder of the run.
        facts: Of the run; they say where the set lies.
    """
    folder = facts.get(SET_FOLDER)
    if not isinstance(folder, str):
        return {}
    try:
        content = json.loads(Path(run_dir, folder, FIGURES_FILE).read_text(encoding="utf-8"))
        figures = content["figures"].items() if content["generated"] == facts["generated"] else ()
    except (OSError, *JSON_ERRORS, KeyError, TypeError, AttributeError):
        return {}
    return {
        f"{GROUP}.{name}": float(f"{value:.4g}")
        for name, value in figures
        if type(value) in (int, float) and math.isfinite(value)
    }
