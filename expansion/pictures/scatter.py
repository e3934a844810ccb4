"""Scatter plots: points of several groups in the plane, panel beside panel."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from expansion.pictures.figures import COLOURS

PANEL = 3.6  # inches, at 100 pixels each


@dataclass(frozen=True, eq=False)
class Points:
    """Points of one kind.

    Attributes:
        places: (M, 2).
        groups: (M,), each the number of a colour, below `len(COLOURS)`.
        marker: matplotlib's.
        title: For the legend.
        size: Area of a marker, square points.
        framed: Whether markers have a black rim.
    """

    places: np.ndarray
    groups: np.ndarray
    marker: str
    title: str
    size: float = 18
    framed: bool = False


def scatter_panels(
    panels: Sequence[tuple[str, Sequence[Points]]],
    group_names: Sequence[str],
    axis_labels: tuple[str, str],
) -> Image.Image:
    """Draw panels beside each other on equal axes, with a legend of groups and kinds of points.

    Args:
        panels: Title and points of each; later points lie above earlier ones.
        group_names: By number.
        axis_labels: Of the horizontal and the vertical axis.
    """
    # Imported here: it takes a second or two, and most commands draw nothing.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its list of fonts
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure((PANEL * len(panels) + 1.8, PANEL + 0.4), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    for panel, (title, kinds) in zip(axes, panels, strict=True):
        for points in kinds:
            style = {"edgecolors": "black", "linewidths": 0.8} if points.framed else {}
            panel.scatter(
                *points.places.T,
                s=points.size,
                c=[COLOURS[group] for group in points.groups],
                marker=points.marker,
                **style,
            )
        panel.set_title(title, loc="left", fontsize=11)
        panel.set_xlabel(axis_labels[0])
    axes[0].set_ylabel(axis_labels[1])
    dots = [
        Line2D([], [], ls="", marker="o", color=colour, label=name)
        for colour, name in zip(COLOURS, group_names, strict=False)
    ]
    dots += [
        Line2D([], [], ls="", marker=points.marker, color="grey", label=points.title)
        for points in panels[0][1]
    ]
    figure.legend(handles=dots, loc="outside right upper", frameon=False, fontsize=9)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
