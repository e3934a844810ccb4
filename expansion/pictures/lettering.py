"""Draws names of any script on pictures, with fonts that have their letters.

Pillow's own font has ASCII only. For each other letter a font is looked for: first DejaVu Sans,
which comes with matplotlib (Latin, Greek, Cyrillic and more), then the system's fonts. A letter
that no font has is shown without its accents or as its code point (\\u732b), never as a box.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

FONT_SUFFIXES = (".ttf", ".otf", ".ttc")
USUAL_FONT = "DejaVuSans.ttf"
NO_CHARACTER = "\U0010ffff"  # no font has it, so it shows how a font draws letters that it lacks
ELLIPSIS = "..."

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_text(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    size: int = 13,
    anchor: str = "la",
) -> None:
    """Draw one line of black text in any script.

    Args:
        draw: Where to draw.
        place: (x, y) of the anchor, pixels.
        text: The text.
        size: Size of the letters, pixels.
        anchor: Two letters as in Pillow: l, m or r, then a (top) or m (middle).
    """
    runs = _runs(text, size)
    usual = _font(None, size)
    x = place[0] - {"l": 0, "m": 0.5, "r": 1}[anchor[0]] * text_width(text, size)
    top = usual.getbbox("A", anchor="ls")[1]
    y = place[1] - (top / 2 if anchor[1] == "m" else top - 2)
    for font, part in runs:
        draw.text((x, y), part, fill="black", font=font, anchor="ls")
        x += font.getlength(part)


def text_width(text: str, size: int = 13) -> float:
    """Width in pixels of the text that `draw_text` draws with letters of `size` pixels."""
    return sum(font.getlength(part) for font, part in _runs(text, size))


def fitted(text: str, width: float, size: int = 13) -> str:
    """Shorten a text with an ellipsis, if necessary, to `width` pixels at letters of `size`."""
    text = " ".join(text.split())
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + ELLIPSIS, size) > width:
        text = text[:-1]
    return text + ELLIPSIS


def wrapped(text: str, width: float, max_lines: int, size: int = 13) -> list[str]:
    """Break a text into lines, at spaces if there are any.

    Args:
        text: The text.
        width: Largest width of a line, pixels.
        max_lines: Largest number of lines; the last one is shortened if there would be more.
        size: Size of the letters, pixels.
    """
    words = _spelled(" ".join(text.split())[:500], size).split(" ")
    lines = [""]
    while words:
        word = words.pop(0)
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if text_width(joined, size) <= width:
            lines[-1] = joined
        elif lines[-1]:
            lines.append("")
            words.insert(0, word)
        else:  # a single word is too long for a line
            count = next(
                n for n in range(len(word), 0, -1) if n == 1 or text_width(word[:n], size) <= width
            )
            lines[-1] = word[:count]
            words[:0] = [word[count:]] if word[count:] else []
            lines += [""] if words else []
    lines = [line for line in lines if line]
    if len(lines) > max_lines:
        rest = " ".join(lines[max_lines - 1 :])
        lines = [*lines[: max_lines - 1], fitted(rest, width, size)]
    return lines


def _runs(text: str, size: int) -> list[tuple[Font, str]]:
    """Divide a text into parts that are drawn with one font each."""
    text = _spelled(text, size)
    groups = groupby(text, lambda letter: _file_for(letter, size))
    return [(_font(file, size), "".join(letters)) for file, letters in groups]


def _spelled(text: str, size: int) -> str:
    """Replace letters that no font has by plain ones."""
    text = unicodedata.normalize("NFC", text)
    return "".join(letter if _is_drawn(letter, size) else _plain(letter) for letter in text)


def _plain(letter: str) -> str:
    if unicodedata.category(letter) in ("Cf", "Mn"):  # only joins letters, or chooses their form
        return ""
    bare = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return bare or letter.encode("ascii", "backslashreplace").decode()


def _is_drawn(letter: str, size: int) -> bool:
    return letter.isprintable() and (letter == " " or _file_for(letter, size) != "")


@functools.cache
def _file_for(letter: str, size: int) -> str | None:
    """The file of a font that has a letter; None means Pillow's own font, "" that none has it."""
    if letter.isascii():
        return None
    return next((file for file in _font_files() if _has(_font(file, size), letter)), "")


@functools.cache
def _font(file: str | None, size: int) -> Font | None:
    """Load a font; None if its file cannot be used at this size."""
    if not file:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(file, size)
    except (OSError, ValueError):
        return None


def _has(font: Font | None, letter: str) -> bool:
    """Whether a font draws the letter differently from letters that it lacks."""
    if font is None:
        return False
    try:
        shape, lacking = font.getmask(letter), font.getmask(NO_CHARACTER)
    except (OSError, ValueError):
        return False
    drawn = shape.getbbox() is not None
    return drawn and (shape.size, bytes(shape)) != (lacking.size, bytes(lacking))


@functools.cache
def _font_files() -> tuple[str, ...]:
    """All font files: matplotlib's, then the system's, with plain DejaVu Sans before all others."""
    files = [file for folder in _font_folders() for file in _below(folder)]
    return tuple(sorted(dict.fromkeys(files), key=lambda file: not file.endswith(USUAL_FONT)))


def _font_folders() -> Iterator[Path]:
    matplotlib = importlib.util.find_spec("matplotlib")  # does not import it
    for place in (matplotlib.submodule_search_locations or ()) if matplotlib else ():
        yield Path(place, "mpl-data/fonts/ttf")
    if sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", "C:/Windows"), "Fonts")
    for folder in ("~/.fonts", "~/.local/share/fonts", "~/Library/Fonts"):
        yield Path(os.path.expanduser(folder))
    for folder in ("/usr/share/fonts", "/usr/local/share/fonts", "/Library/Fonts"):
        yield Path(folder)
    yield Path("/System/Library/Fonts")


def _below(folder: Path) -> list[str]:
    """Font files in a folder, with upright fonts of usual weight first."""
    files = [
        str(path)
        for path in folder.rglob("*")
        if path.suffix.lower() in FONT_SUFFIXES and "LastResort" not in path.name  # all boxes
    ]
    slanted = re.compile(r"bold|italic|oblique|light|thin|black|mono|condensed", re.I)
    return sorted(files, key=lambda file: (bool(slanted.search(Path(file).name)), file))
