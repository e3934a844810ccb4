"""The one rule of reading: turning, depth, transparency, colours, frames; in every format."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from expansion.common.errors import InputError
from expansion.images.pixels import (
    EXIF_TURNS,
    FRAMES,
    SIXTEEN,
    TURNED,
    Reading,
    check_reading,
)
from expansion.images.records import ImageRecord
from tests.helpers.image_files import (
    FLOAT_SAMPLES,
    SIGNED_SAMPLES,
    UNSIGNED_SAMPLES,
    greys,
    jp2_with_exif,
    pixels,
    png,
    read,
    saved,
    tiff,
    twelve_bits,
)

UPRIGHT = Image.new("RGB", (20, 40), "blue")
UPRIGHT.paste("red", (0, 0, 20, 10))
UPRIGHT.paste("lime", (0, 10, 5, 40))
ORIENTED = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "TIFF deflate", "MPO", "JPEG2000", "PNG late")
RAMP = np.arange(16) / 15


def grey_image(values: np.ndarray, dtype: str) -> Image.Image:
    return Image.fromarray(values.astype(dtype)[None])


def stored(kind: str, orientation: int) -> bytes:
    """The picture above, stored so that the orientation makes it upright."""
    undone = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    lying = UPRIGHT.transpose(undone.get(orientation, EXIF_TURNS[orientation]))
    exif = Image.Exif()
    exif[274] = orientation
    if kind.startswith("TIFF"):
        options = {"compression": "tiff_adobe_deflate"} if "deflate" in kind else {}
        return saved(lying, "TIFF", tiffinfo={274: orientation}, **options)
    if kind == "JPEG2000":
        return jp2_with_exif(lying, exif.tobytes()[6:])
    if kind == "PNG late":
        return eXIf_after_pixels(saved(lying, "PNG"), exif.tobytes()[6:])
    return saved(lying, kind, exif=exif)


def eXIf_after_pixels(whole: bytes, exif: bytes) -> bytes:
    chunk = png(1, 8, 0, b"\0", (b"eXIf", exif))
    start = chunk.index(b"eXIf") - 4
    return whole[:-12] + chunk[start : start + 12 + len(exif)] + whole[-12:]


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", ORIENTED)
def test_a_picture_is_turned_upright_once_in_every_format(kind, orientation):
    found = read(stored(kind, orientation))
    assert found.image.size == (20, 40) and TURNED in found.notes
    difference = np.asarray(found.image).astype(int) - np.asarray(UPRIGHT)
    assert np.abs(difference).mean() < 12


def test_orientation_one_turns_nothing_and_is_not_counted():
    exif = Image.Exif()
    exif[274] = 1
    found = read(saved(UPRIGHT, "PNG", exif=exif))
    assert found.notes == () and found.image.tobytes() == UPRIGHT.tobytes()


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage garbage",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01",
        b"Exif\0\0",
        b"\0" * 40,
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_malformed_exif_does_not_fail_the_image(kind, exif):
    found = read(saved(UPRIGHT, kind, exif=exif))
    assert found.image.size == (20, 40) and found.notes == ()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jp2", ".pgm"])
def test_sixteen_bits_are_the_upper_eight_whatever_else_the_image_holds(suffix):
    values = np.array([0, 40 * 256, 40 * 256 + 255, 4095, 300])
    content = b"P5 5 1 65535\n" + values.astype(">u2").tobytes()
    if suffix != ".pgm":
        content = saved(grey_image(values, "uint16"), Image.registered_extensions()[suffix])
    assert greys(content) == [0, 40, 40, 15, 1]
    assert read(content).notes == (SIXTEEN,) and read(content).top == 40


@pytest.mark.parametrize("kind", ["PNG", "TIFF <", "TIFF >"])
def test_colours_of_sixteen_bits_are_their_upper_eight_too(kind):
    values = np.array([[0, 40 * 256 + 255, 65535], [300, 4095, 256]])
    if kind == "PNG":
        content = png(2, 16, 2, values.astype(">u2").tobytes())
    else:
        order = kind[-1]
        content = tiff(values.astype(order + "u2").tobytes(), (2, 1), (16,) * 3, order, 2)
    assert pixels(content) == [[0, 40, 255], [1, 15, 1]]
    assert read(content).notes == (SIXTEEN,) and read(content).top == 255


@pytest.mark.parametrize("packed", [False, True])
def test_twelve_bits_of_tiff_are_twelve_bits(packed):
    values = np.rint(RAMP * 4095).astype(int)
    found = greys(tiff(twelve_bits(values), (16, 1), (12,), packed=packed))
    assert found == list(range(0, 256, 17))


@pytest.mark.parametrize("maxval", [1023, 4095, 255, 100])
@pytest.mark.parametrize("plain", [False, True])
def test_the_largest_value_that_a_pgm_file_declares_is_white(maxval, plain):
    values = np.rint(RAMP * maxval).astype(int)
    if plain:
        content = f"P2 16 1 {maxval}\n{' '.join(map(str, values))}\n".encode()
    else:
        content = f"P5 16 1 {maxval}\n".encode()
        content += values.astype(">u2" if maxval > 255 else "u1").tobytes()
    assert np.abs(np.array(greys(content)) - np.arange(0, 256, 17)).max() <= (
        2 if maxval == 100 else 1
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("dtype", "bits", "samples"),
    [
        *((f"{order}f4", 32, FLOAT_SAMPLES) for order in "<>"),
        *((f"{order}i4", 32, SIGNED_SAMPLES) for order in "<>"),
        *((f"{order}i2", 16, SIGNED_SAMPLES) for order in "<>"),
        ("<u4", 32, UNSIGNED_SAMPLES),  # the other order is none that Pillow opens
    ],
)
def test_numbers_of_tiff_are_read_in_any_order_of_bytes(dtype, bits, samples, packed):
    values = np.rint(RAMP * 255).astype(dtype).tobytes()
    content = tiff(values, (16, 1), (bits,), dtype[0], samples=samples, packed=packed)
    assert greys(content) == list(range(0, 256, 17))


@pytest.mark.parametrize(
    ("values", "dtype", "words"),
    [
        (RAMP, "float32", "0..1 taken"),
        (RAMP * 255, "float32", "0..255 taken"),
        (RAMP * 65535, "float32", "0..65535 taken"),
        (RAMP * 255, "int32", "0..255 taken"),
        (RAMP * 65535, "int32", "0..65535 taken"),
        (RAMP * 4000 - 1000, "int32", "stretched from lowest to highest value"),
        (RAMP * 2 - 1, "float32", "stretched from lowest to highest value"),
        (RAMP * 1e30, "float32", "stretched from lowest to highest value"),
    ],
)
def test_numbers_without_a_declared_range_are_neither_black_nor_white(values, dtype, words):
    content = saved(grey_image(np.rint(values) if dtype == "int32" else values, dtype), "TIFF")
    assert np.abs(np.array(greys(content)) - np.arange(0, 256, 17)).max() <= 1
    assert read(content).notes == (f"without a declared range, {words}",)


def test_the_largest_unsigned_integers_are_white():
    content = tiff(np.array([0, 2**32 - 1], "<u4").tobytes(), (2, 1), (32,))
    assert greys(content) == [0, 255]


def test_a_float_that_is_no_number_is_refused(tmp_path):
    grey_image(np.array([0, np.nan]), "float32").save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="a.tif.*values are no numbers"):
        ImageRecord(tmp_path / "a.tif", "a.tif", 0, "x").load()


def test_a_float_map_of_portable_anymap_is_upright_and_bright():
    rows = np.array([[0, 0.5], [0.75, 1]], "<f4")  # the lowest row comes first
    found = np.asarray(read(b"Pf\n2 2\n-1.0\n" + rows.tobytes()).image)[..., 0]
    assert found.tolist() == [[191, 255], [0, 128]]


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_white_is_zero_where_a_tiff_file_says_so(bits):
    top, samples = {8: (255, 1), 16: (65535, 1), 32: (1.0, FLOAT_SAMPLES)}[bits]
    values = np.array([0, top]).astype({8: "u1", 16: "<u2", 32: "<f4"}[bits])
    content = tiff(values.tobytes(), (2, 1), (bits,), photometric=0, samples=samples)
    assert greys(content) == [255, 0]


def test_a_range_of_the_dataset_decides_where_the_file_declares_none():
    reading = Reading(value_range=(0, 4095))
    twelve = saved(grey_image(np.array([0, 2048, 4095, 60000]), "uint16"), "PNG")
    assert greys(twelve, reading) == [0, 128, 255, 255] and read(twelve, reading).top is None
    scan = saved(grey_image(np.array([-1000, 1000, 3000]), "int32"), "TIFF")
    assert greys(scan, Reading(value_range=(-1000, 3000))) == [0, 128, 255]
    assert greys(b"P5 2 1 1023\n" + struct.pack(">HH", 0, 1023), reading) == [0, 255]
    with pytest.raises(InputError, match="value_range cannot"):
        read(png(1, 16, 2, bytes(6)), reading)


def hidden(mode: str) -> tuple[Image.Image, list]:
    """A clear pixel whose hidden colour is not white, and an opaque one."""
    if mode == "LA":
        image = Image.new("LA", (2, 1), (10, 0))
        image.putpixel((1, 0), (60, 255))
        return image, [[255] * 3, [60] * 3]
    image = Image.new("RGBA", (2, 1), (10, 90, 20, 0))
    image.putpixel((1, 0), (200, 40, 60, 255))
    return image.convert(mode), [[255] * 3, [200, 40, 60]]


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *(("RGBA", kind) for kind in ("PNG", "WEBP", "TIFF", "GIF", "JPEG2000")),
        *(("LA", kind) for kind in ("PNG", "TIFF", "JPEG2000")),
        ("PA", "TIFF"),
    ],
)
def test_hidden_colours_are_never_seen(mode, kind):
    image, expected = hidden(mode)
    content = saved(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert pixels(content) == expected
    assert "transparent, on white" in read(content).notes
    black = pixels(content, Reading(background="#000000"))
    assert black == [[0, 0, 0], expected[1]]


def test_half_transparent_pixels_are_mixed_with_the_background():
    image = Image.new("RGBA", (1, 1), (200, 100, 0, 51))
    assert pixels(saved(image, "PNG")) == [[244, 224, 204]]


@pytest.mark.parametrize(
    ("bits", "colour", "row", "clear", "expected"),
    [
        (1, 0, bytes([0b01000000]), (1,), [0, 255]),
        (1, 0, bytes([0b10000000]), (0,), [255, 255]),
        (2, 0, bytes([0b01100000]), (1,), [255, 170]),
        (4, 0, bytes([0x5A]), (5,), [255, 170]),
        (8, 0, bytes([9, 60]), (9,), [255, 60]),
        (16, 0, struct.pack(">HH", 1000, 60000), (1000,), [255, 234]),
        (8, 2, bytes([9, 9, 9, 60, 60, 60]), (9, 9, 9), [255, 60]),
        (16, 2, struct.pack(">6H", *[1000] * 3, *[60000] * 3), (1000,) * 3, [255, 234]),
        (8, 3, bytes([0, 1]), None, [255, 60]),
    ],
)
def test_the_clear_colour_of_a_png_file_is_clear_at_any_depth(bits, colour, row, clear, expected):
    chunks = [(b"PLTE", bytes([9] * 3 + [60] * 3)), (b"tRNS", b"\0\xff")]
    if clear is not None:
        chunks = [(b"tRNS", struct.pack(f">{len(clear)}H", *clear))]
    assert greys(png(2, bits, colour, row, *chunks)) == expected


def test_an_opaque_alpha_changes_and_counts_nothing():
    noise = Image.effect_noise((16, 16), 60).convert("RGB")
    found = read(saved(noise.convert("RGBA"), "PNG"))
    assert found.image.tobytes() == noise.tobytes() and found.notes == ()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
def test_of_several_frames_the_first_is_used_and_that_is_counted(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    found = read(saved(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert np.abs(np.subtract(found.image.getpixel((4, 4)), (255, 0, 0))).max() < 4
    assert FRAMES in found.notes


def test_a_damaged_second_frame_leaves_the_first_as_it_is():
    frames = [Image.effect_noise((16, 16), 60 + i).convert("P") for i in range(3)]
    whole = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    expected = read(whole).image.tobytes()
    start = whole.index(b"\x21\xf9\x04", len(whole) // 3)  # where the second begins
    assert all(read(whole[:end]).image.tobytes() == expected for end in range(start, len(whole), 7))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_ordinary_images_are_what_pillow_makes_of_them(mode):
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    image = noise.convert("L").convert(mode) if mode in ("1", "LA") else noise.convert(mode)
    assert read(saved(image, "PNG")).image.tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("name", ["photo.heic", "renamed.jpg"])
def test_heic_is_refused_with_the_remedy_whatever_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(struct.pack(">I", 24) + b"ftypheic" + bytes(400))
    with pytest.raises(InputError, match=f"{name}.*HEIC.*convert it to JPEG"):
        ImageRecord(tmp_path / name, name, 0, "x").load()


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (Reading(background="whitish"), "background: 'whitish' is no colour"),
        (Reading(background="#ffffff80"), "no colour"),
        (Reading(value_range=(255, 0)), "value_range: expected"),
        (Reading(value_range=(1,)), "value_range: expected"),
    ],
)
def test_a_background_or_range_that_is_none_is_named(reading, words):
    with pytest.raises(InputError, match=f"dataset x: .*{words}"):
        check_reading(reading, "dataset x")


def test_orientations_are_those_of_pillow():
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[274] = orientation
        with Image.open(io.BytesIO(saved(UPRIGHT, "PNG", exif=exif))) as image:
            assert (
                ImageOps.exif_transpose(image).tobytes()
                == read(saved(UPRIGHT, "PNG", exif=exif)).image.tobytes()
            )


def test_a_cut_off_file_is_refused_by_name(tmp_path: Path):
    content = saved(Image.effect_noise((64, 64), 60), "TIFF")
    (tmp_path / "cut.tif").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cut.tif"):
        ImageRecord(tmp_path / "cut.tif", "cut.tif", 0, "x").load()
