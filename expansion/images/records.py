"""One labelled image file: what identifies it and how it is read."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from expansion.common.errors import InputError, is_text, require, shown
from expansion.images.pixels import Decoded, Reading, decode, decode_image, why_unreadable

Picture = Image.Image | str | Path  # how a caller of the library gives a real image


@dataclass(frozen=True)
class ImageRecord:
    """One image file with its label.

    Attributes:
        path: The file.
        file_name: Path relative to the dataset folder, with "/"; identifies the image in seeds and
            manifests.
        label: Number of its class, from 0.
        class_name: Name of its class.
        source: `file_name` of the real image that a generated one was made from; None for a real
            image.
        true_label: What the image really shows, where `label` was made wrong on purpose.
        crop_bottom: Rows of pixels that are cut off below, because they hold a credit line.
        reading: The dataset's settings of background and range of values.
        content: SHA-256 of the file, hexadecimal; None until `readable_records` fills it in.
        pixels: SHA-256 of size and RGB pixels, equal for copies in other formats; None until
            `readable_records` fills it in.
        soft_label: Probability of every class, learnt in place of `label`.
    """

    path: Path
    file_name: str
    label: int
    class_name: str
    source: str | None = None
    true_label: int | None = None
    crop_bottom: int = 0
    reading: Reading = Reading()
    content: str | None = None
    pixels: str | None = None
    soft_label: tuple[float, ...] | None = None

    def load(self) -> Image.Image:
        """The image as upright RGB, by the rule of `expansion.images.pixels`.

        Raises:
            InputError: The image cannot be read; the message names the file.
        """
        return self.decoded().image

    def decoded(self) -> Decoded:
        """The image with notes on what was done to it; raises InputError as `load` does."""
        file: Path | io.BytesIO = self.path
        try:
            file = self._file()
            whole = decode(file, self.reading)
        except Exception as error:  # a damaged file makes Pillow's decoders fail in any way
            raise InputError(
                f"cannot read the image {self._shown()} ({why_unreadable(file, error)}); replace "
                "or remove it, or go on without it with --on_error skip"
            ) from error
        image = whole.image
        if not 0 < self.crop_bottom < image.height:
            return whole
        kept = image.crop((0, 0, image.width, image.height - self.crop_bottom))
        return replace(whole, image=kept)

    @property
    def part(self) -> str:
        """A text that tells which part of the file the image is; empty if it is the whole file."""
        return ""

    def read_bytes(self) -> bytes:
        """The encoded image, as it is in the file."""
        return self.path.read_bytes()

    def _file(self) -> Path | io.BytesIO:
        """The path or content that Pillow opens."""
        return self.path

    def _shown(self) -> str:
        return str(self.path)


@dataclass(frozen=True, kw_only=True)
class PackedRecord(ImageRecord):
    """A record of an image in a tar, which is its `path`.

    `byte_range` says where in the tar the image is: first byte, and number of bytes.
    """

    byte_range: tuple[int, int]

    @property
    def part(self) -> str:
        return "#{}+{}".format(*self.byte_range)

    def read_bytes(self) -> bytes:
        first, num_bytes = self.byte_range
        with self.path.open("rb") as file:
            file.seek(first)
            return file.read(num_bytes)

    def _file(self) -> Path | io.BytesIO:
        return io.BytesIO(self.read_bytes())

    def _shown(self) -> str:
        return f"{self.file_name} in {self.path}"


@dataclass(frozen=True, kw_only=True)
class HeldRecord(ImageRecord):
    """A record of an image that is in memory already, as `held`."""

    held: Image.Image

    def decoded(self) -> Decoded:
        return Decoded(self.held, self.held.mode)


def given_records(
    images: Sequence[Picture],
    names: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
) -> list[ImageRecord]:
    """Make records of images that a caller of the library gives.

    Args:
        images: Pillow images or paths.
        names: Distinct file names; default: "0", "1", ...
        labels: Numbers of classes, from 0; default: 0 for all, which then means nothing.

    Raises:
        InputError: The lists differ in length, a name occurs twice, or an image in memory cannot be
            used.
    """
    single = isinstance(images, (str, Path, Image.Image))
    require(not single and len(images) > 0, "give a list of images, with one or more in it")
    names = [str(i) for i in range(len(images))] if names is None else list(names)
    labels = [0] * len(images) if labels is None else [int(label) for label in labels]
    for title, values in (("names", names), ("labels", labels)):
        require(
            len(values) == len(images),
            f"{len(values)} {title} for {len(images)} images; give one for each",
        )
    require(len(set(names)) == len(names), "two images have one name, so they would share noise")
    require(min(labels) >= 0, f"label {min(labels)}: labels count from 0")
    records: list[ImageRecord] = []
    for image, name, label in zip(images, names, labels, strict=True):
        if isinstance(image, Image.Image):
            held = decode_image(image)
            records.append(HeldRecord(Path(name), name, label, str(label), held=held))
        else:
            records.append(ImageRecord(Path(image), name, label, str(label)))
    return records


def require_text(names: Iterable[str], place: str) -> None:
    """Raise InputError for names that are no UTF-8 text, as manifests and prompts must be.

    Args:
        names: File names, or names of classes.
        place: Where they come from, for the error.
    """
    odd = [name for name in dict.fromkeys(names) if not is_text(name)]
    require(not odd, f"{place}: {len(odd)} names are no UTF-8 text: {shown(odd)}; rename them")
