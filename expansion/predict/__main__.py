"""Use a finished classifier on photos: a table of probabilities, and a picture.

    python -m expansion.predict checkpoint/caltech-101/resnet50_unpretrained_lr0.1 path/to/photos

The first argument is the folder of one seed, or of all seeds, whose mean then decides. Photos are
files and folders, which are searched in depth. The table, predictions.csv, has a row for each
photo: file, class, probability, and the probability of every class. The picture is written beside
it.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from expansion.common.devices import usable_device
from expansion.common.errors import InputError, one_line, require, run_command, shown
from expansion.common.files import check_outside, check_writable, write_atomic
from expansion.common.option_parser import OptionParser
from expansion.common.tables import aligned
from expansion.images.file_trees import walk
from expansion.images.records import ImageRecord
from expansion.pictures.figures import captioned, contact_sheet, save_figure
from expansion.predict.finished_runs import FinishedRuns, find_runs

if TYPE_CHECKING:
    from torch import Tensor

    from expansion.predict.predictor import Predictor

logger = logging.getLogger("predict")

COLUMNS = ("file", "class", "probability")
UNDECODED = (".heic", ".heif")  # photos that cannot be read here, and should not go unnoticed
MAX_LISTED = 20  # photos in the printed table
MAX_PICTURED = 240  # photos in the picture
ACROSS, SIDE, CAPTION = 6, 96, 16  # photos in a row of it; pixels of a photo and of its caption


@dataclass(frozen=True)
class Prediction:
    """The prediction for a photo.

    Attributes:
        path: The photo.
        probabilities: Probability of each class, by label.
        thumbnail: Small image for the picture; None beyond the first `MAX_PICTURED` photos.
    """

    path: Path
    probabilities: Sequence[float]
    thumbnail: Image.Image | None

    @property
    def label(self) -> int:
        """The most probable class; the first of equally probable ones."""
        return self.ranked[0]

    @property
    def ranked(self) -> list[int]:
        """Labels from the most to the least probable."""
        return sorted(range(len(self.probabilities)), key=lambda i: -self.probabilities[i])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = OptionParser(prog="python -m expansion.predict", description=__doc__)
    parser.add_argument("run", help="folder of a finished run, or of all seeds of an arm")
    parser.add_argument("photos", nargs="+", help="image files, and folders of such")
    parser.add_argument(
        "--output",
        default="predictions.csv",
        help="table; the picture gets the same name with .png (default: predictions.csv)",
    )
    parser.add_argument(
        "--top", type=int, default=3, help="classes per photo in the printed table (default: 3)"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="photos at a time (default: 64)")
    parser.add_argument(
        "--device", default="auto", help="cuda, cpu, ...; auto: a GPU if there is one"
    )
    parser.add_argument(
        "--crop_bottom",
        type=int,
        help="rows of pixels to cut off below; default: as of the images the run was trained on",
    )
    parser.add_argument(
        "--on_error",
        choices=("skip", "fail"),
        default="skip",
        help="what a photo that cannot be read does (default: skip, and name it)",
    )
    options = parser.parse_args(arguments)
    for name in ("top", "batch_size"):
        value = getattr(options, name)
        require(value > 0, f"--{name} {value}: give a positive number")
    rows = options.crop_bottom
    require(rows is None or rows >= 0, f"--crop_bottom {rows}: give 0 or a positive number")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Write table and picture, and print a summary; `arguments` defaults to the process's own."""
    # Check everything before torch and the classifiers load.
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    runs = find_runs(options.run)
    table = Path(options.output)
    photos = find_photos(options.photos)
    _check_output(table, options.photos)
    records = _records(photos, runs, options.crop_bottom)
    device = usable_device(options.device)
    from expansion.predict.predictor import Predictor

    # Predict, and write the results.
    predictor = Predictor.load(runs, device)
    logger.info(runs.title)
    if runs.unfinished:
        logger.info(f"not finished, so left out: {', '.join(runs.unfinished)}")
    predictions = list(_predict(predictor, records, options.batch_size, options.on_error))
    require(bool(predictions), f"none of the {len(photos)} photos can be read")
    names = predictor.class_names
    write_table(table, predictions, names)
    write_picture(table.with_suffix(".png"), predictions, names)
    sys.stdout.write(summary(predictions, names, options.top))
    left_out = len(photos) - len(predictions)
    logger.info(
        f"{table}, {table.with_suffix('.png').name}: {len(predictions)} photos"
        + (f", {left_out} left out because they cannot be read" if left_out else "")
    )


def find_photos(places: Sequence[str]) -> list[Path]:
    """The photos at these places, in their order and each only once.

    Args:
        places: Files, and folders that are searched in depth.

    Raises:
        InputError: A place does not exist, or there is no photo.
    """
    photos: dict[str, Path] = {}
    for place in map(Path, places):
        require(os.path.exists(place), f"photo {place} does not exist")
        files = [place]
        if place.is_dir():
            tree = walk(place)
            undecoded = [path for path in tree.others if path.suffix.lower() in UNDECODED]
            files = sorted([*tree.images, *undecoded, *tree.nowhere])
            others = len(tree.others) - len(undecoded)
            if others:
                logger.info(f"{place}: {others} files that are no images are not looked at")
        for path in files:
            photos.setdefault(os.path.abspath(path), path)
    require(bool(photos), f"no photo in {shown(places)}; give image files or folders of them")
    return list(photos.values())


