"""The report of a check of a GPU, on figures made up for it."""

from __future__ import annotations

import json

import pytest

from expansion.benchmarks import gpu_report
from expansion.common.errors import InputError


def figures(*lines: tuple[str, float, float | None]) -> str:
    facts = {"device": "GPU X", "dtype": "bfloat16", "matrix_rate": 8e14}
    kept = [
        {
            "name": name,
            "batch_size": 16,
            "images_per_second": speed,
            "rows_per_second": 50 * speed,
            "peak_memory_bytes": 4_200_000_000,
            **({} if share is None else {"share_of_matrix_rate": share}),
        }
        for name, speed, share in lines
    ]
    return json.dumps({"facts": facts, "lines": kept})


def test_one_table_holds_both_families_and_says_what_two_processes_gain(tmp_path, capsys):
    (tmp_path / "sd1.json").write_text(figures(("img2img", 5.25, 0.31), ("diffusers X", 4.5, None)))
    (tmp_path / "sdxl.json").write_text(figures(("dreamda", 0.5, 0.4)))
    for name, speed in (("one", 5.0), ("two_a", 2.75), ("two_b", 3.0)):
        (tmp_path / f"{name}.json").write_text(figures(("img2img", speed, 0.3)))
    (tmp_path / "tests.txt").write_text("....\n4 passed in 3.2s\n")
    assert gpu_report.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "GPU X, bfloat16, matrix product 800 TFLOP/s"
    assert "| SD 1.x, 512 | img2img | 16 | 5.25 | 262 | 4.2 | 31 |" in printed
    assert "| SD 1.x, 512 | diffusers X | 16 | 4.5 | 225 | 4.2 |  |" in printed
    assert "| SDXL, 1024 | dreamda | 16 | 0.5 | 25 | 4.2 | 40 |" in printed
    assert "img2img: one process 5 images/s, two at a time 5.75" in printed
    assert printed[-1] == "tests: 4 passed in 3.2s"
    kept = json.loads((tmp_path / "report.json").read_text())
    assert kept["tests"] == ["4 passed in 3.2s"] and set(kept) >= {"sd1", "sdxl", "two_b"}
    gpu_report.main([str(tmp_path)])  # its own report is none of the figures
    assert capsys.readouterr().out.splitlines() == printed


@pytest.mark.parametrize("ended", ["1 failed, 13 passed in 40.11s", "14 skipped in 3s", ""])
def test_what_failed_or_is_missing_is_told_by_the_report_and_the_exit_status(
    tmp_path, capsys, ended
):
    for name in ("sd1", "one", "two_a"):
        (tmp_path / f"{name}.json").write_text(figures(("img2img", 5.0, 0.3)))
    (tmp_path / "tests.txt").write_text("14 passed in 40.11s\n")
    assert gpu_report.main([str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert told.endswith("not measured: sdxl, see sdxl.txt\nnot measured: two_b, see two_b.txt\n")
    assert "two at a time" not in told
    for name in ("sdxl", "two_b"):
        (tmp_path / f"{name}.json").write_text(figures(("img2img", 5.0, 0.3)))
    assert gpu_report.main([str(tmp_path)]) == 0
    (tmp_path / "tests.txt").write_text(ended)
    assert gpu_report.main([str(tmp_path)]) == 1


def test_a_folder_without_figures_is_refused(tmp_path):
    with pytest.raises(InputError, match="no benchmark left figures"):
        gpu_report.main([str(tmp_path)])
