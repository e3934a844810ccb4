"""Charts of the page as text."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from expansion.report.charts import Mark, class_chart, confusion_chart, interval_chart
from expansion.report.verdict import signed
from tests.conftest import ROOT

HOSTILE = '<script>alert(1)</script>" onerror="alert(2)'
CLASSES = ("cat", HOSTILE, "\u72ac $x$")


def test_texts_of_charts_stay_texts_and_colours_follow_the_page():
    marks = [Mark(HOSTILE, 5.0, (1.0, 9.0), "better", "+5.0"), Mark("$x$ \u72ac", None, None)]
    for chart in (
        interval_chart(marks, "gain", "one & <two>"),
        class_chart(marks, "gain", "classes"),
        confusion_chart(np.eye(3) * 4, CLASSES, "confusion"),
        confusion_chart(np.eye(40), [f"class {i}" for i in range(40)], "many"),
    ):
        assert chart.startswith("<svg viewBox=") and chart.rstrip().endswith("</svg>")
        assert "<script" not in chart and "#0102" not in chart and "#0103" not in chart
        assert "var(--ink)" in chart and "http" not in chart
    assert ">$x$ \u72ac</text>" in interval_chart(marks, "gain", "one")
    assert "&lt;script&gt;" in interval_chart(marks, "gain", "one")


def test_numbers_have_a_real_minus_and_zero_has_no_sign():
    assert [signed(x) for x in (-1.25, 0.04, -0.04, 2.0)] == ["\u22121.2", "0.0", "0.0", "+2.0"]


@pytest.mark.slow
def test_commands_that_draw_nothing_load_neither_charts_nor_templates_nor_torch():
    code = (
        "import sys, parse_logs, expansion.report.page, expansion.training.curves\n"
        "print({'matplotlib', 'jinja2', 'torch'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.stdout, done.stderr) == ("set()\n", "")
