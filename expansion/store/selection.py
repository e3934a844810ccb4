"""A selection: the file that says which images of an expanded set are kept, and why not others.

format, dataset, set   what it is of
rule, settings         the rule in words, and as the options that were given
classes                class -> {"there": N, "kept": N, "dropped": {reason: N}}
kept                   file_name -> SHA-256 of the image
dropped                file_name -> reason
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expansion.common.errors import InputError, require, shown
from expansion.common.files import write_atomic
from expansion.common.texts import read_json
from expansion.images.records import ImageRecord
from expansion.store.expanded_set import Sources
from expansion.store.manifest import read_manifest

FORMAT = 1
REMEDY = "make it again with python -m expansion.filter"


@dataclass(frozen=True)
class Selection:
    """Which images of an expanded set are kept; every image of the set is in it.

    Attributes:
        dataset: Name of the dataset of the real images.
        set_name: Folder of the set, without those above it.
        rule: What decided, in words.
        settings: What decided, as options.
        classes: Numbers of images by class, for people.
        kept: file_name -> SHA-256 of the image.
        dropped: file_name -> why it is not kept.
    """

    dataset: str
    set_name: str
    rule: str
    settings: Mapping[str, Any]
    classes: Mapping[str, Mapping[str, Any]]
    kept: Mapping[str, str]
    dropped: Mapping[str, str]

    def write(self, path: Path) -> None:
        """Write the file whole."""
        content = {"format": FORMAT, **vars(self)}
        content["set"] = content.pop("set_name")
        write_atomic(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Selection:
        """Read a file that `write` left.

        Raises:
            InputError: It is something else, or keeps no image.
        """
        content = read_json(path, dict)
        kinds: dict[str, type] = {field.name: Mapping for field in dataclasses.fields(cls)}
        kinds |= {"dataset": str, "set_name": str, "rule": str}
        values = {name: content.get("set" if name == "set_name" else name) for name in kinds}
        odd = [name for name, kind in kinds.items() if not isinstance(values[name], kind)]
        for name in ("kept", "dropped"):
            texts = values[name].values() if name not in odd else ()
            odd += [] if all(isinstance(text, str) for text in texts) else [name]
        require(
            content.get("format") == FORMAT and not odd,
            f"{path} is no whole selection of this version"
            f" ({shown(odd) or 'format'} is missing or odd); {REMEDY}",
        )
        require(bool(values["kept"]), f"{path} keeps no image; {REMEDY}")
        return cls(**values)

    def choose(
        self, records: Sequence[ImageRecord], output_dir: Path, sources: Sources
    ) -> list[ImageRecord]:
        """The kept ones of a set's images.

        Args:
            records: Images of the set, with their contents.
            output_dir: Folder of the set.
            sources: The real images whose variants are wanted; what is kept of others is left out.

        Raises:
            InputError: The selection was made for another set or for fewer images, or kept images
                are missing or have changed.
        """
        # Where the images are not those that it was made for.
        names = {record.file_name for record in records}
        new = sorted(names - self.kept.keys() - self.dropped.keys())
        chosen = [record for record in records if record.file_name in self.kept]
        changed = [r.file_name for r in chosen if r.content != self.kept[r.file_name]]
        others = {r["file_name"] for r in read_manifest(output_dir) if r["source"] not in sources}
        absent = sorted(self.kept.keys() - names - others)
        for faulty, fault in (
            (new, "images that it does not know"),
            (changed, "kept images with other content"),
            (absent, "kept images missing"),
        ):
            require(
                not faulty,
                f"the selection was made for another set ({self.set_name}) than {output_dir}, or "
                f"before it changed: {len(faulty)} {fault} ({shown(faulty, 3)}); {REMEDY}",
            )
        require(bool(chosen), f"the selection keeps no variant of the {len(sources)} real images")
        return chosen


def numbers_by_class(
    class_names: Sequence[str], class_of: Mapping[str, str], dropped: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """`Selection.classes`.

    Args:
        class_names: All classes of the dataset, in order.
        class_of: Class of every image of the set, by file name.
        dropped: file_name -> reason.
    """
    numbers = {}
    for name in class_names:
        reasons = Counter(
            dropped.get(f) for f, class_name in class_of.items() if class_name == name
        )
        kept = reasons.pop(None, 0)
        there = kept + reasons.total()
        numbers[name] = {"there": there, "kept": kept, "dropped": dict(reasons)}
    return numbers


def select_images(
    path: str, records: Sequence[ImageRecord], output_dir: Path, sources: Sources
) -> list[ImageRecord]:
    """`Selection.choose` of a file; errors name it."""
    selection = Selection.read(Path(path))
    try:
        return selection.choose(records, output_dir, sources)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
