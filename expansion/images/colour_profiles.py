"""Turns the colours of an embedded profile into sRGB, which models and screens expect."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageCms

# Notes that `python -m expansion.data check` counts.
CONVERTED, IGNORED = "colour profile converted", "broken colour profile ignored"
# The tables and curves that programs call sRGB differ by rounding.
SAME_LEVELS = 3  # of 256
# Colour space of a profile -> Pillow's mode of the images that it is for.
SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
# Failures of littleCMS about a profile, or about one that does not fit its image.
PROFILE_ERRORS = (ImageCms.PyCMSError, OSError, ValueError, TypeError)


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str | None]:
    """Convert an image to RGB in sRGB.

    A profile that moves no colour by more than `SAME_LEVELS` is not applied.

    Args:
        image: 8 bits a channel, without alpha.
        profile: Bytes of the ICC profile in the file, if it has one.

    Returns:
        The image, and what became of its profile: CONVERTED, IGNORED, or None if it was not needed.
    """
    if not profile or image.mode == "LAB":
        return image.convert("RGB"), None
    try:
        transform = _transform(profile)
        if transform is None:
            return image.convert("RGB"), None
        if transform.input_mode != image.mode:
            image = _fitting(image, transform.input_mode)
        converted = transform.apply(image)
    except PROFILE_ERRORS:
        return image.convert("RGB"), IGNORED
    converted.info.clear()
    return converted, CONVERTED


def _fitting(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to the mode that its profile is for; raises ValueError for another's."""
    if mode == "RGB" and image.mode != "CMYK":
        return image.convert("RGB")
    if mode == "L" and image.mode == "1":
        return image.convert("L")
    raise ValueError(f"a profile for {mode} in an image of mode {image.mode}")


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile to sRGB; None if it changes nothing visibly.

    A profile that cannot be used raises one of PROFILE_ERRORS.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    if space not in SPACES:
        raise ValueError(f"a profile for {space}")
    transform = ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        SPACES[space],
        "RGB",
        flags=ImageCms.Flags.NOCACHE,  # several threads use it at once
    )
    return None if space != "CMYK" and _keeps_all(transform) else transform


def _keeps_all(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether the transform moves no colour of a grid visibly."""
    if transform.input_mode == "L":
        grid = np.arange(256, dtype=np.uint8)[None]
        before = grid[..., None]
    else:
        steps = np.linspace(0, 255, 18).astype(np.uint8)
        grid = before = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    after = np.asarray(transform.apply(Image.fromarray(grid)))
    return bool(np.abs(after.astype(int) - before).max() <= SAME_LEVELS)
