"""Pictures for people: contact sheets, drawn with Pillow, and line charts by matplotlib."""

from __future__ import annotations

import io
import itertools
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from expansion.common.files import write_atomic
from expansion.pictures.lettering import draw_text, fitted, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Iterable[tuple[float, float]]
Series = Mapping[str, Curve]

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")
GRID = "#e5e5e5"
ROWS_A_PAGE = 20  # rows on a contact sheet
LINE = 16  # pixels from one line of a label to the next


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    headings: Sequence[str] = (),
    cell: int = 96,
    label_width: int = 150,
) -> Image.Image:
    """Draw labelled rows of images; small images are enlarged without smoothing.

    Args:
        rows: (label, images) of each row, from the top.
        headings: Text above each column, or nothing.
        cell: Longer side of an image on the sheet, pixels.
        label_width: Room for the labels, pixels.
    """
    columns = max(len(images) for _, images in rows)
    gap, header = 4, 20 if headings else 0
    size = (label_width + columns * (cell + gap) + gap, header + len(rows) * (cell + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for j, heading in enumerate(headings):
        draw_text(draw, (label_width + gap + j * (cell + gap), gap), fitted(heading, cell))
    for i, (label, images) in enumerate(rows):
        top = header + gap + i * (cell + gap)
        for j, line in enumerate(wrapped(label, label_width - 2 * gap, max(1, cell // LINE))):
            draw_text(draw, (gap, top + LINE * j), line)
        for j, image in enumerate(images):
            scale = cell / max(image.size)
            resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
            shape = [max(1, round(side * scale)) for side in image.size]
            left = label_width + gap + j * (cell + gap)
            sheet.paste(image.resize(shape, resample), (left, top))
    return sheet


def save_contact_sheets(
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    path: Path,
    headings: Sequence[str] = (),
    cell: int = 96,
) -> None:
    """Write contact sheets with `ROWS_A_PAGE` rows each: sheet.png, sheet_2.png, sheet_3.png etc.

    Args:
        rows: As for `contact_sheet`, which also describes the other arguments.
        path: File of the first sheet.
        headings: Text above each column, or nothing.
        cell: Longer side of an image on the sheet, pixels.
    """
    for start in range(0, len(rows), ROWS_A_PAGE):
        page = start // ROWS_A_PAGE + 1
        name = path.name if page == 1 else f"{path.stem}_{page}{path.suffix}"
        sheet = contact_sheet(rows[start : start + ROWS_A_PAGE], headings, cell)
        save_figure(sheet, path.with_name(name))


def captioned(image: Image.Image, text: str, side: int = 96) -> Image.Image:
    """Draw an image with a line of text below it.

    Args:
        image: The image, which is resized.
        text: Is cut off if it is too long.
        side: Longer side of the resized image, pixels.
    """
    scale = side / max(image.size)
    resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    shape = [max(1, round(length * scale)) for length in image.size]
    framed = Image.new("RGB", (side, side + 16), "white")
    framed.paste(image.resize(shape, resample), (0, 0))
    draw_text(ImageDraw.Draw(framed), (2, side), fitted(text, side - 4, 12), 12)
    return framed


def line_charts(charts: Mapping[str, Series], x_label: str) -> Image.Image:
    """Draw charts below each other, 640x360 pixels each.

    Args:
        charts: Title -> name of a curve -> its (x, y) points.
        x_label: Label of the horizontal axes.
    """
    # Imported here: it takes a second or two, and most commands draw nothing.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its list of fonts
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((6.4, 3.6 * len(charts)), dpi=100)
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(len(charts), squeeze=False)[:, 0]
    for axes, (title, series) in zip(panels, charts.items(), strict=True):
        for (name, curve), colour in zip(series.items(), itertools.cycle(COLOURS)):
            draw_curve(axes, curve, colour, name)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel(x_label)
        if series:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)
    share = 0.36 / len(charts)
    figure.subplots_adjust(left=0.11, right=0.77, top=1 - share * 0.3, bottom=share * 0.4)
    figure.subplots_adjust(hspace=0.4)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def draw_curve(axes: Axes, curve: Curve, colour: str, name: str, **style: Any) -> None:
    """Draw a line through the finite points, or a dot if there is only one.

    Args:
        axes: Where to draw.
        curve: (x, y) points.
        colour: Any colour of matplotlib.
        name: For the legend.
        **style: Further arguments of matplotlib's `plot`.
    """
    points = [(x, y) for x, y in curve if math.isfinite(x) and math.isfinite(y)]
    style = {"marker": "o" if len(points) == 1 else "", **style}
    xs, ys = ([point[i] for point in points] for i in range(2))
    axes.plot(xs, ys, color=colour, label=name, **style)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(image: Image.Image, path: Path) -> None:
    """Write an image as a PNG file, completely or not at all."""
    encoded = io.BytesIO()
    image.save(encoded, format="PNG")
    write_atomic(path, encoded.getvalue())
