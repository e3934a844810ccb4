"""How an image file becomes upright RGB of 8 bits: one rule for everything that reads images.

The steps, in this order:

1. Of several frames or pages the first is used.
2. An image that lies on its side is turned once, as the orientation in its EXIF or XMP says,
   whatever the format. EXIF that cannot be read turns nothing.
3. Grey values of more than 8 bits become 8 bits by the range that the file declares: 12 bits of
   TIFF, the largest value of PGM, the depth of JPEG 2000, 16 bits else. Of 16 bits, grey or
   colour, the upper 8 remain. Neither the values of an image nor the tags that repeat its lowest
   and highest value decide it, so that equal values of two images stay equal. 12 bits that were
   stored as 16 therefore look dark: `check` names them, and `value_range` mends it.
4. Floats, 32-bit integers and signed ones declare no range. The first of 0..1 (floats only),
   0..255, 0..65535 and 0..4294967295 that holds all values of the image becomes black..white; an
   image with negative or larger values is stretched from its lowest to its highest. `check` counts
   each of these, and a set that mixes them is a problem. `value_range` decides instead, if given.
   Values that are no numbers are refused.
5. Colours become sRGB: by the embedded profile if it fits the image, Lab by its definition, CMYK
   without a profile by subtraction. A profile that moves no colour visibly is not applied.
6. Transparent pixels are laid on `background`, before anything is resized.
"""

from __future__ import annotations

import io
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    ExifTags,
    Image,
    ImageColor,
    ImageFile,
    Jpeg2KImagePlugin,
    MpoImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
    features,
)

from expansion.common.errors import require
from expansion.images.colour_profiles import to_srgb

# Formats that are tried, whatever the suffix says. Pillow knows some forty more, one of which calls
# another program (EPS: Ghostscript). Importing the plugins of the less usual ones loads them.
PLUGINS = (AvifImagePlugin, Jpeg2KImagePlugin, MpoImagePlugin, TiffImagePlugin, WebPImagePlugin)
Image.preinit()
ONE_OF_EACH = ".avif .bmp .dib .gif .jp2 .jpg .png .ppm .tif .webp".split()
FORMATS = tuple(Image.EXTENSION[s] for s in ONE_OF_EACH if s in Image.EXTENSION)
# Formats whose decoders a build of Pillow may lack.
DECODERS = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
# All suffixes of these formats; MPO, which phones write, is a JPEG with further frames behind it.
IMAGE_SUFFIXES = frozenset(
    suffix
    for suffix, kind in Image.EXTENSION.items()
    if kind in (*FORMATS, "MPO") and (kind not in DECODERS or features.check(DECODERS[kind]))
)
# EXIF orientation -> what makes the image upright. Only this tag is read; others may be malformed.
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
        strict=True,
    )
)
# A line of pixels, resized until its shorter side fits, would fill the memory.
LARGEST_RATIO = 100  # of the longer to the shorter side
TOP_16 = 65535
INTEGER_TOPS = (255, TOP_16, 2**32 - 1)
FLOAT_TOPS = (1, *INTEGER_TOPS)
# Notes on what was done to an image, which `python -m expansion.data check` counts.
TURNED, FRAMES, CMYK, SIXTEEN = "turned upright", "several frames, first used", "CMYK", "16-bit"
TRANSPARENT = "transparent, on "  # then the background
UNDECLARED = "without a declared range, "  # then how its values were taken
# libtiff gives numbers in the machine's byte order, which Pillow takes for the file's.
SWAPPED = {"I;16BS": "I;16S", "I;32BS": "I;32S", "F;32BF": "F;32F"}
JP2_EXIF, MAX_BOXES, MAX_EXIF = b"JpgTiffExif->JP2", 1000, 1 << 20
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
MIN_IS_WHITE, UNSIGNED = 0, 1
HEIC = re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)  # also named .jpg
ALPHA_MODES = ("LA", "PA", "RGBA", "La", "RGBa")
# Pillow's modes that cannot be stored -> one that can, and those that TIFF stores but PNG does not.
NOT_STORED = {"PA": "RGBA", "La": "LA", "RGBa": "RGBA", "HSV": "RGB", "YCbCr": "RGB", "RGBX": "RGB"}
NOT_IN_PNG = ("CMYK", "F", "I", "LAB")
COLOURS_OF_16_BITS = re.compile(r"(RGB[AXa]?|LA|CMYK);16")  # raw modes; BGR;16 is 5 + 6 + 5 bits


@dataclass(frozen=True)
class Reading:
    """A dataset's own settings of how its images are read.

    Attributes:
        background: Colour behind transparent pixels: a name or "#rrggbb".
        value_range: The two grey values that become black and white in files of 16 bits, or of more
            than 8 bits without a declared range; () leaves it to the module's rule.
    """

    background: str = "white"
    value_range: tuple[float, ...] = ()


