"""Names of any script on pictures: drawn with a font that has their letters, or spelled out.

Pillow's own font knows ASCII alone. Others are sought letter by letter: DejaVu Sans, which comes
with matplotlib (Latin, Greek, Cyrillic and more), then the system's fonts. What no font has is
shown without its accents or as its code point (\\u732b), never as a box.
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
NO_CHARACTER = "\U0010ffff"  # which shows how a font draws what it lacks
ELLIPSIS = "..."

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_text(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    size: int = 13,
    anchor: str = "la",
) -> None:
    """One line of black text, whatever its letters.

    Args:
        place: Of the anchor, pixels.
        size: Of the letters, pixels.
        anchor: As Pillow has it: l, m or r, then a (top) or m (middle).
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
    """Pixels that `draw_text` takes."""
    return sum(font.getlength(part) for font, part in _runs(text, size))


def fitted(text: str, width: float, size: int = 13) -> str:
    """The text, or its start and an ellipsis, within `width` pixels."""
    text = " ".join(text.split())
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + ELLIPSIS, size) > width:
        text = text[:-1]
    return text + ELLIPSIS


def wrapped(text: str, width: float, max_lines: int, size: int = 13) -> list[str]:
    """Lines of at most `width` pixels, broken at spaces where there are any; the last is cut."""
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
        else:  # one word alone is too long
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
    """The text in parts of one font each."""
    text = _spelled(text, size)
    groups = groupby(text, lambda letter: _file_for(letter, size))
    return [(_font(file, size), "".join(letters)) for file, letters in groups]


def _spelled(text: str, size: int) -> str:
    """The text with what no font has replaced by plain letters."""
    text = unicodedata.normalize("NFC", text)
    return "".join(letter if _is_drawn(letter, size) else _plain(letter) for letter in text)


def _plain(letter: str) -> str:
    if unicodedata.category(letter) in ("Cf", "Mn"):  # joins letters, or chooses their look
        return ""
    bare = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return bare or letter.encode("ascii", "backslashreplace").decode()


def _is_drawn(letter: str, size: int) -> bool:
    return letter.isprintable() and (letter == " " or _file_for(letter, size) != "")


@functools.cache
def _file_for(letter: str, size: int) -> str | None:
    """The font that has a letter: None for Pillow's own, "" if there is none."""
    if letter.isascii():
        return None
    return next((file for file in _font_files() if _has(_font(file, size), letter)), "")


@functools.cache
def _font(file: str | None, size: int) -> Font | None:
    """None where the file cannot be used at that size."""
    if not file:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(file, size)
    except (OSError, ValueError):
        return None


def _has(font: Font | None, letter: str) -> bool:
    """Whether the font draws the letter otherwise than what it lacks."""
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
    """All font files: matplotlib's, then the system's, plain DejaVu Sans before others."""
    files = [file for folder in _font_folders() for file in _below(folder)]
    return tuple(sorted(dict.fromkeys(files), key=lambda file: not file.endswith(USUAL_FONT)))


def _font_folders() -> Iterator[Path]:
    matplotlib = importlib.util.find_spec("matplotlib")  # found, not imported
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
    """Font files in a folder; upright ones of usual weight first."""
    found = [
        str(path)
        for path in folder.rglob("*")
        if path.suffix.lower() in FONT_SUFFIXES and "LastResort" not in path.name  # all boxes
    ]
    slanted = re.compile(r"bold|italic|oblique|light|thin|black|mono|condensed", re.I)
    return sorted(found, key=lambda file: (bool(slanted.search(Path(file).name)), file))
