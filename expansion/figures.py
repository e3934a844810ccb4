"""Pictures for people: contact sheets and training curves, drawn with Pillow."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from expansion.lettering import draw_text, fitted, wrapped
from expansion.runs import write_atomic

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")
GREY = "#888888"
ROWS_A_PAGE = 20
LINE = 16  # pixels from one line of a label to the next


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    headings: Sequence[str] = (),
    cell: int = 96,
    label_width: int = 150,
) -> Image.Image:
    """One labelled line of images per row; small images are enlarged without smoothing.

    Args:
        rows: (label, images) per line.
        headings: Text above each column, if any.
        cell: Side of an image on the sheet, pixels.
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
    """All rows, `ROWS_A_PAGE` on a sheet: sheet.png, sheet_2.png, sheet_3.png and so on."""
    for start in range(0, len(rows), ROWS_A_PAGE):
        page = start // ROWS_A_PAGE + 1
        name = path.name if page == 1 else f"{path.stem}_{page}{path.suffix}"
        sheet = contact_sheet(rows[start : start + ROWS_A_PAGE], headings, cell)
        save_figure(sheet, path.with_name(name))


def captioned(image: Image.Image, text: str, side: int = 96) -> Image.Image:
    """The image at about `side` pixels with a line of text under it."""
    scale = side / max(image.size)
    resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    shape = [max(1, round(length * scale)) for length in image.size]
    framed = Image.new("RGB", (side, side + 16), "white")
    framed.paste(image.resize(shape, resample), (0, 0))
    draw_text(ImageDraw.Draw(framed), (2, side), fitted(text, side - 4, 12), 12)
    return framed


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]], title: str, x_label: str
) -> Image.Image:
    """Curves of (x, y) points with axes, ticks and a legend, 640x360 pixels."""
    width, height, left, right, top, bottom = 640, 360, 62, 150, 34, 44
    chart = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(chart)
    font = ImageFont.load_default(12)
    points = [p for curve in series.values() for p in curve if all(map(math.isfinite, p))]
    if not points:
        points = [(0.0, 0.0)]
    x_ticks = _ticks(min(x for x, _ in points), max(x for x, _ in points))
    y_ticks = _ticks(min(y for _, y in points), max(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return left + across * (width - left - right), height - bottom - up * (
            height - top - bottom
        )

    for tick in x_ticks:
        x, y = place(tick, y_ticks[0])
        draw.text((x, y + 6), f"{tick:g}", fill="black", font=font, anchor="mt")
    for tick in y_ticks:
        x, y = place(x_ticks[0], tick)
        draw.line([(x, y), (width - right, y)], fill="#e5e5e5")
        draw.text((x - 6, y), f"{tick:g}", fill="black", font=font, anchor="rm")
    draw.line([place(x_ticks[0], y_ticks[-1]), place(x_ticks[0], y_ticks[0])], fill=GREY)
    draw.line([place(x_ticks[0], y_ticks[0]), place(x_ticks[-1], y_ticks[0])], fill=GREY)
    for i, (name, curve) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        line = [place(x, y) for x, y in curve if math.isfinite(x) and math.isfinite(y)]
        if len(line) > 1:
            draw.line(line, fill=colour, width=2)
        elif line:
            draw.circle(line[0], 3, fill=colour)
        draw.line([(width - right + 10, 44 + 18 * i), (width - right + 26, 44 + 18 * i)], colour, 3)
        label = fitted(name, right - 36, 12)
        draw_text(draw, (width - right + 32, 44 + 18 * i), label, 12, "lm")
    draw_text(draw, (left, 12), fitted(title, width - left, 14), 14)
    draw_text(draw, ((left + width - right) / 2, height - 18), x_label, 12, "ma")
    return chart


def stacked(images: Sequence[Image.Image]) -> Image.Image:
    """Images of equal width, one under the other."""
    sheet = Image.new("RGB", (images[0].width, sum(i.height for i in images)), "white")
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height
    return sheet


def save_figure(image: Image.Image, path: Path) -> None:
    """Write a PNG under a temporary name, then rename it."""
    encoded = io.BytesIO()
    image.save(encoded, format="PNG")
    write_atomic(path, encoded.getvalue())


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that enclose [low, high]."""
    size = max(abs(low), abs(high))
    span = high - low if high - low > 1e-9 * size else size or 1.0
    unit = 10 ** math.floor(math.log10(span / 5))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit * 5 >= span)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{i * step:.12g}") for i in range(first, max(last, first + 1) + 1)]
