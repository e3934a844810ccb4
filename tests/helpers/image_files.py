"""Image files and profiles that Pillow does not write, byte by byte, and what is read of them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageCms

from expansion.images.pixels import Decoded, Reading, decode

PLAIN = Reading()
SHORT, LONG = 3, 4  # types of TIFF
FLOAT_SAMPLES, SIGNED_SAMPLES, UNSIGNED_SAMPLES = 3, 2, 1


def read(content: bytes, reading: Reading = PLAIN) -> Decoded:
    return decode(io.BytesIO(content), reading)


def pixels(content: bytes, reading: Reading = PLAIN) -> list:
    """Colours of the first row."""
    return np.asarray(read(content, reading).image)[0].tolist()


def greys(content: bytes, reading: Reading = PLAIN) -> list[int]:
    rows = pixels(content, reading)
    assert all(red == green == blue for red, green, blue in rows)
    return [red for red, _, _ in rows]


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, bits: int, colour: int, row: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG file of one row; `more` are chunks before its pixels."""
    header = struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"\0" + row)
    chunks = [(b"IHDR", header), *more, (b"IDAT", pixels), (b"IEND", b"")]
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, body in chunks:
        check = struct.pack(">I", zlib.crc32(name + body))
        parts.append(struct.pack(">I", len(body)) + name + body + check)
    return b"".join(parts)


def tiff(
    pixels: bytes,
    size: tuple[int, int],
    bits: Sequence[int],
    order: str = "<",
    photometric: int = 1,
    samples: int = UNSIGNED_SAMPLES,
    packed: bool = False,
    more: Mapping[int, int] | None = None,
) -> bytes:
    """A TIFF file of one strip; `packed` by deflate, `more` are further tags."""
    data = zlib.compress(pixels) if packed else pixels
    tags = {256: size[0], 257: size[1], 259: 8 if packed else 1, 262: photometric, 277: len(bits)}
    tags |= {278: size[1], 339: samples, **(more or {})}
    num_tags = len(tags) + 3
    end = 8 + 2 + 12 * num_tags + 4
    wide = struct.pack(f"{order}{len(bits)}H", *bits)
    entries = {
        tag: struct.pack(f"{order}HHIHH", tag, SHORT, 1, value, 0) for tag, value in tags.items()
    }
    where = struct.pack(order + "I", end) if len(wide) > 4 else wide.ljust(4, b"\0")
    entries[258] = struct.pack(order + "HHI", 258, SHORT, len(bits)) + where
    entries[273] = struct.pack(order + "HHII", 273, LONG, 1, end + len(wide))
    entries[279] = struct.pack(order + "HHII", 279, LONG, 1, len(data))
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, num_tags)
    return start + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4) + wide + data


def twelve_bits(values: np.ndarray) -> bytes:
    """Pairs of values below 4096 as three bytes each."""
    first, second = values.reshape(-1, 2).T
    packed = [first >> 4, (first & 15) << 4 | second >> 8, second & 255]
    return np.stack(packed, 1).astype(np.uint8).tobytes()


def jp2_with_exif(image: Image.Image, exif: bytes) -> bytes:
    """A JPEG 2000 file with EXIF where exiftool puts it: in a box before the picture's."""
    whole = saved(image, "JPEG2000")
    start = whole.index(b"jp2c") - 4
    body = b"JpgTiffExif->JP2" + exif
    return whole[:start] + struct.pack(">I4s", 8 + len(body), b"uuid") + body + whole[start:]


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def adobe_profile() -> bytes:
    """The primaries of Adobe RGB (1998), gamma 2.2."""
    primaries = {
        b"rXYZ": (0.60974, 0.31111, 0.01947),
        b"gXYZ": (0.20528, 0.62567, 0.06087),
        b"bXYZ": (0.14919, 0.06322, 0.74457),
    }
    tags = {name: _xyz(*values) for name, values in primaries.items()}
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(2.2))
    return _profile(b"mntr", b"RGB ", b"XYZ ", {**tags, **curves})


def linear_grey_profile() -> bytes:
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _curve(1.0)})


def ink_profile() -> bytes:
    """CMYK, by a table of the 16 full inks and what they show in Lab."""
    table = []
    for index in range(16):
        cyan, magenta, yellow, black = (index >> shift & 1 for shift in (3, 2, 1, 0))
        light = 10 if black else 100 - 25 * cyan - 30 * magenta - 5 * yellow
        a = 0 if black else -35 * cyan + 70 * magenta - 5 * yellow
        b = 0 if black else -45 * cyan - 5 * magenta + 90 * yellow
        table += [round(light * 2.55), a + 128, b + 128]
    same = bytes(range(256))
    matrix = b"".join(struct.pack(">i", 65536 * (i in (0, 4, 8))) for i in range(9))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + same * 4 + bytes(table) + same * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut})


def _xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


def _profile(kind: bytes, space: bytes, target: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    described = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(79)
    usual = {b"desc": described, b"cprt": b"text" + bytes(4) + b"none\0\0\0\0"}
    whole = {**usual, b"wtpt": _xyz(0.9642, 1, 0.8249), **tags}
    table, body, start = b"", b"", 128 + 4 + 12 * len(whole)
    for name, content in whole.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    size = start + len(body)
    head = struct.pack(">I4x2B2x", size, 2, 0x20) + kind + space + target + bytes(12) + b"acsp"
    head += bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(whole)) + table + body
