"""Reads official array files: CIFAR batches, IDX (MNIST), STL-10 binaries and MedMNIST npz.

Pickled files are read by an unpickler that makes only arrays and plain values.
"""

from __future__ import annotations

import gzip
import math
import pickle
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from expansion.common.errors import InputError, brief, require, shown
from expansion.common.texts import class_text

# Errors that a file raises which is cut off or of another kind.
DAMAGE = (
    OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError,
    UnicodeDecodeError, OverflowError, MemoryError, RecursionError, NotImplementedError,
    ImportError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
LARGEST_ARRAYS = 4 << 30  # bytes; a small file can claim, or unpack to, any number of them
LARGEST_CLASS = 2**31  # a larger number cannot be meant as a class
IDX_UINT8 = 8  # the third byte of an IDX file
STL10_SIDE = 96


@dataclass(frozen=True)
class Arrays:
    """The content of array files.

    Attributes:
        splits: Split -> (images, labels). Images are (N, H, W) or (N, H, W, C) uint8; labels are
            (N,) from 0, or None.
        class_names: Names of the classes in label order, if the files hold them.
        remarks: Lines on parts of the files that are not used.
    """

    splits: Mapping[str, tuple[np.ndarray, np.ndarray | None]]
    class_names: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class ArrayFiles:
    """Finds the files of a dataset, in its folder or up to two folders deeper.

    Attributes:
        root: The dataset's folder.
        name: Name of the npz file, for the format that has only this one.
        found: The files that were asked for and exist.
    """

    root: Path
    name: str | None = None
    found: list[Path] = field(default_factory=list)

    def find(self, *names: str) -> Path:
        """The file with the first of these names that exists.

        Raises:
            InputError: None of them exists, or one exists in several folders.
        """
        for name in names:
            for pattern in (name, f"*/{name}", f"*/*/{name}"):
                files = sorted(p for p in self.root.glob(pattern) if p.is_file())
                places = shown(p.relative_to(self.root).as_posix() for p in files)
                require(len(files) < 2, f"{self.root} holds {name} twice: {places}; remove one")
                if files:
                    self.found.append(files[0])
                    return files[0]
        raise InputError(
            f"{self.root} has no {' or '.join(names)}; INSTALL.md shows the expected layout"
        )


class PlainUnpickler(pickle.Unpickler):
    """An unpickler that makes arrays, bytes and plain containers, and refuses all other objects."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            "numpy.core.multiarray._reconstruct": np.empty(0).__reduce__()[0],
            "numpy._core.multiarray._reconstruct": np.empty(0).__reduce__()[0],
            "numpy.ndarray": np.ndarray,
            "numpy.dtype": np.dtype,
            "_codecs.encode": _latin1_bytes,  # how Python 3 pickles bytes for Python 2
        }
        if f"{module}.{name}" not in allowed:
            raise pickle.UnpicklingError(f"it wants to make {module}.{name}, which no data needs")
        return allowed[f"{module}.{name}"]


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it wants to encode as {encoding}")
    return text.encode("latin1")


def load_pickle(path: Path) -> dict[str, Any]:
    """Read a pickled dictionary of Python 2 or 3, without running code that it may contain."""
    try:
        with path.open("rb") as file:
            content = PlainUnpickler(file, encoding="latin1").load()
    except DAMAGE as error:
        raise InputError(f"cannot read {path}: {error}; download it again") from error
    is_dict = isinstance(content, dict)
    require(is_dict, f"{path}: expected a dictionary, got {type(content).__name__}")
    return {_word(path, key): value for key, value in content.items()}


def read_cifar10(files: ArrayFiles) -> Arrays:
    """Read CIFAR-10: `data_batch_1` to `_5`, `test_batch`, and class names in `batches.meta`."""
    paths = [files.find(f"data_batch_{i}") for i in range(1, 6)]
    parts = [_cifar_batch(path, "labels") for path in paths]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    test = _cifar_batch(files.find("test_batch"), "labels")
    names = load_pickle(files.find("batches.meta")).get("label_names", ())
    others = sorted({*paths[0].parent.glob("data_batch_*")} - {*paths})
    remarks = tuple(f"ignored: {path.name}, no file of CIFAR-10" for path in others)
    return Arrays({"train": (images, labels), "test": test}, _text(files.root, names), remarks)


def read_cifar100(files: ArrayFiles) -> Arrays:
    """Read CIFAR-100 with its 100 fine labels: `cifar-100-python/{train,test,meta}`."""
    folder = files.find("cifar-100-python/meta").parent
    splits = {
        split: _cifar_batch(ArrayFiles(folder, found=files.found).find(split), "fine_labels")
        for split in ("train", "test")
    }
    return Arrays(splits, _text(folder, load_pickle(folder / "meta").get("fine_label_names", ())))


def read_idx(files: ArrayFiles) -> Arrays:
    """Read the four IDX files of MNIST and similar datasets, plain or gzipped."""
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = (
            _idx(files.find(*(f"{prefix}-{kind}{end}" for end in ("", ".gz")), f"{prefix}-{other}"))
            for kind, other in (
                ("images-idx3-ubyte", "images.idx3-ubyte"),
                ("labels-idx1-ubyte", "labels.idx1-ubyte"),
            )
        )
        splits[split] = (images, class_numbers(files.root, labels))
    return Arrays(splits)


def read_stl10(files: ArrayFiles) -> Arrays:
    """Read STL-10: `{train,test}_{X,y}.bin` and, if it exists, `unlabeled_X.bin`.

    The files number the classes from 1. They store an image channel by channel, and each channel
    column by column.
    """
    folder = files.find("train_X.bin").parent
    place = ArrayFiles(folder, found=files.found)
    splits: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    for split in ("train", "test"):
        labels = np.fromfile(place.find(f"{split}_y.bin"), dtype=np.uint8).astype(np.int64) - 1
        splits[split] = (_stl10_images(place.find(f"{split}_X.bin")), labels)
    if (folder / "unlabeled_X.bin").is_file():
        splits["unlabeled"] = (_stl10_images(place.find("unlabeled_X.bin")), None)
    names = place.find("class_names.txt").read_bytes().split()
    return Arrays(splits, _text(folder, names))


def read_npz(files: ArrayFiles) -> Arrays:
    """Read an npz file of MedMNIST: `{train,test}_{images,labels}`; its val split is not used."""
    require(files.name is not None, f"{files.root}: the YAML file names no npz file")
    path = files.find(files.name)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_size(path, sum(member.file_size for member in archive.infolist()))
        with np.load(path, allow_pickle=False) as arrays:
            splits = {
                split: (arrays[f"{split}_images"], class_numbers(path, arrays[f"{split}_labels"]))
                for split in ("train", "test")
            }
            remarks = _unused_arrays(path.name, arrays, tuple(splits))
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(f"cannot read {path}: {error}; download it again") from error
    return Arrays(splits, remarks=remarks)


def _unused_arrays(
    name: str, arrays: Mapping[str, np.ndarray], splits: Sequence[str]
) -> tuple[str, ...]:
    """Remarks on the further splits and arrays of an npz file."""
    others = [key for key in arrays if not key.startswith(tuple(f"{s}_" for s in splits))]
    counts = {
        key.removesuffix("_images"): len(arrays[key.removesuffix("_images") + "_labels"])
        for key in others
        if key.endswith("_images") and key.removesuffix("_images") + "_labels" in others
    }
    rest = [key for key in others if key.rpartition("_")[0] not in counts]
    remarks = [f"ignored: {count} {split} images of {name}" for split, count in counts.items()]
    return (*remarks, *([f"ignored: the arrays {shown(rest)} of {name}"] if rest else []))


def class_numbers(place: Path, labels: np.ndarray) -> np.ndarray:
    """Convert class numbers to (N,) int64.

    Args:
        place: Where they come from, for the error.
        labels: (N,) or (N, 1), of any numeric type.

    Raises:
        InputError: An image has several labels, or one that is no whole number.
    """
    flat = labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1)
    require(flat, f"{place}: labels of shape {labels.shape}; only one label per image can be used")
    remedy = "give each image the number of its class"
    require(
        labels.dtype.kind in "iuf", f"{place}: labels of type {labels.dtype}, no numbers; {remedy}"
    )
    labels = labels.reshape(-1)
    odd = np.flatnonzero(~(np.isfinite(labels) & (labels == np.floor(labels))))
    odd = np.concatenate([odd, np.flatnonzero(np.abs(labels.astype(np.float64)) > LARGEST_CLASS)])
    if len(odd):
        first = int(odd[0])
        raise InputError(
            f"{place}: {len(odd)} labels are no class number, the first is "
            f"{labels[first].item()} of image {first}; {remedy}"
        )
    return labels.astype(np.int64)


FORMATS: Mapping[str, Callable[[ArrayFiles], Arrays]] = {
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "idx": read_idx,
    "stl10": read_stl10,
    "npz": read_npz,
}


def _cifar_batch(path: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a batch of CIFAR: images (N, 32, 32, 3) and labels (N,).

    Each row of the file holds 1,024 red, then as many green and blue values.
    """
    batch = load_pickle(path)
    pixels, labels = batch.get("data"), batch.get(key)
    fits = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8
    fits = fits and pixels.ndim == 2 and pixels.shape[1] == 3072
    if isinstance(labels, list) and all(type(n) in (int, float) for n in labels):
        labels = np.asarray([n if abs(n) < LARGEST_CLASS else -1 for n in labels])
    require(
        fits and isinstance(labels, np.ndarray),
        f"{path}: a batch lacks 'data' of 3072 8-bit values per image or numbers in {key!r}; "
        "download it again",
    )
    require(
        len(pixels) == len(labels),
        f"{path}: {len(pixels)} images, but {len(labels)} labels; download it again",
    )
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), class_numbers(path, labels)


