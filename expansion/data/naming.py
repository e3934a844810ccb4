"""File names of generated images, `<class folder>/<stem>_expand_<k>.png`: distinct and safe."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from expansion.images.records import ImageRecord

FORBIDDEN = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]')
WINDOWS_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))]
)
OWN_FILES = re.compile(
    r"manifest\..*|metadata\.jsonl|(classes|expansion|plan)\..*|contact_sheet(_\d+)?\.png", re.I
)
# A word that means a split to Hugging Face's loaders where no letter stands beside it.
SPLIT_WORD = re.compile(
    r"(?<![^-._ 0-9])"
    r"(train|training|validation|valid|dev|val|test|testing|eval|evaluation)"
    r"(?![^-._ 0-9])"
)
MAX_BYTES = 120  # of a slug or stem; file systems allow 255 with prefix, suffix and variant


def folder_names(class_names: Sequence[str]) -> dict[str, str]:
    """Class -> a folder of its own; class names that are safe and distinct stay as they are.

    The folders are distinct also on file systems that ignore case or Unicode form: a name that
    clashes gets 8 hex digits of its hash.
    """
    return distinct_names({name: name for name in class_names})


def ordered_folders(class_names: Sequence[str]) -> dict[str, str]:
    """Class -> a folder, such that sorting the folders by name gives the order of the labels.

    Loaders of class folders, such as torchvision's, sort by name. Where the order by name is not
    the dataset's, every folder of `folder_names` gets the number of its class in front.
    """
    return _in_order(folder_names(class_names))


def loader_folders(class_names: Sequence[str]) -> dict[str, str]:
    """`ordered_folders` for loaders that look for words such as "train" in folder names.

    Hugging Face's loader takes a folder "steam train" below "test" for training images, and ignores
    "__folder". Such words get brackets.
    """
    folders = {name: SPLIT_WORD.sub(r"(\1)", f) for name, f in folder_names(class_names).items()}
    return _in_order({n: f"({f})" if f.startswith("__") else f for n, f in folders.items()})


def _in_order(folders: dict[str, str]) -> dict[str, str]:
    """The folders with numbers in front, unless they are distinct and sorted already."""
    names = list(folders.values())
    if sorted(names) == names and len(set(map(_folded, names))) == len(names):
        return folders
    digits = len(str(len(names) - 1))
    return {name: f"{i:0{digits}d}_{folder}" for i, (name, folder) in enumerate(folders.items())}


def image_stems(records: Sequence[ImageRecord], folders: dict[str, str]) -> dict[str, str]:
    """file_name -> `<class folder>/<stem>` for all real images of a dataset.

    The stem is the file's name without its last suffix. Images of one class that share a stem, in
    other sub-folders or with other suffixes, all get 8 hex digits of the hash of their path.

    Args:
        records: All real images, so that the stems do not depend on which are expanded.
        folders: Class -> its folder.
    """
    stems: dict[str, str] = {}
    by_class: dict[str, dict[str, str]] = {}
    for record in records:
        members = by_class.setdefault(record.class_name, {})
        members[record.file_name] = PurePosixPath(record.file_name).stem
    for class_name, members in by_class.items():
        for file_name, stem in distinct_names(members).items():
            stems[file_name] = f"{folders[class_name]}/{stem}"
    return stems


def distinct_names(names: Mapping[str, str]) -> dict[str, str]:
    """Make a safe file name of the text of every key; different keys get different names.

    Texts that clash get 8 hex digits of the hash of their key.
    """
    safe = {key: _safe(text) for key, text in names.items()}
    taken = Counter(_folded(name) for name in safe.values())
    result = {
        key: name if taken[_folded(name)] == 1 else f"{name}-{_hash(key)}"
        for key, name in safe.items()
    }
    folded = [_folded(name) for name in result.values()]
    if len(set(folded)) < len(folded):  # a name that itself ends like another's hash
        return {key: f"{safe[key]}-{_hash(key)}-{i}" for i, key in enumerate(sorted(names))}
    return result


def look_alikes(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of names that people would take for the same name, such as "cat" and "Cat".

    Names are alike if they differ only in case, in blanks or underscores, in Unicode form, in
    invisible characters, or in zeros before a number ("1", "001").
    """
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(_as_seen(name), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _as_seen(name: str) -> str:
    shown = "".join(c for c in _folded(name) if unicodedata.category(c) != "Cf")
    shown = " ".join(shown.replace("_", " ").split())
    return shown.lstrip("0") or "0" if shown.isdecimal() else shown


def _safe(text: str) -> str:
    """Make `text` a path component: no separator, no dot or space at its ends, bounded length."""
    name = FORBIDDEN.sub("-", text).strip(" ").rstrip(". ")
    device = name.lower().split(".")[0] in WINDOWS_DEVICES
    if not name or name[0] == "." or device or OWN_FILES.fullmatch(name):
        name = f"_{name.lstrip('.')}"
    encoded = name.encode("utf-8", "replace")
    if len(encoded) > MAX_BYTES:
        name = f"{encoded[:MAX_BYTES].decode('utf-8', 'ignore').rstrip('. ')}-{_hash(text)}"
    return name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