@dataclass(frozen=True)
class Decoded:
    """An image and what was done to it.

    Attributes:
        image: RGB, upright.
        mode: Pillow's mode of the file.
        notes: One text for each conversion, from this module or `colour_profiles`.
        top: Largest value of the upper 8 bits, for images of 16 bits that were read without
            `value_range`; None for others.
    """

    image: Image.Image
    mode: str
    notes: tuple[str, ...] = ()
    top: int | None = None


def check_reading(reading: Reading, place: str) -> Reading:
    """Return `reading` if its values make sense.

    Args:
        reading: Settings to check.
        place: Where they come from, for the error.

    Raises:
        InputError: The background is no colour, or the value range no range.
    """
    try:
        opaque = len(ImageColor.getrgb(reading.background)) == 3
    except ValueError:
        opaque = False
    require(
        opaque,
        f"{place}: background: '{reading.background}' is no colour; give a name such as white, or "
        "'#rrggbb'",
    )
    limits = reading.value_range
    require(
        not limits or (len(limits) == 2 and limits[0] < limits[1]),
        f"{place}: value_range: expected [black, white] with the lower number first, got "
        f"{list(limits)}",
    )
    return reading


def decode(file: Path | io.BytesIO, reading: Reading) -> Decoded:
    """Read the image in a file by the rule at the head of this module.

    An image that cannot be read raises whatever Pillow raises.

    Args:
        file: Path, or the content of a file.
        reading: The dataset's settings.
    """
    with Image.open(file, formats=FORMATS) as opened:
        _refuse_line(opened)
        # What must be known before the pixels are loaded, since loading changes it.
        mode, raw = opened.mode, _raw_mode(opened)
        notes = [FRAMES] if _has_frames(opened) else []
        if opened.format == "JPEG2000":
            opened.info["exif"] = _exif_of_jp2(opened.fp)
        turned = _orientation(opened) in EXIF_TURNS
        _mend_byte_order(opened)
        opened.load()  # TIFF is turned here
        turn = EXIF_TURNS.get(_orientation(opened))
        # Values to 8 bits, alpha apart, colours to sRGB.
        image: Image.Image = opened
        alpha: Image.Image | None = None
        top: int | None = None
        if mode[0] in "IF":
            image, alpha, top, of_grey = _grey(opened, reading)
            notes += of_grey
        elif COLOURS_OF_16_BITS.match(raw):
            require(not reading.value_range, "value_range cannot be applied to colours of 16 bits")
            notes.append(SIXTEEN)
            top = _highest(opened) if mode != "CMYK" else None
        if mode == "CMYK":
            notes.append(CMYK)
        if alpha is None and ("transparency" in opened.info or mode in ALPHA_MODES):
            image, alpha = _without_alpha(opened, raw)
        image, of_colours = to_srgb(image, opened.info.get("icc_profile"))
        notes += [of_colours] if of_colours else []
    # Lay it on the background, and turn it upright.
    if alpha is not None and extrema(alpha)[0][0] < 255:
        ground = Image.new("RGB", image.size, reading.background)
        ground.paste(image, mask=alpha)
        image = ground
        notes.append(TRANSPARENT + reading.background)
    if turn is not None:
        image = image.transpose(turn)
    if turned or turn is not None:
        notes.append(TURNED)
    return Decoded(image, mode, tuple(notes), top)


def decode_image(image: Image.Image) -> Image.Image:
    """Convert an image in memory just as if it were read from a file.

    Raises:
        InputError: It is a line of pixels, or some of its values are NaN or infinite.
    """
    _refuse_line(image)
    orientation = _orientation(image)
    told = orientation in EXIF_TURNS or {"icc_profile", "transparency"} & set(image.info)
    if image.mode == "RGB" and not told:
        return image
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    image = image.convert(NOT_STORED.get(image.mode, image.mode))
    file = io.BytesIO()
    image.save(file, "TIFF" if image.mode in NOT_IN_PNG else "PNG", exif=exif)
    return decode(file, Reading()).image


def _refuse_line(image: Image.Image) -> None:
    low, high = sorted(image.size)
    line = f"{image.width} x {image.height} pixels are a line"
    require(high <= LARGEST_RATIO * low, line)


def why_unreadable(file: Path | io.BytesIO, error: Exception) -> str:
    """Say in a few words why an image cannot be read.

    Args:
        file: What `decode` was given.
        error: What it raised.
    """
    if isinstance(error, UnidentifiedImageError):
        with file.open("rb") if isinstance(file, Path) else file as opened:
            opened.seek(0)
            if HEIC.match(opened.read(32)):
                return "it is HEIC, which is not decoded here; convert it to JPEG or PNG"
    return str(error) or type(error).__name__


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """Pillow's name for how the file stores its values, such as RGB;16B."""
    args = image.tile[0].args if image.tile else ""
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else ""


