"""Small stand-ins for the datasets of `configs/datasets/`, in their official layouts."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

HURTFUL = (
    "2012 Ram C/V Cargo Van Minivan",
    "F/A-18",
    "polka-dotted",
    "Ant",
    "ant",
    "..",
    "\u72d7",
    "\U0001f600 face",
)


def draw(path: Path, size: int = 8) -> None:
    """An image whose pixels no other path has."""
    seed = int.from_bytes(hashlib.sha256(str(path).encode()).digest()[:4], "big")
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")  # whatever its suffix says


def write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def folders(root: Path, counts: Mapping[str, int], suffix: str = ".jpg") -> None:
    """Class folders below `root`, so many images each."""
    for name, count in counts.items():
        for i in range(count):
            draw(root / name / f"image_{i:04d}{suffix}")


def caltech(root: Path) -> None:
    classes = {"BACKGROUND_Google": 3, "Faces_easy": 32, "Leopards": 31, "yin_yang": 33}
    folders(root / "101_ObjectCategories", classes)
    draw(root / "101_ObjectCategories" / "BACKGROUND_Google" / "tmp")


def cars(
    root: Path,
    names: Sequence[str] = ("Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"),
    nested: bool = False,
    labelled_test: bool = True,
) -> None:
    """Two training images and one test image of each class but the last, which has none."""
    (root / "devkit").mkdir(parents=True)
    stored = np.array([*names, "smart fortwo Convertible 2012"], dtype=object)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": stored})
    for split, each in (("train", 2), ("test", 1)):
        folder = root / f"cars_{split}" / (f"cars_{split}" if nested else "")
        numbers = [number for number in range(1, len(names) + 1) for _ in range(each)]
        rows = [(f"{i:05d}.jpg", number) for i, number in enumerate(numbers, start=1)]
        for file_name, _ in rows:
            draw(folder / file_name)
        fields = [("bbox_x1", object), ("fname", object), ("class", object)]
        labelled = np.empty(len(rows), dtype=fields)
        unlabelled = np.empty(len(rows), dtype=fields[:2])
        labelled[:] = [(1, name, number) for name, number in rows]
        unlabelled[:] = [(1, name) for name, _ in rows]
        if split == "test":
            savemat(root / "devkit" / "cars_test_annos.mat", {"annotations": unlabelled})
        if split == "train":
            savemat(root / "devkit" / "cars_train_annos.mat", {"annotations": labelled})
        elif labelled_test:
            savemat(root / "cars_test_annos_withlabels.mat", {"annotations": labelled})


def pets(root: Path) -> None:
    """Three of the 37 breeds, with their numbers 1, 2 and 6."""
    breeds = {"Abyssinian": 1, "american_bulldog": 2, "Bengal": 6}
    for split, numbers in (("trainval", (1, 20)), ("test", (101, 110, 201))):
        lines = [f"{b}_{n} {i} 1 {i}" for b, i in breeds.items() for n in numbers]
        write_lines(
            root / "annotations" / f"{split}.txt", ["#Image CLASS-ID SPECIES BREED", *lines]
        )
        for breed in breeds:
            for n in numbers:
                draw(root / "images" / f"{breed}_{n}.jpg")
    draw(root / "images" / "Bengal_999.jpg")  # in no list, as some of the official images
    (root / "images" / "Abyssinian_101.mat").write_bytes(b"stray")
    (root / "annotations" / "._trimaps").write_bytes(b"stray")


def dtd(root: Path) -> None:
    for name, start in (("train1", 0), ("val1", 2), ("test1", 4)):
        names = [
            f"{c}/{c}_{i:04d}.jpg" for c in ("banded", "polka-dotted") for i in (start, start + 1)
        ]
        write_lines(root / "labels" / f"{name}.txt", names)
        for path in names:
            draw(root / "images" / path)


def aircraft(root: Path, names: Sequence[str] = ("707-320", "F-16A/B", "F/A-18")) -> None:
    write_lines(root / "variants.txt", [*names, "Yak-42"])
    for split, start in (("train", 10), ("val", 40), ("test", 70)):
        rows = [(f"{start + i:07d}", names[i % len(names)]) for i in range(2 * len(names))]
        write_lines(root / f"images_variant_{split}.txt", [f"{i} {name}" for i, name in rows])
        for i, _ in rows:
            draw(root / "images" / f"{i}.jpg", size=32)


def cub(root: Path) -> None:
    classes = ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
    paths = [f"{c}/{c[4:]}_{i:04d}.jpg" for c in classes for i in range(3)]
    write_lines(root / "classes.txt", [f"{i} {c}" for i, c in enumerate(classes, start=1)])
    write_lines(root / "images.txt", [f"{i} {p}" for i, p in enumerate(paths, start=1)])
    write_lines(root / "image_class_labels.txt", [f"{i} {1 + (i > 3)}" for i in range(1, 7)])
    write_lines(root / "train_test_split.txt", [f"{i} {int(i % 3 != 0)}" for i in range(1, 7)])
    for path in paths:
        draw(root / "images" / path)


def shenzhen(root: Path) -> None:
    for i in range(10):
        draw(root / "ChinaSet_AllFiles" / "CXR_png" / f"CHNCXR_{i:04d}_{i % 2}.png")
    (root / "ChinaSet_AllFiles" / "CXR_png" / "Thumbs.db").write_bytes(b"stray")


def imagenette(root: Path) -> None:
    for split in ("train", "val"):
        folders(root / split, {"n01440764": 2, "n03028079": 1}, ".JPEG")


def imagenet(root: Path) -> None:
    """A crane that is a bird, a cardigan that is a dog, and those that are a machine and wool."""
    for split in ("train", "val"):
        names = ("n02012849", "n02113186", "n02963159", "n03126707")
        folders(root / split, dict.fromkeys(names, 2), ".JPEG")


def flowers(root: Path) -> None:
    """The re-split of three of the 102 classes, whose numbers sort otherwise as text."""
    for split in ("train", "valid"):
        folders(root / split, {"1": 2, "2": 2, "10": 2})
    draw(root / "test" / "image_00005.jpg")  # the unlabelled part
    names = {"1": "pink primrose", "2": "hard-leaved pocket orchid", "10": "globe thistle"}
    (root / "cat_to_name.json").write_text(json.dumps({**names, "77": "passion flower"}))


def official_flowers(root: Path) -> None:
    labels = np.array([1, 10, 2, 2, 10, 1, 77, 77], dtype=np.uint8)
    root.mkdir(parents=True, exist_ok=True)
    savemat(root / "imagelabels.mat", {"labels": labels})
    splits = {"trnid": [1, 2, 3, 7], "valid": [4], "tstid": [8, 6, 5]}
    savemat(root / "setid.mat", {k: np.array(v, dtype=np.uint16) for k, v in splits.items()})
    for i in range(1, len(labels) + 1):
        draw(root / "jpg" / f"image_{i:05d}.jpg")


def pixels_of(count: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def save_pickle(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def cifar10(root: Path, names: Sequence[str] = ("airplane", "bird", "cat")) -> None:
    """Five batches and a test batch, one image of each class in each."""
    folder = root / "cifar-10-batches-py"
    for i, batch in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        rows = pixels_of(len(names), (3072,), seed=i)
        save_pickle(folder / batch, {"data": rows, "labels": list(range(len(names)))})
    save_pickle(folder / "batches.meta", {"label_names": list(names)})


def cifar100(root: Path, names: Sequence[str] = ("apple", "aquarium_fish")) -> None:
    """105 training images of each class, and one test image."""
    folder = root / "cifar-100-python"
    for i, (split, count) in enumerate((("train", 105), ("test", 1))):
        labels = list(range(len(names))) * count
        rows = pixels_of(len(labels), (3072,), seed=i)
        save_pickle(folder / split, {"data": rows, "fine_labels": labels, "coarse_labels": labels})
    save_pickle(folder / "meta", {"fine_label_names": list(names)})


def save_idx(path: Path, values: np.ndarray) -> None:
    """An IDX file of bytes, gzipped if its name ends so."""
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    write = gzip.open if path.suffix == ".gz" else open
    with write(path, "wb") as file:
        file.write(header + values.astype(np.uint8).tobytes())


def idx(root: Path, end: str = ".gz") -> None:
    for i, (prefix, count) in enumerate((("train", 20), ("t10k", 10))):
        save_idx(root / f"{prefix}-images-idx3-ubyte{end}", pixels_of(count, (28, 28), seed=i))
        save_idx(root / f"{prefix}-labels-idx1-ubyte{end}", np.arange(count) % 10)


def stl10(root: Path) -> None:
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    write_lines(folder / "class_names.txt", ["airplane", "bird", "car"])
    for i, (split, count) in enumerate((("train", 6), ("test", 3), ("unlabeled", 2))):
        stored = pixels_of(count, (96, 96, 3), seed=i).transpose(0, 3, 2, 1)
        (folder / f"{split}_X.bin").write_bytes(stored.tobytes())
        if split != "unlabeled":
            (folder / f"{split}_y.bin").write_bytes(bytes(1 + k % 3 for k in range(count)))


def medmnist(root: Path, num_classes: int, each: int = 1, grey: bool = False) -> None:
    arrays = {}
    for i, (split, count) in enumerate((("train", each), ("val", 1), ("test", 1))):
        labels = (np.arange(num_classes * count) % num_classes).astype(np.uint8)[:, None]
        shape = (28, 28) if grey else (28, 28, 3)
        arrays |= {f"{split}_images": pixels_of(len(labels), shape, i), f"{split}_labels": labels}
    root.mkdir(parents=True)
    np.savez(root / f"{root.name}.npz", **arrays)


# Name of the YAML file -> (folder below the data folder, what writes it).
WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "caltech-101": ("caltech-101", caltech),
    "caltech-101-faces": ("caltech-101", caltech),
    "stanford_cars": ("stanford_cars", cars),
    "oxford_pets": ("oxford_pets", pets),
    "oxford_flowers": ("oxford_flowers", flowers),
    "oxford_flowers_official": ("oxford_flowers_official", official_flowers),
    "dtd": ("dtd", dtd),
    "fgvc_aircraft": ("fgvc_aircraft", aircraft),
    "cub-200-2011": ("CUB_200_2011", cub),
    "shenzhen": ("shenzhen", shenzhen),
    "imagenet": ("imagenet", imagenet),
    "imagenette": ("imagenette2-320", imagenette),
    "cifar10": ("cifar10", cifar10),
    "cifar100": ("cifar100", cifar100),
    "cifar100_subset": ("cifar100_subset", cifar100),
    "mnist": ("mnist", idx),
    "fashion-mnist": ("fashion-mnist", idx),
    "stl10": ("stl10", stl10),
    "pathmnist": ("medmnist/pathmnist", lambda root: medmnist(root, 9, each=101)),
    "bloodmnist": ("medmnist/bloodmnist", lambda root: medmnist(root, 8)),
    "breastmnist": ("medmnist/breastmnist", lambda root: medmnist(root, 2, grey=True)),
}


def stand_in(name: str, data_dir: Path) -> Path:
    """Write the stand-in of a dataset below `data_dir`; returns its folder."""
    folder, write = WRITERS[name]
    write(data_dir / folder)
    return data_dir / folder
