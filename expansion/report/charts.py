"""Charts of the page: SVG inside the HTML, drawn by matplotlib without its global state.

Texts remain text, so that the browser's fonts show any script. Colours become CSS variables of the
page, so that they follow its light or dark mode. A chart is as wide as a phone's screen; on wider
screens several stand side by side.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from expansion.pictures.figures import Curve, draw_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 4.4  # inches, of 72 points; a point is shown as about 1.3 pixels
ROW = 0.43  # height of the row of an arm, inches
SLIM_ROW = 0.2  # height of the row of a class, inches
HIGHEST_CELL = 0.4  # largest height of a cell in a chart of confusion, inches
LONGEST_NAME = 32  # characters of a name that has a line of its own
LONGEST_LABEL = 22  # characters of a name beside a chart
MOST_NAMED = 12  # classes; for more, the chart of confusion has shades instead of numbers
# Colours that stand for CSS variables; no other colours are used.
INK, FAINT, LINE, GOOD, BAD, OPEN = (f"#0102{i:02d}" for i in range(3, 9))
SERIES = tuple(f"#0103{i:02d}" for i in range(10, 18))
VARIABLES = {
    INK: "ink", FAINT: "faint", LINE: "line", GOOD: "good", BAD: "bad", OPEN: "open",
    **{colour: f"series-{i}" for i, colour in enumerate(SERIES)},
}  # fmt: skip
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
VERDICT_COLOURS = {"better": GOOD, "worse": BAD}
MARKERS = {"better": "o", "worse": "v"}
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called "$5$"
    "font.family": "sans-serif", "font.size": 9,
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.edgecolor": LINE, "axes.linewidth": 0.8,
    "axes.facecolor": "none", "figure.facecolor": "none",
}  # fmt: skip


@dataclass(frozen=True)
class Mark:
    """A row of `interval_chart` or `class_chart`.

    Attributes:
        name: Label of the row.
        value: Where the mark stands; None draws none.
        interval: Its interval (low, high), if there is one.
        verdict: "better", "worse" or another word; decides colour and shape of the mark.
        text: Text at the right end of the row.
        dots: Further values, such as those of the seeds, as small circles.
    """

    name: str
    value: float | None
    interval: tuple[float, float] | None
    verdict: str = ""
    text: str = ""
    dots: Sequence[float] = ()


def interval_chart(marks: Sequence[Mark], x_label: str, title: str) -> Markup:
    """Draw gains with their intervals, each below its name, and a dashed line at 0.

    Args:
        marks: The rows, from the top.
        x_label: Label of the axis.
        title: Name of the chart for screen readers, unlike those of other charts of the page.
    """
    height = ROW * len(marks) + 0.5
    with _chart(height, title) as figure:
        axes = figure.add_axes(_box(height, left=0.1, right=0.1, bottom=0.42, top=0.08))
        for i, mark in enumerate(marks):
            y, colour = len(marks) - 1 - i, VERDICT_COLOURS.get(mark.verdict, OPEN)
            axes.plot(mark.dots, [y] * len(mark.dots), "o", ms=3, mec=FAINT, mfc="none", mew=0.8)
            _draw_mark(axes, mark, y, colour)
            place = axes.get_yaxis_transform()
            axes.text(0, y + 0.3, cut(mark.name, LONGEST_NAME), transform=place, va="bottom")
            axes.text(1, y + 0.3, mark.text, transform=place, va="bottom", ha="right", color=colour)
        axes.axvline(0, color=FAINT, linewidth=1, linestyle=(0, (3, 2)), zorder=0)
        axes.set_ylim(-0.5, len(marks) - 0.05)
        _finish(axes, x_label)
        axes.set_yticks([])
    return figure.markup


def class_chart(marks: Sequence[Mark], x_label: str, title: str) -> Markup:
    """Draw gains of classes in slim rows, with names on the left; arguments as above."""
    height = SLIM_ROW * len(marks) + 0.55
    with _chart(height, title) as figure:
        left = _room([mark.name for mark in marks])
        axes = figure.add_axes(_box(height, left=left, right=0.1, bottom=0.42, top=0.08))
        for i, mark in enumerate(marks):
            _draw_mark(axes, mark, len(marks) - 1 - i, VERDICT_COLOURS.get(mark.verdict, OPEN))
        axes.axvline(0, color=FAINT, linewidth=1, linestyle=(0, (3, 2)), zorder=0)
        axes.set_ylim(-0.7, len(marks) - 0.3)
        _finish(axes, x_label)
        names = [cut(mark.name, LONGEST_LABEL) for mark in reversed(marks)]
        axes.set_yticks(range(len(marks)), names)
        axes.tick_params(axis="y", length=0)
    return figure.markup


def curve_chart(curves: Sequence[Sequence[Curve]], y_label: str, title: str) -> Markup:
    """Draw curves over the optimiser step: for each arm its runs faintly, and their mean.

    Args:
        curves: For each arm, in the order of `series_style`, one curve for each run.
        y_label: Label of the vertical axis.
        title: Name of the chart for screen readers.
    """
    with _chart(2.7, title) as figure:
        axes = figure.add_axes(_box(2.7, left=0.5, right=0.1, bottom=0.45, top=0.1))
        for i, runs in enumerate(curves):
            colour, dash = series_style(i)
            for run in runs if len(runs) > 1 else ():
                draw_curve(axes, run, colour, "", linewidth=0.6, alpha=0.35)
            draw_curve(axes, mean_curve(runs), colour, "", linewidth=1.8, linestyle=dash)
        _finish(axes, "optimiser step")
        axes.set_ylabel(y_label)
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.grid(axis="x", visible=False)
    return figure.markup


def series_style(number: int) -> tuple[str, Any]:
    """Colour and dashes of a series, by its number from 0."""
    return SERIES[number % len(SERIES)], DASHES[number // len(SERIES) % len(DASHES)]


def mean_curve(runs: Sequence[Curve]) -> Curve:
    """The mean of curves, at the steps that all of them have."""
    known = [dict(run) for run in runs]
    steps = sorted(set.intersection(*map(set, known))) if known else []
    return [(step, sum(curve[step] for curve in known) / len(known)) for step in steps]


def confusion_chart(counts: np.ndarray, names: Sequence[str], title: str) -> Markup:
    """Draw which share of each right class (row) was taken for each class (column), as shades.

    Args:
        counts: Numbers of images, (C, C); means over runs are allowed.
        names: Names of the C classes; they are shown if there are few.
        title: Name of the chart for screen readers.
    """
    few = len(names) <= MOST_NAMED
    rows, columns = _labels(names)
    left = _room(rows) if few else 0.45
    side = WIDTH - left - 0.1
    height = min(side, HIGHEST_CELL * len(names)) + 0.5
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-9)
    with _chart(height, title) as figure:
        axes = figure.add_axes(_box(height, left=left, right=0.1, bottom=0.45, top=0.05))
        for i, j in zip(*np.nonzero(shares > 0.005), strict=True) if few else ():
            colour = GOOD if i == j else BAD
            patch = dict(width=1, height=1, color=colour, alpha=0.12 + 0.7 * shares[i, j], lw=0)
            axes.add_patch(_rectangle((j - 0.5, i - 0.5), **patch))
            axes.text(
                j, i, f"{counts[i, j]:.1f}".removesuffix(".0"), ha="center", va="center", fontsize=8
            )
        if not few:
            axes.imshow(_shades(shares), interpolation="nearest", aspect="auto")
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        if few:
            axes.set_yticks(range(len(names)), rows)
            axes.set_xticks(range(len(names)), columns)
        axes.tick_params(length=0)
        axes.set_xlabel("taken for")
        axes.set_ylabel("" if few else "right class")
    return figure.markup


def cut(name: str, length: int) -> str:
    """Shorten a name to at most `length` characters."""
    return name if len(name) <= length else name[: length - 1] + "\u2026"


def _labels(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Labels of rows and columns: the names if they are short, else letters that stand for them."""
    if max(map(len, names)) <= 3:
        return list(names), list(names)
    letters = [chr(ord("A") + i % 26) for i in range(len(names))]
    rows = [f"{cut(names[i], LONGEST_LABEL)}  {letter}" for i, letter in enumerate(letters)]
    return rows, letters


