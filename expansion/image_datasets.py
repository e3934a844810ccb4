"""Labelled image sets: folders `<root>/{train,test}/<class>/*`, and the embedded digit scans.

A dataset is a sorted list of `ImageRecord` per split. Labels are positions in the sorted class
list.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from expansion.config import (
    CONFIG_DIR,
    PROJECT_ROOT,
    compose,
    load_yaml,
    option,
    require,
    unknown_name,
)
from expansion.errors import InputError
from expansion.seeding import stable_seed

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .ppm .bmp .pgm .tif .tiff .webp .gif".split())
# EXIF orientation -> what makes the image upright; read alone, as other tags may be malformed.
EXIF_TURNS = dict(
    zip(
        range(2, 9),
        [
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ],
    )
)
DEFAULT_DATASET = "digits"
SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val", "valid"), "prior": ("prior",)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Schema of `configs/datasets/<name>.yaml`."""

    reader: str = option("folder", "layout on disk", choices=("folder", "digits"))
    folder: str | None = option(None, "folder below the data folder; default: the dataset's name")
    prompt_template: str = option("a photo of a {}.", "prompt; {} becomes the class name")
    class_names: dict = option(None, "class folder -> name in prompts, where they differ")
    expand: dict = option(None, "overrides of expand.py's options, for every method")
    methods: dict = option(None, "method -> overrides of expand.py's options")
    classifier: dict = option(None, "overrides of the classifier recipe")


@dataclasses.dataclass(frozen=True)
class ImageRecord:
    """One image file with its label.

    Attributes:
        file_name: Path relative to the dataset folder, with "/"; identifies the image in seeds and
            manifests.
        source: `file_name` of the real image that a generated one was made from; None for a real
            image.
        true_label: What a generated image really shows, where `label` was made wrong on purpose.
    """

    path: Path
    file_name: str
    label: int
    class_name: str
    source: str | None = None
    true_label: int | None = None

    def load(self) -> Image.Image:
        """The image as upright RGB. Raises InputError, naming the file, when it cannot be read."""
        try:
            with Image.open(self.path) as image:
                turn = EXIF_TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
                if image.mode.startswith("I;16"):
                    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
                image = image.convert("RGB")
                return image if turn is None else image.transpose(turn)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(
                f"cannot read the image {self.path} ({error}); replace or remove it, "
                "or go on without it with --on_error skip"
            ) from error


@dataclasses.dataclass(frozen=True)
class ImageDataset:
    """A dataset on disk: `class_names` are its folders, `prompt_names` what prompts call them."""

    name: str
    root: Path
    class_names: tuple[str, ...]
    prompt_names: tuple[str, ...]
    config: DatasetConfig

    def records(self, split: str) -> list[ImageRecord]:
        """Sorted records of a split: "train", "test" or, for the digit scans, "prior"."""
        split_dir = _split_dir(self.root, split)
        classes = {name: label for label, name in enumerate(self.class_names)}
        unknown = [name for name in _class_folders(split_dir) if name not in classes]
        require(
            not unknown,
            f"{split_dir}: class {', '.join(map(repr, unknown))} is not in {self.root / 'train'}; "
            "add training images or remove the folder",
        )
        return [
            record
            for name in _class_folders(split_dir)
            for record in _class_records(self.root, split_dir / name, classes[name], name)
        ]


def load_dataset(name: str, data_dir: str | Path = "data") -> ImageDataset:
    """Find a dataset by name or by folder and read its class list.

    Args:
        name: A name from `configs/datasets/`, a folder below `data_dir`, or a path to a folder.
        data_dir: Where named datasets lie.

    Raises:
        InputError: No such dataset, or its folders are missing or empty.
    """
    config, root = _resolve(name, Path(data_dir))
    if config.reader == "digits":
        _unpack_digits(root)
    class_names = tuple(_class_folders(_split_dir(root, "train")))
    spoken = config.class_names or {}
    stray = sorted(set(spoken) - set(class_names))
    require(
        not stray, f"dataset {name}: class_names has {stray[0]!r}, no such folder" if stray else ""
    )
    prompt_names = tuple(str(spoken.get(c, c.replace("_", " "))) for c in class_names)
    return ImageDataset(root.name, root, class_names, prompt_names, config)


def dataset_config(name: str, data_dir: str | Path = "data") -> DatasetConfig:
    """Settings of a dataset without reading its folders; raises InputError for an unknown name."""
    return _resolve(name, Path(data_dir))[0]


def unlabeled_records(folder: str | Path) -> list[ImageRecord]:
    """All images below `folder`, sorted; their label 0 means nothing.

    Raises:
        InputError: No such folder, or no image in it.
    """
    root = Path(folder)
    files = _image_files(root)
    require(bool(files), f"unlabeled_dir {folder}: no images there; give a folder that holds some")
    names = [path.relative_to(root).as_posix() for path in files]
    return [ImageRecord(path, name, 0, "") for path, name in zip(files, names)]


