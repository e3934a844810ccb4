"""Contact sheets and curves: sizes, odd input, and files that are whole."""

from __future__ import annotations

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from expansion.pictures.figures import contact_sheet, line_charts, save_figure

NAN, INFINITE = math.nan, math.inf


def colours(image: Image.Image) -> set[tuple[int, ...]]:
    return {colour for _, colour in image.getcolors(1 << 20)}


def test_a_contact_sheet_has_a_cell_for_every_image_of_its_longest_row():
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    sheet = contact_sheet([("one", [red]), ("two", [blue, red, blue])], cell=20, label_width=60)
    assert sheet.size == (60 + 3 * 24 + 4, 2 * 24 + 4)
    assert [sheet.getpixel((60 + 4 + 24 * j + 10, 4 + 24 + 10)) for j in range(3)] == [
        (0, 0, 255),
        (255, 0, 0),
        (0, 0, 255),
    ]
    assert sheet.getpixel((60 + 4 + 10, 14)) == (255, 0, 0)
    assert sheet.getpixel((60 + 4 + 24 + 10, 14)) == (255, 255, 255)


@pytest.mark.parametrize("size", [(8, 8), (200, 50), (50, 200), (1, 500)])
def test_an_image_of_any_shape_stays_within_its_cell(size):
    sheet = contact_sheet([("", [Image.new("RGB", size, "red")])], cell=40, label_width=10)
    box = sheet.convert("L").point(lambda v: 255 * (v < 200)).getbbox()
    assert box[0] >= 14 and box[1] >= 4 and box[2] <= 54 and box[3] <= 44
    assert max(box[2] - box[0], box[3] - box[1]) == 40


@pytest.mark.parametrize("label", ["", "a very long class name " * 20, "\u72d7 \U0001f600", "a\nb"])
def test_a_label_of_any_kind_leaves_the_images_alone(label):
    sheet = contact_sheet([(label, [Image.new("RGB", (8, 8), "red")])], cell=96)
    assert sheet.size == (150 + 100 + 4, 104)
    assert colours(sheet.crop((154, 4, 250, 100))) == {(255, 0, 0)}
    assert (len(colours(sheet.crop((0, 0, 150, 104)))) > 1) == bool(label)


def test_small_images_are_enlarged_without_smoothing():
    checks = Image.new("RGB", (2, 2), "white")
    checks.putpixel((0, 0), (0, 0, 0))
    sheet = contact_sheet([("", [checks])], cell=64, label_width=10)
    assert colours(sheet) == {(0, 0, 0), (255, 255, 255)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "series",
    [
        {},
        {"none": []},
        {"one point": [(3, 50.0)]},
        {"zero": [(0, 0.0)]},
        {"flat": [(0, 7.0), (1, 7.0)]},
        {"nan": [(0, NAN), (1, INFINITE), (2, -INFINITE), (NAN, 1.0)]},
        {"gap": [(0, 1.0), (1, NAN), (2, 3.0)], "whole": [(0, 2.0), (2, 1.0)]},
        {"negative": [(0, -5.0), (10, -2.0)]},
        {"huge": [(0, 1e30), (1, -1e30)]},
        {"tiny": [(0, 1e-13), (1, 3e-13)]},
        {"nearly flat": [(0, 1.0), (1, math.nextafter(1.0, 2.0))]},
        {f"curve {i}": [(0, i), (1, i)] for i in range(9)},
    ],
    ids=lambda series: next(iter(series), "empty"),
)
def test_a_chart_of_odd_series_is_drawn_at_its_size(series):
    chart = line_charts({"title": series}, "step")
    assert chart.size == (640, 360)
    assert len(colours(chart)) > 1


def test_a_chart_shows_each_curve_in_its_place():
    chart = line_charts({"accuracy": {"up": [(0, 0.0), (10, 100.0)]}}, "step")
    blue = [
        (x, y)
        for x in range(70, 492)  # left of the legend
        for y in range(30, 316)
        if chart.getpixel((x, y)) == (31, 119, 180)
    ]
    left, right = min(blue), max(blue)
    assert left[0] < 100 and left[1] > 290 and right[0] > 465 and right[1] < 60
    single = line_charts({"accuracy": {"one": [(5, 5.0)]}}, "step")
    assert (31, 119, 180) in colours(single.crop((70, 30, 492, 316)))


def test_charts_are_stacked_in_order():
    up, down = [(0, 0.0), (1, 1.0)], [(0, 1.0), (1, 0.0)]
    both = line_charts({"one": {"up": up}, "two": {"down": down}}, "step")
    assert both.size == (640, 720)

    def left_end(chart: Image.Image, top: int) -> int:
        blue = (31, 119, 180)
        return min((x, y) for x in range(70, 492) for y in range(top, top + 360)
                   if chart.getpixel((x, y)) == blue)[1] - top  # fmt: skip

    assert left_end(both, 0) > 250 and left_end(both, 360) < 110


def test_a_figure_is_written_whole_and_replaces_the_old_one(tmp_path):
    for colour in ("red", "blue"):
        save_figure(Image.new("RGB", (4, 4), colour), tmp_path / "curves.png")
    assert os.listdir(tmp_path) == ["curves.png"]
    assert colours(Image.open(tmp_path / "curves.png").convert("RGB")) == {(0, 0, 255)}


def test_two_shards_that_finish_together_both_write_the_figure(tmp_path, monkeypatch):
    both_saved, save = threading.Barrier(2, timeout=20), Image.Image.save

    def save_together(image, *arguments, **keywords):
        save(image, *arguments, **keywords)
        both_saved.wait()

    monkeypatch.setattr(Image.Image, "save", save_together)
    figure = Image.new("RGB", (4, 4), "red")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: save_figure(figure, tmp_path / "sheet.png"), range(2)))
    assert os.listdir(tmp_path) == ["sheet.png"]
    assert Image.open(tmp_path / "sheet.png").size == (4, 4)