def _check_output(table: Path, places: Sequence[str]) -> None:
    require(
        table.suffix.lower() == ".csv",
        f"--output {table}: give a name that ends in .csv; the picture beside it ends in .png",
    )
    for path in (table, table.with_suffix(".png")):
        require(not path.is_dir(), f"--output {table}: {path} is a folder; give another name")
    picture = table.with_suffix(".png").resolve()
    for place in places:
        check_outside(table.parent, {"the photos' folder": place})
        require(
            Path(place).resolve() != picture,
            f"--output {table} would write its picture over the photo {place}; give another name",
        )
    check_writable(table.parent)


def _records(photos: Sequence[Path], runs: FinishedRuns, crop: int | None) -> list[ImageRecord]:
    crop = runs.view.crop_bottom if crop is None else crop
    if crop:
        logger.info(f"the lowest {crop} rows of every photo are cut off; see --crop_bottom")
    reading = runs.view.reading
    return [ImageRecord(p, str(p), 0, "", crop_bottom=crop, reading=reading) for p in photos]


def _predict(
    predictor: Predictor, records: Sequence[ImageRecord], batch_size: int, on_error: str
) -> Iterator[Prediction]:
    """Predictions in the order of the photos; one that cannot be read is logged, or raises."""

    def look(record: ImageRecord) -> tuple[Tensor, Image.Image] | InputError:
        try:
            image = record.load()
        except InputError as error:
            return error
        return predictor.transform(image), _small(image)

    count = 0
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(records), batch_size):
            part = records[start : start + batch_size]
            readable = []
            for record, seen in zip(part, pool.map(look, part), strict=True):
                if not isinstance(seen, InputError):
                    readable.append((record.path, *seen))
                    continue
                if on_error == "fail":
                    raise seen
                logger.warning("skipped: %s", seen)
            rows = predictor.of_pixels([pixels for _, pixels, _ in readable]) if readable else []
            for (path, _, thumbnail), row in zip(readable, rows, strict=True):
                yield Prediction(path, row.tolist(), thumbnail if count < MAX_PICTURED else None)
                count += 1


def _small(image: Image.Image) -> Image.Image:
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    return small


def write_table(path: Path, predictions: Sequence[Prediction], names: Sequence[str]) -> None:
    """Write the CSV file.

    Args:
        path: The file.
        predictions: Its rows.
        names: Names of the classes, by label. A class with the name of one of the first columns is
            called "class <name>" in the header.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"class {n}" if n in COLUMNS else n for n in names)])
    for prediction in predictions:
        highest = prediction.probabilities[prediction.label]
        numbers = [f"{p:.6g}" for p in (highest, *prediction.probabilities)]
        writer.writerow([prediction.path, names[prediction.label], *numbers])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.getvalue().encode("utf-8", "backslashreplace"))


def write_picture(path: Path, predictions: Sequence[Prediction], names: Sequence[str]) -> None:
    """Write the picture: the photos of each predicted class, the most certain first.

    Args:
        path: The PNG file.
        predictions: All predictions; those with a thumbnail are shown.
        names: Names of the classes, by label.
    """
    by_class: dict[int, list[Prediction]] = {}
    for prediction in predictions:
        if prediction.thumbnail is not None:
            by_class.setdefault(prediction.label, []).append(prediction)
    rows = []
    for label, members in sorted(by_class.items()):
        members.sort(key=lambda p: -p.probabilities[label])
        cells = [
            captioned(p.thumbnail, f"{p.probabilities[label]:.0%} {p.path.stem}", SIDE)
            for p in members
        ]
        rows += [(names[label], cells[i : i + ACROSS]) for i in range(0, len(cells), ACROSS)]
    save_figure(contact_sheet(rows, cell=SIDE + CAPTION), path)
    if len(predictions) > MAX_PICTURED:
        logger.info(f"{path} shows the first {MAX_PICTURED} of {len(predictions)} photos")


def summary(predictions: Sequence[Prediction], names: Sequence[str], top: int) -> str:
    """The text that the command prints: a table of some photos, and the number of each class.

    Args:
        predictions: All predictions.
        names: Names of the classes, by label.
        top: Number of classes to list for each photo.
    """
    rows = [["file", "class", "probability", "then"]]
    for prediction in predictions[:MAX_LISTED]:
        first, *further = [
            (one_line(names[i]), f"{100 * prediction.probabilities[i]:.1f} %")
            for i in prediction.ranked[:top]
        ]
        others = ", ".join(f"{name} {share}" for name, share in further)
        rows.append([one_line(str(prediction.path)), *first, others])
    text = aligned(rows, left=(0, 1, 3))
    if len(predictions) > MAX_LISTED:
        text += f"\n... and {len(predictions) - MAX_LISTED} more"
    counts = Counter(prediction.label for prediction in predictions)
    listed = shown((f"{one_line(names[i])} {n}" for i, n in counts.most_common()), MAX_LISTED)
    return f"{text}\n\nphotos per class: {listed}\n"


if __name__ == "__main__":
    run_command(main)