def extrema(image: Image.Image) -> list[tuple[int, int]]:
    """The lowest and the highest value of each band."""
    found: Any = image.getextrema()
    return [found] if len(image.getbands()) == 1 else list(found)


def _highest(image: Image.Image) -> int:
    """The highest value of red, green and blue."""
    return max(high for _, high in extrema(image)[:3])


def _has_frames(image: ImageFile.ImageFile) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a second frame that is damaged makes the decoders fail in any way
        image.seek(0)
        return True


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # malformed EXIF fails in any way, and is no part of the picture
        return None


def _exif_of_jp2(file: IO[bytes]) -> bytes:
    """The EXIF of a JP2 file, which Pillow does not read; it is in a box with a fixed name."""
    place, start = file.tell(), 0
    try:
        for _ in range(MAX_BOXES):
            file.seek(start)
            size, kind, long_size = struct.unpack(">I4sQ", file.read(16))
            head = 16 if size == 1 else 8
            if kind == b"uuid":
                file.seek(start + head)
                if file.read(16) == JP2_EXIF:
                    return file.read(MAX_EXIF)
            if size == 0:  # up to the end
                break
            start += max(long_size if size == 1 else size, head)
    except struct.error:  # the end
        pass
    finally:
        file.seek(place)
    return b""


def _mend_byte_order(image: ImageFile.ImageFile) -> None:
    for i, tile in enumerate(image.tile):
        if tile.codec_name == "libtiff" and tile.args[0] in SWAPPED and sys.byteorder == "little":
            image.tile[i] = tile._replace(args=(SWAPPED[tile.args[0]], *tile.args[1:]))


def _grey(
    image: ImageFile.ImageFile, reading: Reading
) -> tuple[Image.Image, Image.Image | None, int | None, list[str]]:
    """Convert an image of mode I, I;16 or F to (8-bit grey, alpha, `Decoded.top`, notes)."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if values.dtype == np.int32 and tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED:
        values = values.view(np.uint32)
    require(bool(np.isfinite(values).all()), "some of its values are no numbers")
    # The range of values, by points 3 and 4 of the rule.
    top, notes = None, []
    if tags.get(BITS_PER_SAMPLE, (16,))[0] == 12:
        grey, notes = _scaled(values, 0, 4095), ["12-bit"]
    elif reading.value_range and image.format in ("PNG", "TIFF"):
        grey, notes = _scaled(values, *reading.value_range), ["taken by value_range"]
    elif image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        grey, notes = (values >> 8).astype(np.uint8), [SIXTEEN]
        top = int(grey.max())
    else:
        low, high, words = _undeclared_range(values)
        grey, notes = _scaled(values, low, high), [UNDECLARED + words]
    # What the file says about white, and about one transparent value.
    if tags.get(PHOTOMETRIC) == MIN_IS_WHITE:
        grey = 255 - grey
    alpha = None
    if "transparency" in image.info:
        alpha = Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype("u1"))
    return Image.fromarray(grey), alpha, top, notes


def _undeclared_range(values: np.ndarray) -> tuple[float, float, str]:
    """The values that become black and white by point 4 of the rule, and a note on them."""
    low, high = float(values.min()), float(values.max())
    tops = FLOAT_TOPS if values.dtype.kind == "f" else INTEGER_TOPS
    top = next((top for top in tops if 0 <= low and high <= top), None)
    if top is None:
        return low, high, "stretched from lowest to highest value"
    return 0, top, f"0..{top} taken"


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map values from `low` to `high` to 0 to 255, rounded; values beyond are clipped."""
    share = (values.astype(np.float64) - low) / max(high - low, np.finfo(float).tiny)
    return np.rint(share.clip(0, 1) * 255).astype(np.uint8)


def _without_alpha(image: Image.Image, raw: str) -> tuple[Image.Image, Image.Image]:
    """Divide an image with transparency into its colours (or grey values) and its alpha, mode L."""
    clear = image.info.get("transparency")
    if image.format == "PNG" and image.mode in ("L", "RGB"):
        # Pillow compares with the file's own number what has meanwhile become 8 bits.
        image.info["transparency"] = _eight_bits(clear, raw)
    if image.mode in ("La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    whole = image.convert("LA" if image.mode in ("L", "LA", "1") else "RGBA")
    *colours, alpha = whole.split()
    return Image.merge("RGB", colours) if len(colours) == 3 else colours[0], alpha


def _eight_bits(clear: int | tuple[int, ...], raw: str) -> int | tuple[int, ...]:
    """The colour that a PNG file declares transparent, as it appears in the decoded pixels."""
    if isinstance(clear, tuple):
        return tuple(value >> 8 if "16" in raw else value & 255 for value in clear)
    if raw in ("L;2", "L;4"):
        top = 2 ** int(raw[-1]) - 1
        return (clear & top) * (255 // top)
    return clear & 255
