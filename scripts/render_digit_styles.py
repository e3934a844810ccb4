"""Draw the digit scans of the split `prior` in many styles, as a folder of class folders.

    python scripts/render_digit_styles.py data/digit-styles

Each 8x8 scan becomes an outline, which is drawn at 32x32 pixels with another stroke width,
softness, slant, size, aspect, turn, place, ink and paper each time: light ink on dark paper. These
images trained assets/tiny-sd-digit-styles. The same command makes the same pixels.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from expansion.common.config import load_yaml

SCANS = Path(__file__).resolve().parents[1] / "assets" / "digits" / "digits.npz"
PRIOR = 0  # the split's number in `splits`
SIDE = 32  # pixels of a drawing
FINE = 3  # points to a pixel, in each direction, before the average
Field = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Style:
    """How a scan is drawn; lengths in pixels, ink and paper in [0, 1].

    Attributes:
        cell: Height of one of the scan's 8x8 cells.
        aspect: Width of a cell in relation to its height.
        slant: Shift to the right for each pixel upwards.
        turn: Rotation, radians.
        shift: Of the digit's middle, downwards and to the right.
        level: Ink of the scan, in [0, 1], where the outline runs.
        widening: What is added to the stroke on each side.
        blur: Standard deviation of the Gaussian.
        ink, paper: Grey values.
        grain: Standard deviation of the noise of the paper and ink.
    """

    cell: float
    aspect: float
    slant: float
    turn: float
    shift: tuple[float, float]
    level: float
    widening: float
    blur: float
    ink: float
    paper: float
    grain: float


def draw_style(random: np.random.Generator) -> Style:
    """A style; half of the papers are black, as scans after thresholding are."""
    plain = random.random() < 0.5
    return Style(
        cell=random.uniform(2.0, 3.2),
        aspect=random.uniform(0.75, 1.25),
        slant=random.normal(0, 0.2),
        turn=random.normal(0, 0.1),
        shift=(random.normal(0, 1.0), random.normal(0, 1.0)),
        level=random.uniform(0.35, 0.5),
        widening=random.uniform(-0.5, 0.7),
        blur=random.uniform(0, 0.9),
        ink=random.uniform(0.75, 1.0),
        paper=0.0 if plain else random.uniform(0, 0.3),
        grain=0.0 if plain else random.uniform(0, 0.03),
    )


def render(scan: Field, style: Style, random: np.random.Generator) -> Field:
    """Draw a scan.

    Args:
        scan: Ink of shape (8, 8) in [0, 1].
        style: How to draw it.
        random: Draws the grain.

    Returns:
        The drawing, shape (32, 32), in [0, 1].
    """
    # The scan's coordinates of every point of the drawing.
    axis = (np.arange(SIDE * FINE) + 0.5) / FINE - SIDE / 2
    down, right = np.meshgrid(axis - style.shift[0], axis - style.shift[1], indexing="ij")
    right = right + style.slant * down
    cos, sin = np.cos(style.turn), np.sin(style.turn)
    rows = (cos * down - sin * right) / style.cell + 3.5
    columns = (sin * down + cos * right) / (style.cell * style.aspect) + 3.5
    ink = ndimage.map_coordinates(scan, [rows, columns], order=3, mode="constant")
    # The outline, moved outwards or inwards, with soft edges of one pixel.
    inside = ink > style.level
    distance = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    stroke = np.clip(distance / FINE + style.widening + 0.5, 0, 1)
    stroke = stroke.reshape(SIDE, FINE, SIDE, FINE).mean(axis=(1, 3))
    # Ink on paper.
    stroke = ndimage.gaussian_filter(stroke, style.blur)
    image = style.paper + (style.ink - style.paper) * stroke
    return np.clip(image + style.grain * random.normal(size=image.shape), 0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder to make")
    parser.add_argument("--per_scan", type=int, default=10, help="drawings of each of 1,000 scans")
    arguments = parser.parse_args()
    names = load_yaml(SCANS.parents[2] / "configs" / "datasets" / "digits.yaml").values
    with np.load(SCANS) as arrays:
        prior = np.flatnonzero(arrays["splits"] == PRIOR)
        scans, labels = arrays["images"][prior] / 16.0, arrays["labels"][prior]
    random = np.random.default_rng(0)
    for number, (scan, label) in enumerate(zip(scans, labels, strict=True)):
        folder = arguments.folder / "train" / names["class_names"][str(label)]
        folder.mkdir(parents=True, exist_ok=True)
        for variant in range(arguments.per_scan):
            drawing = render(scan, draw_style(random), random)
            pixels = (drawing * 255).round().astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:03d}_{variant:02d}.png")


if __name__ == "__main__":
    main()