def _text(place: Path, names: Any) -> tuple[str, ...]:
    require(isinstance(names, list | tuple), f"{place}: its class names are no list")
    return tuple(class_text(str(place), _word(place, name)) for name in names)


def _word(place: Path, name: Any) -> str:
    """A key or a class name as text; files of Python 2 hold it as bytes."""
    require(isinstance(name, str | bytes), f"{place}: expected text, got {brief(name)}")
    return name if isinstance(name, str) else name.decode("utf-8", "replace")


def _check_size(path: Path, num_bytes: int) -> None:
    require(
        num_bytes <= LARGEST_ARRAYS,
        f"{path} unpacks to {num_bytes >> 30} GiB, too much to hold in memory; lay its images out "
        "as train/<class>/*.png",
    )


def _idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes: header 0 0 8 <dimensions>, big-endian sizes, values."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(4)
            dims = start[3] if len(start) > 3 and start[:3] == bytes([0, 0, IDX_UINT8]) else 0
            require(dims in (1, 3), f"{path} is no IDX file of bytes; download it again")
            sizes = file.read(4 * dims)
            shape = [int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4)]
            _check_size(path, math.prod(shape))
            # Ask for one byte more than there should be, to notice a file that is too long.
            values = np.frombuffer(file.read(math.prod(shape) + 1), dtype=np.uint8)
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(f"cannot read {path}: {error}; download it again") from error
    require(
        len(sizes) == 4 * dims and values.size == math.prod(shape),
        f"{path}: {values.size} values, but its header says {' x '.join(map(str, shape))}; "
        "download it again",
    )
    return values.reshape(shape)


def _stl10_images(path: Path) -> np.ndarray:
    """Images (N, 96, 96, 3), mapped from the file, since the unlabelled part has 2.6 GB."""
    size = 3 * STL10_SIDE**2
    length = path.stat().st_size
    require(
        length > 0 and length % size == 0,
        f"{path}: {length} bytes are no whole images; download it again",
    )
    stored = np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, 3, STL10_SIDE, STL10_SIDE)
    return stored.transpose(0, 3, 2, 1)
