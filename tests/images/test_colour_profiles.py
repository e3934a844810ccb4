"""Embedded profiles: sRGB as it is, others converted, broken ones counted."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms

from expansion.images.colour_profiles import CONVERTED, IGNORED
from expansion.images.pixels import CMYK
from tests.helpers.image_files import (
    adobe_profile,
    greys,
    ink_profile,
    linear_grey_profile,
    pixels,
    read,
    saved,
    srgb_profile,
)


@pytest.mark.parametrize("colour", [(200, 80, 60), (90, 160, 70), (60, 90, 180)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_colours_of_another_profile_come_out_as_a_viewer_shows_them(kind, colour):
    image, profile = Image.new("RGB", (8, 8), colour), adobe_profile()
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    expected = ImageCms.profileToProfile(image, source, target).getpixel((0, 0))
    found = read(saved(image, kind, icc_profile=profile))
    difference = np.subtract(found.image.getpixel((4, 4)), expected)
    assert np.abs(difference).max() <= (0 if kind in ("PNG", "TIFF") else 8)
    assert found.notes == (CONVERTED,) and "icc_profile" not in found.image.info


def test_grey_values_of_a_linear_profile_are_lightened_and_stay_grey():
    expected = greys(saved(Image.new("L", (1, 1), 99), "PNG", icc_profile=linear_grey_profile()))
    assert expected == [167]  # 0.388 in sRGB's curve
    for image in (
        Image.new("LA", (1, 1), (99, 255)),
        Image.fromarray(np.array([[99 * 257]], dtype=np.uint16)),
    ):
        assert greys(saved(image, "PNG", icc_profile=linear_grey_profile())) == expected


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_inks_are_shown_by_their_profile_and_without_one_by_subtraction(kind):
    image = Image.new("CMYK", (8, 8), (255, 0, 255, 0))
    plain = read(saved(image, kind))
    assert plain.image.getpixel((0, 0)) == (0, 255, 0) and plain.notes == (CMYK,)
    found = read(saved(image, kind, icc_profile=ink_profile()))
    assert found.image.getpixel((0, 0)) == (107, 188, 77) and found.notes == (CMYK, CONVERTED)


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA"])
def test_a_profile_of_srgb_changes_no_byte(mode):
    noise = Image.effect_noise((16, 16), 60).convert("RGB").convert(mode)
    with_profile = read(saved(noise, "PNG", icc_profile=srgb_profile()))
    assert with_profile.image.tobytes() == noise.convert("RGB").tobytes()
    assert with_profile.notes == ()


@pytest.mark.parametrize("profile", [b"junk" * 50, adobe_profile()[:200], ink_profile()])
def test_a_profile_that_is_broken_or_of_other_colours_is_ignored_and_counted(profile):
    found = read(saved(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", icc_profile=profile))
    assert found.image.getpixel((0, 0)) == (1, 2, 3) and found.notes == (IGNORED,)


def test_colours_come_out_equal_from_many_threads():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    content = saved(noise, "PNG", icc_profile=adobe_profile())
    with ThreadPoolExecutor(4) as pool:
        assert len({d.image.tobytes() for d in pool.map(read, [content] * 40)}) == 1


def test_lab_is_shown_as_the_colour_that_it_defines():
    assert pixels(saved(Image.new("LAB", (1, 1), (128, 160, 90)), "TIFF")) == [[147, 100, 185]]
