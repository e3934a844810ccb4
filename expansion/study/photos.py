"""Looks at the images of a study: which are for training and testing, and what is wrong with them.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from expansion.common.errors import InputError, shown
from expansion.data import __main__ as check_command
from expansion.data.datasets import ImageDataset, check_classes, choose_subset, load_dataset
from expansion.data.stored_splits import find_stored_split
from expansion.images.content import content_summary, readable_records
from expansion.images.records import ImageRecord
from expansion.study.settings import StudyConfig

SHOWN_LINES = 12  # lines of the check that are shown
TEST_FRACTION = 0.3  # share of each class for testing, if there are no test images
LOOKED_AT = 50  # number of images whose size is looked at


@dataclass(frozen=True)
class Photos:
    """The images of a study.

    Attributes:
        dataset: Their dataset.
        place: Options that name the images in every script.
        train: Images for training; those of the first seed, if each draws others.
        test: Images for testing.
        side: Median of the shorter sides of training images, pixels.
        split: List file of a split by seed; None if the dataset has test images of its own.
        new_split: Whether this command made the split.
        unreadable: For each image that is left out a text with the reason.
        remarks: Lines of the check.
        check: Arguments of `python -m expansion.data` for the check.
    """

    dataset: ImageDataset
    place: tuple[str, ...]
    train: Sequence[ImageRecord]
    test: Sequence[ImageRecord]
    side: int
    split: Path | None
    new_split: bool
    unreadable: Sequence[str]
    remarks: Sequence[str]
    check: tuple[str, ...]

    @property
    def said(self) -> frozenset[str]:
        """Lines that commands would say again."""
        return frozenset(f"{self.dataset.name}: {remark}" for remark in self.dataset.remarks)

    @property
    def identity(self) -> dict[str, str]:
        """What identifies the images that results were made from."""
        return {
            "dataset": self.dataset.name,
            "training_images": content_summary(self.train),
            "test_images": content_summary(self.test),
        }

    def describe(self) -> str:
        """A few lines about the images, for the user."""
        classes = len(self.dataset.class_names)
        lines = [
            f"{self.dataset.root}: {classes} classes, {len(self.train)} images for training, "
            f"{len(self.test)} for testing"
        ]
        if self.split and self.new_split:
            lines += [
                "There were no test images, so some of each class were set apart:",
                f"  {self.split}",
                "  All commands follow that list from now on; remove it to choose anew.",
            ]
        elif self.split:
            lines.append(f"The test images are those of {self.split}")
        if self.unreadable:
            reasons = [problem.split("; ")[0] for problem in self.unreadable]
            left_out = "1 image is" if len(reasons) == 1 else f"{len(reasons)} images are"
            lines.append(f"{left_out} left out: {shown(reasons)}")
        lines += self.remarks[:SHOWN_LINES]
        if len(self.remarks) > SHOWN_LINES:
            lines.append(f"and {len(self.remarks) - SHOWN_LINES} lines more; the check shows them")
        return "\n".join(lines)


def look_at(config: StudyConfig) -> Photos:
    """Find the images, make and keep a split if there is none, and read them all.

    Raises:
        InputError: There are no images, none for testing, or too few of a class.
    """
    # Find and read the images; those that cannot be read are left out.
    dataset, fraction, new_split = _with_test_images(config)
    dataset = dataclasses.replace(dataset, name=config.name or dataset.name)
    everything = dataset.records("train")
    draws = config.seeds if config.draw_per_seed else (config.subset_seed,)
    chosen = [choose_subset(everything, config.shots, seed, None) for seed in draws]
    with _silent_log():
        readable = [readable_records(drawn, "skip") for drawn in chosen]
        test, broken_tests = readable_records(dataset.records("test"), "skip")
    train = readable[0][0]
    broken = list(dict.fromkeys(text for _, texts in readable for text in texts)) + broken_tests
    # Refuse what no classifier can be trained or tested on.
    for drawn, _ in readable:
        check_classes(dataset, drawn, least=2)
    if not test:
        raise InputError(f"{dataset.root}: none of its test images can be read")
    # Options by which other commands see the same images.
    place = ["-d", config.dataset]
    place += ["--data_dir", config.data_dir] if config.data_dir != StudyConfig.data_dir else []
    of_check = [*place[1:], *(["--test_fraction", f"{fraction:g}"] if fraction else [])]
    place += ["--name", config.name] if config.name else []
    place += ["--shots", str(config.shots)] if config.shots else []
    place += ["--subset_seed", str(config.subset_seed)] if config.subset_seed else []
    place += ["--test_fraction", f"{fraction:g}"] if fraction else []
    place += ["--on_error", "skip"] if broken else []
    return Photos(
        dataset=dataset,
        place=tuple(place),
        train=train,
        test=test,
        side=_median_side(train),
        split=_split_file(dataset, fraction),
        new_split=new_split,
        unreadable=broken,
        remarks=(*dataset.remarks, *_remarks(of_check, broken)),
        check=("check", *of_check),
    )


def _with_test_images(config: StudyConfig) -> tuple[ImageDataset, float | None, bool]:
    """The dataset with test images, split by seed if necessary.

    Returns:
        The dataset; the --test_fraction that every command must repeat, usually None, because the
        split is stored in the folder unless that cannot be written; and whether it was split now.
    """
    fraction = config.test_fraction
    if fraction is None:
        try:
            return _tested(_load(config)), None, False
        except InputError as error:
            if "give --test_fraction" not in str(error):
                raise
        fraction = TEST_FRACTION
    dataset = _load(config, fraction)
    before = set(dataset.root.glob("split-*.json"))
    _tested(dataset)
    is_new = before != set(dataset.root.glob("split-*.json"))
    with contextlib.suppress(InputError):
        return _tested(_load(config)), None, is_new
    return dataset, fraction, is_new


def _load(config: StudyConfig, fraction: float | None = None) -> ImageDataset:
    """Load the dataset without logging its remarks, which the description contains."""
    return load_dataset(config.dataset, config.data_dir, fraction, log_remarks=False)


def _split_file(dataset: ImageDataset, fraction: float | None) -> Path | None:
    """The list file of a split by seed, if there is one."""
    if not dataset.reader.splits_by_seed:
        return None
    if fraction is None:
        return find_stored_split(dataset.root)
    return next(dataset.root.glob(f"split-*-test-{fraction:g}-seed*.json"), None)


def _tested(dataset: ImageDataset) -> ImageDataset:
    dataset.records("test")
    return dataset


def _median_side(records: Sequence[ImageRecord]) -> int:
    some = records[:: max(1, len(records) // LOOKED_AT)]
    return round(statistics.median(min(record.load().size) for record in some))


def _remarks(arguments: Sequence[str], known: Sequence[str]) -> list[str]:
    """The notes and problems of the check, without the problems that are known already."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        check_command.main(["check", *arguments])
    lines = [
        line for line in text.getvalue().splitlines() if line.startswith(("note: ", "problem: "))
    ]
    return [line for line in lines if line.removeprefix("problem: ") not in known]


@contextlib.contextmanager
def _silent_log():
    """Inside this context warnings are not logged: the description names what is skipped."""
    import logging

    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