def few_shot(
    records: Sequence[ImageRecord], shots: int | None, subset_seed: int = 0
) -> list[ImageRecord]:
    """Keep `shots` images of each class, chosen by a hash of seed and file name.

    The choice does not depend on the other images, and fewer shots are a subset of more.
    """
    if shots is None:
        return list(records)
    require(shots > 0, f"--shots {shots}: give a positive number of images per class")
    by_class: dict[int, list[ImageRecord]] = {}
    for record in records:
        by_class.setdefault(record.label, []).append(record)
    for label, members in by_class.items():
        require(
            len(members) >= shots,
            f"--shots {shots}: class {members[0].class_name!r} has only {len(members)} images",
        )
        by_class[label] = sorted(
            members, key=lambda r: stable_seed("shots", subset_seed, r.file_name)
        )[:shots]
    return sorted((r for members in by_class.values() for r in members), key=lambda r: r.file_name)


def hold_out(
    records: Sequence[ImageRecord], fraction: float, seed: int
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """(training, validation): of each class the share `fraction`, at least one image, is held out.

    Raises:
        InputError: A class would be left without training images.
    """
    if fraction == 0:
        return list(records), []
    ordered = sorted(records, key=lambda r: stable_seed("hold out", seed, r.file_name))
    validation: set[str] = set()
    for label in sorted({r.label for r in records}):
        members = [r for r in ordered if r.label == label]
        count = max(1, round(fraction * len(members)))
        require(
            count < len(members),
            f"val_fraction {fraction}: class {members[0].class_name!r} has only {len(members)} "
            "images",
        )
        validation.update(r.file_name for r in members[:count])
    return (
        [r for r in records if r.file_name not in validation],
        [r for r in records if r.file_name in validation],
    )


def readable_records(
    records: Sequence[ImageRecord], on_error: str
) -> tuple[list[ImageRecord], list[str]]:
    """Decode every image once, so that a broken one is found before any long work.

    Args:
        records: Images to check.
        on_error: "fail" raises at the first unreadable image, "skip" leaves it out.

    Returns:
        The readable records and one message per image left out.
    """

    def problem(record: ImageRecord) -> str | None:
        try:
            record.load()
        except InputError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        problems = list(pool.map(problem, records))
    found = [message for message in problems if message]
    if found and on_error == "fail":
        raise InputError(found[0])
    for message in found:
        logger.warning("skipped: %s", message)
    kept = [record for record, message in zip(records, problems) if message is None]
    return kept, found


def _resolve(name: str, data_dir: Path) -> tuple[DatasetConfig, Path]:
    path = CONFIG_DIR / "datasets" / f"{name}.yaml"
    if path.is_file():
        (config,) = compose([DatasetConfig], [load_yaml(path)])
        return config, data_dir / (config.folder or name)
    for root in (Path(name), data_dir / name):
        if root.is_dir():
            return DatasetConfig(), root.resolve()
    if os.sep in name:
        raise InputError(
            f"dataset folder {name} does not exist; expected train/<class>/*.jpg in it"
        )
    known = [p.stem for p in (CONFIG_DIR / "datasets").glob("*.yaml")]
    error = unknown_name("dataset", name, known)
    raise InputError(f"{error}; or give a folder that holds train/<class>/*.jpg")


def _split_dir(root: Path, split: str) -> Path:
    require(
        root.is_dir(), f"dataset folder {root} does not exist; INSTALL.md shows the expected layout"
    )
    for folder in SPLIT_FOLDERS[split]:
        if (root / folder).is_dir():
            return root / folder
    raise InputError(
        f"{root} has no folder {SPLIT_FOLDERS[split][0]}/; "
        f"expected {SPLIT_FOLDERS[split][0]}/<class>/*.jpg in it"
    )


def _class_folders(split_dir: Path) -> list[str]:
    folders = sorted(p.name for p in split_dir.iterdir() if p.is_dir() and p.name[0] != ".")
    require(bool(folders), f"{split_dir} has no class folders; expected {split_dir}/<class>/*.jpg")
    return folders


def _image_files(folder: Path) -> list[Path]:
    """Images below `folder`, sorted; what is hidden is left out."""
    return sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in IMAGE_SUFFIXES
        and p.is_file()
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )


def _class_records(root: Path, folder: Path, label: int, class_name: str) -> list[ImageRecord]:
    files = _image_files(folder)
    require(bool(files), f"class folder {folder} holds no images; add images or remove the folder")
    return [ImageRecord(p, p.relative_to(root).as_posix(), label, class_name) for p in files]


def _unpack_digits(root: Path) -> None:
    """Write the embedded scans as 32x32 PNG files, once; several processes may try together."""
    if root.is_dir():
        return
    with np.load(PROJECT_ROOT / "assets" / "digits" / "digits.npz", allow_pickle=False) as scans:
        images, labels, splits = scans["images"], scans["labels"], scans["splits"]
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".digits-", dir=root.parent))
    for index, (image, label, split) in enumerate(zip(images, labels, splits)):
        folder = partial / ("prior", "train", "test")[split] / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8))
        grey.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{index:04d}.png")
    partial.chmod(0o755)
    try:
        partial.rename(root)
    except OSError:
        if not root.is_dir():
            raise
        shutil.rmtree(partial)  # another process was first
