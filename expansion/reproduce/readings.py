"""What commands leave beside runs: figures of a set and times, of which a damaged file has none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from expansion.common.errors import JSON_ERRORS

PAPER_FIGURES = {"fid": "paper_frechet", "mmd": "paper_mmd"}  # measure -> its name in the file


def figure_of(path: Path, measure: str) -> float | None:
    """A paper's figure of a set; None if the file is absent, or has none.

    Args:
        path: The set's evaluation.json.
        measure: A key of PAPER_FIGURES.
    """
    value = _entry(_content(path), "figures", PAPER_FIGURES[measure])
    return value if is_number(value) else None


def is_evaluated(path: Path, count: int | None) -> bool:
    """Whether a set has the papers' figures of `count` images, or without it any figures."""
    content = _content(path)
    if content is None or _entry(content, "settings", "paper_images") != count:
        return False
    if count is None:
        return bool(_entry(content, "figures"))
    return all(figure_of(path, measure) is not None for measure in PAPER_FIGURES)


def seconds_of(path: Path) -> float | None:
    """Seconds per image by a file of expansion.benchmark; None if it is absent, or has none."""
    lines = _entry(_content(path), "lines")
    lines = lines if isinstance(lines, list) else []
    own = [line for line in lines if _entry(line, "overhead") is not None]  # not the plain networks
    rates = [_entry(line, "images_per_second") for line in own]
    rates = [rate for rate in rates if is_number(rate) and rate > 0]
    return 1 / max(rates) if rates else None


def is_number(value: Any) -> bool:
    """Whether a value of a file is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def _entry(content: Any, *keys: str) -> Any:
    """What mappings within each other hold; None if there is no such entry."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _content(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *JSON_ERRORS):
        return None
