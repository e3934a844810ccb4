"""The batch size that was measured for an output folder, so that all its processes use the same."""

from __future__ import annotations

from pathlib import Path

from expansion.common.errors import require
from expansion.common.files import write_if_absent
from expansion.common.texts import read_json

FILE_NAME = ".batch_size.json"


def remembered_batch_size(output_dir: Path) -> int | None:
    """The batch size that was measured for a folder; None if none was.

    Raises:
        InputError: The file does not hold a positive number.
    """
    path = output_dir / FILE_NAME
    if not path.is_file():
        return None
    size = read_json(path, dict).get("batch_size")
    fits = isinstance(size, int) and not isinstance(size, bool) and size > 0
    require(fits, f"{path}: expected batch_size, a positive number; remove it to measure anew")
    return size


def remember_batch_size(output_dir: Path, size: int) -> int:
    """Keep `size` for a folder unless another process has kept one; returns what is kept."""
    output_dir.mkdir(parents=True, exist_ok=True)
    write_if_absent(output_dir / FILE_NAME, f'{{"batch_size": {size}}}\n')
    return remembered_batch_size(output_dir) or size


def forget_batch_size(output_dir: Path) -> None:
    """Remove the batch size from a folder without a set: it was measured for other settings."""
    if not (output_dir / "expansion.yaml").is_file():
        (output_dir / FILE_NAME).unlink(missing_ok=True)