def _room(labels: Sequence[str]) -> float:
    """Inches that labels at the left of a chart need; wide letters (as in Chinese) count double."""
    wide = (sum(2 if ord(letter) > 0x1100 else 1 for letter in label) for label in labels)
    return 0.15 + 0.075 * min(max(wide, default=0), LONGEST_LABEL + 4)


def _rectangle(place: tuple[float, float], **style: Any):
    from matplotlib.patches import Rectangle

    return Rectangle(place, **style)


def _shades(shares: np.ndarray) -> np.ndarray:
    """Pixels (C, C, 4), blue on the diagonal and red beside it, the more opaque the larger."""
    right = np.eye(len(shares), dtype=bool)
    pixels = np.where(right[..., None], (45, 125, 210, 0), (214, 69, 65, 0)).astype(np.float64)
    pixels[..., 3] = 255 * np.sqrt(shares)  # so that a single mistake among many is visible
    return pixels.round().astype(np.uint8)


def _draw_mark(axes: Axes, mark: Mark, y: float, colour: str) -> None:
    if mark.value is None:
        return
    if mark.interval:
        axes.plot(mark.interval, (y, y), color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(mark.interval, (y, y), "|", color=colour, ms=7, mew=1.4)
    hollow = mark.verdict not in MARKERS
    style: dict[str, Any] = dict(mfc="none" if hollow else colour, mec=colour, mew=1.4)
    axes.plot([mark.value], [y], MARKERS.get(mark.verdict, "D"), ms=6, **style)


def _finish(axes: Axes, x_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.06)
    axes.tick_params(length=2)


def _box(height: float, *, left: float, right: float, bottom: float, top: float) -> tuple:
    """The place of axes in a figure of this height, from their margins, inches."""
    return (
        left / WIDTH,
        bottom / height,
        (WIDTH - left - right) / WIDTH,
        (height - bottom - top) / height,
    )


@contextmanager
def _chart(height: float, title: str) -> Iterator[Any]:
    """A figure to draw in; afterwards its `markup` is the SVG."""
    # Imported here: it takes a second or two, and most commands draw nothing.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its list of fonts
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {
        **STYLE,
        "svg.hashsalt": title,
    }  # names in an SVG must differ from other charts' names
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the browser has fonts
        figure: Any = Figure((WIDTH, height))
        yield figure
        drawn = io.StringIO()
        FigureCanvasSVG(figure).print_svg(drawn, metadata={"Date": None, "Creator": None})
    figure.markup = Markup(_inline(drawn.getvalue(), title))


def _inline(svg: str, title: str) -> str:
    """Make an SVG file an element of a page, without metadata, comments and unused names."""
    svg = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="([^"]*)"', svg)[1]
    svg = svg.split(">", 1)[1]
    for unwanted in ("<metadata>.*?</metadata>", "<!--.*?-->", "<style.*?</style>"):
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", lambda tag: _plain_tag(tag[0]), svg)
    svg = re.sub(r">\n\s*<", "><", svg)
    name = Markup.escape(title)
    return f'<svg viewBox="{box}" role="img" aria-label="{name}"><title>{name}</title>{svg}'


def _plain_tag(tag: str) -> str:
    """A tag of an SVG without names that other charts have too, in the page's font and colours."""
    for unwanted in (
        r' id="\w[\w.]*_\d+"',
        r' transform="rotate\(-0 [^"]*"',
        r"font-family: [^;\"]*;? ?",
    ):
        tag = re.sub(unwanted, "", tag)
    for colour, name in VARIABLES.items():
        tag = tag.replace(f" {colour}", f" var(--{name})")
    return tag
