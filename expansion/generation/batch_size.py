"""The batch size that was found for an output folder; every process there uses the same."""

from __future__ import annotations

from pathlib import Path

from expansion.common.errors import require
from expansion.common.files import write_if_absent
from expansion.common.texts import read_json

FILE_NAME = ".batch_size.json"


def remembered_batch_size(output_dir: Path) -> int | None:
    """The number of images; None if none was found for this folder.

    Raises:
        InputError: The file holds no such number.
    """
    path = output_dir / FILE_NAME
    if not path.is_file():
        return None
    size = read_json(path, dict).get("batch_size")
    fits = isinstance(size, int) and not isinstance(size, bool) and size > 0
    require(fits, f"{path}: expected batch_size, a positive number; remove it to measure anew")
    return size


def remember_batch_size(output_dir: Path, size: int) -> int:
    """Keep `size` for the folder unless another process was first; returns what is kept."""
    output_dir.mkdir(parents=True, exist_ok=True)
    write_if_absent(output_dir / FILE_NAME, f'{{"batch_size": {size}}}\n')
    return remembered_batch_size(output_dir) or size


def forget_batch_size(output_dir: Path) -> None:
    """Remove what was found for a folder whose other files are gone: for other settings."""
    if not (output_dir / "expansion.yaml").is_file():
        (output_dir / FILE_NAME).unlink(missing_ok=True)
