"""Hostile images, alone and in a dataset folder that the commands read."""

from __future__ import annotations

import functools
import io
import os
import random
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

import expand
from expansion.classifier.recipe import Recipe
from expansion.classifier.transforms import eval_transform
from expansion.data import __main__ as check_command
from expansion.diffusion.variants import square_image
from expansion.images.records import ImageRecord
from tests.conftest import TINY_MODEL
from tests.rigs.fuzz_inputs import damaged, file_name
from tests.rigs.fuzz_rig import Attempt, Sandbox

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F", "YCbCr", "LAB", "HSV", "PA")
SIZES = ((1, 1), (32, 24), (17, 5), (1, 400), (3000, 1), (1, 10_000))
SUFFIXES = (".png", ".jpg", ".gif", ".bmp", ".tif", ".webp", ".ppm", ".PNG")
BOMBS = ((65_535, 65_535), (2**31 - 1, 2**31 - 1), (13_000, 13_000), (1, 2**31 - 1), (0, 0))


def image_file(draw: random.Random, sandbox: Sandbox) -> Attempt:
    """One hostile file, read and made square, or put through training's transform."""
    path = sandbox.place / f"image{draw.choice(SUFFIXES)}"
    path.write_bytes(hostile_image(draw))
    record = ImageRecord(path, path.name, 0, "cat", crop_bottom=draw.choice((0, 0, 5, 10**6)))
    mode = draw.choice(("center_crop", "random_crop", "squash"))
    if draw.random() < 0.3:
        return lambda: _transform()(record.load())
    return lambda: square_image(record.load(), 64, mode, 0)


def image_folder(draw: random.Random, sandbox: Sandbox) -> Attempt:
    """A dataset with hostile files and things that are no files, through check or expand.py."""
    root = sandbox.place / "photos"
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for i in range(2):
                (root / split / name / f"{i}.png").write_bytes(_encoded("PNG", "RGB", (8, 8)))
    for _ in range(draw.randrange(1, 4)):
        folder = root / draw.choice(("train", "test")) / draw.choice(("ant", "bee"))
        path = folder / f"{file_name(draw)[:60]}.png"
        if not os.path.lexists(path):
            draw.choice(PLANTED)(draw, path, sandbox)
    if draw.random() < 0.5:
        return lambda: check_command.main(["check", str(root)])
    options = ["--method", "img2img", "--on_error", draw.choice(("fail", "skip")), "--dry_run"]
    model = ["--pretrained_model_name_or_path", str(TINY_MODEL), "--output_dir", str(sandbox.out)]
    return lambda: expand.main(["-d", str(root), *options, *model])


def hostile_image(draw: random.Random) -> bytes:
    """A file that began as an image of some format, mode and size, or never was one."""
    kind = draw.random()
    if kind < 0.04:
        return draw.randbytes(draw.choice((0, 1, 8, 100, 5000)))
    if kind < 0.14:
        return draw.choice(SPECIAL)(draw)
    content = b""
    while not content:
        content = _encoded(draw.choice(FORMATS), draw.choice(MODES), draw.choice(SIZES))
    return content if kind < 0.24 else damaged(draw, content)


@functools.cache
def _transform() -> Callable:
    return eval_transform(Recipe(image_size=32, resize_size=40))


@functools.cache
def _encoded(kind: str, mode: str, size: tuple[int, int]) -> bytes:
    """A good file; empty where the format cannot hold the mode."""
    shape = (size[1], size[0], 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    try:
        Image.fromarray(pixels).convert("L" if mode[0] == "I" else "RGB").convert(mode).save(
            buffer, kind, exif=_exif() if kind in ("JPEG", "PNG", "WEBP", "TIFF") else b""
        )
    except (OSError, ValueError, KeyError):
        return b""
    return buffer.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    return exif


def _png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, body in chunks:
        check = struct.pack(">I", zlib.crc32(name + body))
        parts.append(struct.pack(">I", len(body)) + name + body + check)
    return b"".join(parts)


def _png(width: int, height: int, *more: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return _png_chunks((b"IHDR", header), *more, (b"IDAT", pixels), (b"IEND", b""))


def _bomb(draw: random.Random) -> bytes:
    width, height = draw.choice(BOMBS)
    if draw.random() < 0.5:
        return _png(width % 2**31, height % 2**31)
    return f"P6 {width} {height} 255\n".encode() + bytes(100)


def _text_bomb(draw: random.Random) -> bytes:
    size = draw.choice((1 << 16, 1 << 21, 1 << 27))
    body = b"Comment\x00\x00" + zlib.compress(bytes(size))
    return _png(8, 8, *[(b"zTXt", body)] * draw.choice((1, 100)))


def _animation(draw: random.Random) -> bytes:
    frames = [Image.new("P", (8, 8), i) for i in range(5)]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, draw.choice(("GIF", "WEBP", "PNG", "TIFF")), save_all=True, append_images=frames
    )
    return buffer.getvalue()


def _postscript(draw: random.Random) -> bytes:
    """Formats that nobody trains on, of which some call other programs."""
    del draw
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def _odd_exif(draw: random.Random) -> bytes:
    buffer = io.BytesIO()
    exif = b"Exif\x00\x00" + draw.choice((b"MM\x00*", b"II*\x00", b"")) + draw.randbytes(60)
    Image.new("RGB", (8, 8)).save(buffer, draw.choice(("JPEG", "PNG", "WEBP")), exif=exif)
    return buffer.getvalue()


def _odd_orientation(draw: random.Random) -> bytes:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[0x0112] = draw.choice((2, 5, 7, 12))
    tags[0x0112] = {2: "up", 5: (1, 0), 7: b"\x00\x01", 12: 6.5}[tags.tagtype[0x0112]]
    exif = b"Exif\x00\x00" + b"II*\x00\x08\x00\x00\x00" + tags.tobytes(8)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def _text_chunks(draw: random.Random) -> bytes:
    info = PngImagePlugin.PngInfo()
    for i in range(draw.choice((1, 300))):
        info.add_text(f"k{i}", "x" * draw.choice((10, 100_000)), zip=True)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


SPECIAL = (_bomb, _text_bomb, _animation, _postscript, _odd_exif, _odd_orientation, _text_chunks)


def _plant_image(draw: random.Random, path: Path, sandbox: Sandbox) -> None:
    del sandbox
    path.write_bytes(hostile_image(draw))


def _plant_fifo(draw: random.Random, path: Path, sandbox: Sandbox) -> None:
    del draw, sandbox
    os.mkfifo(path)


def _plant_socket(draw: random.Random, path: Path, sandbox: Sandbox) -> None:
    del draw
    with socket.socket(socket.AF_UNIX) as server:
        home = os.getcwd()
        os.chdir(path.parent)  # a socket's path may have only 108 bytes
        try:
            server.bind(os.fsencode(path.name)[-100:])
        finally:
            os.chdir(home)


def _plant_folder(draw: random.Random, path: Path, sandbox: Sandbox) -> None:
    del draw, sandbox
    path.mkdir()


def _plant_link(draw: random.Random, path: Path, sandbox: Sandbox) -> None:
    """To a file or folder outside, a device, itself, nothing, or the folder above."""
    targets = (
        *(sandbox.outside / "images/cat.png", sandbox.outside, "/dev/zero", "/dev/stdin"),
        *(path.name, "nowhere", "..", path.parent.parent, "/proc/self/mem", "0.png"),
    )
    path.symlink_to(draw.choice(targets))


PLANTED = (_plant_image, _plant_image, _plant_fifo, _plant_socket, _plant_folder, _plant_link)
