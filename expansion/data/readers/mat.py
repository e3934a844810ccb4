"""Reader of datasets whose labels are in MATLAB files: Stanford Cars and Flowers-102."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from expansion.common.config import option
from expansion.common.errors import InputError, brief, require, shown
from expansion.common.texts import class_text
from expansion.data.readers.folders import require_root
from expansion.data.readers.list_files import lack
from expansion.data.readers.rows import Listing, Row, RowsReader, row_path
from expansion.data.splits import SplitOptions

READ_FILE = """
import json, sys
from scipy.io import loadmat
found = loadmat(sys.argv[1], simplify_cells=True)
found = {name: value for name, value in found.items() if not name.startswith("__")}
json.dump(found, sys.stdout, default=lambda array: array.tolist())
"""


@dataclass(frozen=True, kw_only=True)
class MatLayout(SplitOptions):
    """YAML fields of `reader: mat`, for two kinds of datasets.

    Stanford Cars has for each split a struct array `annotations` with the fields fname and class,
    and `class_names`. Flowers-102 has a vector `labels` of numbered images, and for each split
    vectors of their numbers. Where several paths are given for one file, the first that exists
    counts, in the dataset's folder or one folder deeper.
    """

    train_annotations: tuple[str, ...] = option((), "file with the struct array of training images")
    test_annotations: tuple[str, ...] = option((), "the same for testing")
    train_images: str = option("", "folder of the training images; may lie in one of its own name")
    test_images: str = option("", "folder of the test images")
    class_file: str | None = option(None, "file with class_names; class numbers start at 1")
    year_first: bool = option(False, "move the year at the end of a class name to its front")
    labels_file: str | None = option(None, "file with labels: the class number of image 1, 2, ...")
    splits_file: str | None = option(None, "file with the vectors of image numbers")
    train_ids: tuple[str, ...] = option((), "names of the vectors for training")
    test_ids: tuple[str, ...] = option((), "names of the vectors for testing")
    image_path: str = option("{id}.jpg", "path of a numbered image")


def read_mat(layout: MatLayout, root: Path, name: str) -> RowsReader:
    """Make the reader of a dataset with MATLAB files.

    Args:
        layout: Fields of the YAML file.
        root: The dataset's folder.
        name: Name of the dataset.

    Raises:
        InputError: Files are missing or unclear.
    """
    require_root(root)
    if layout.labels_file is not None:
        return RowsReader(root, name, Listing(rows=_numbered_rows(layout, root)), layout)
    names = _mat_classes(layout, root)
    rows, lacks = {}, {}
    for split in ("train", "test"):
        candidates = getattr(layout, f"{split}_annotations")
        path = _find(root, candidates)
        if path is None:
            lacks[split] = lack(root, split, candidates)
        else:
            folder = getattr(layout, f"{split}_images")
            rows[split] = _annotated_rows(path, names, _nested(root, folder))
    return RowsReader(root, name, Listing(rows=rows, class_order=names, lacks=lacks), layout)


def _annotated_rows(path: Path, names: Sequence[str], folder: str) -> list[Row]:
    """The rows of a struct array whose class numbers start at 1."""
    rows = []
    entries = _load(path, "annotations")
    for entry in entries if isinstance(entries, list) else [entries]:
        require(
            isinstance(entry, dict) and isinstance(entry.get("fname"), str) and "class" in entry,
            f"{path}: its annotations have no fields fname and class; "
            "give the file that holds the labels",
        )
        number = _whole(path, entry["class"])
        require(
            1 <= number <= len(names),
            f"{path}: class {number} of {entry['fname']}, but there are {len(names)} class names",
        )
        image = row_path(f"{folder}/{row_path(entry['fname'])}")
        rows.append(Row(image, names[number - 1], number))
    return rows


def _mat_classes(layout: MatLayout, root: Path) -> list[str]:
    """The names of the classes 1, 2, ..."""
    require(layout.class_file is not None, f"dataset {root.name}: its YAML file has no class_file")
    path = _find(root, [layout.class_file])
    if path is None:
        raise InputError(lack(root, "training", [layout.class_file]))
    names = [class_text(str(path), name) for name in _vector(path, "class_names")]
    names = [_year_first(name) for name in names] if layout.year_first else names
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    require(not twice, f"{path}: the class {shown(map(repr, twice))} occurs twice")
    return names


def _numbered_rows(layout: MatLayout, root: Path) -> dict[str, list[Row]]:
    """The rows of images that are numbered from 1; the number of a class is also its name."""
    # The class of every image.
    paths = []
    for name in (layout.labels_file, layout.splits_file):
        path = _find(root, [name] if name else [])
        if path is None:
            raise InputError(lack(root, "training", [str(name)]))
        paths.append(path)
    labels = [_whole(paths[0], label) for label in _vector(paths[0], "labels")]
    odd = [f"{label} of image {i}" for i, label in enumerate(labels, start=1) if label < 1]
    require(not odd, f"{paths[0]}: class {shown(odd)}, but class numbers start at 1")
    # The images of each split.
    rows: dict[str, list[Row]] = {}
    for split, vectors in (("train", layout.train_ids), ("test", layout.test_ids)):
        ids = [_whole(paths[1], i) for name in vectors for i in _vector(paths[1], name)]
        outside = [str(i) for i in ids if not 1 <= i <= len(labels)]
        require(
            not outside,
            f"{paths[1]}: image {shown(outside)}, but {paths[0]} has {len(labels)} labels",
        )
        rows[split] = [
            Row(layout.image_path.format(id=i), str(labels[i - 1]), labels[i - 1])
            for i in sorted(ids)
        ]
    return rows


def _load(path: Path, variable: str) -> Any:
    """A variable of a MATLAB file, with arrays as lists and structs as dictionaries."""
    status = path.stat()
    contents = _contents(path, status.st_mtime_ns, status.st_size)
    require(variable in contents, f"{path} holds no {variable!r}, only {shown(contents)}")
    return contents[variable]


@functools.lru_cache(maxsize=4)
def _contents(path: Path, mtime_ns: int, size: int) -> dict[str, Any]:
    """All variables of a MATLAB file; SciPy reads it in another process, which damage may crash.

    Args:
        path: The file.
        mtime_ns: Its modification time; like `size` it makes a changed file be read again.
        size: Its size, bytes.
    """
    command = [sys.executable, "-P", "-c", READ_FILE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["its reader crashed"])[-1]
        raise InputError(f"cannot read {path} as a MATLAB file: {reason}")
    return json.loads(done.stdout)


def _vector(path: Path, variable: str) -> list[Any]:
    """A variable as a list of numbers or of texts."""
    value = _load(path, variable)
    values = value if isinstance(value, list) else [value]
    flat = not any(isinstance(value, list | dict) for value in values)
    require(flat, f"{path}: {variable!r} is no vector")
    return values


def _whole(path: Path, value: Any) -> int:
    """A whole number of a MATLAB file, in which it may be stored as a float."""
    number = type(value) in (int, float) and float(value).is_integer()
    require(number, f"{path}: expected a whole number, got {brief(value)}")
    return int(value)


def _year_first(name: str) -> str:
    """'Ram C/V Cargo Van Minivan 2012' -> '2012 Ram C/V Cargo Van Minivan'."""
    return re.sub(r"^(.+) (\d{4})$", r"\2 \1", name)


def _find(root: Path, names: Iterable[str]) -> Path | None:
    """The first of the files that exists, in `root` or one folder deeper; None without any."""
    for name in names:
        for path in (root / name, *sorted(root.glob(f"*/{name}"))):
            if path.is_file():
                return path
    return None


def _nested(root: Path, folder: str) -> str:
    """`folder`, or the folder of the same name in it if there is one."""
    inner = f"{folder}/{PurePosixPath(folder).name}"
    return inner if folder and (root / inner).is_dir() else folder
