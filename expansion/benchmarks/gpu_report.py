"""`python -m expansion.benchmarks.gpu_report FOLDER`: figures of `scripts/gpu_check.sh` in a table.

Reads the figures of `expansion.benchmark` and the output of the tests in the folder, prints a
Markdown table, and writes it and all figures to `report.md` and `report.json`. The exit status is
1 if a test failed or figures are missing, and the report says which.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expansion.common.errors import require, run_command
from expansion.common.files import write_atomic
from expansion.common.option_parser import OptionParser

FAMILIES = {"sd1": "SD 1.x, 512", "sdxl": "SDXL, 1024"}
ONE, TWO = "one", ("two_a", "two_b")  # the same work by one process, and by two at a time
COLUMNS = ("", "", "batch", "images/s", "U-Net rows/s", "peak GB", "of the matrix rate (%)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print and write the report on the folder that `arguments` names; returns the exit status."""
    parser = OptionParser(prog="python -m expansion.benchmarks.gpu_report", description=__doc__)
    parser.add_argument("folder", help="what scripts/gpu_check.sh wrote into")
    parser.add_argument("--output", help="folder of the report (default: the same)")
    options = parser.parse_args(arguments)
    folder = Path(options.folder)
    measured = {
        path.stem: json.loads(path.read_text())
        for path in sorted(folder.glob("*.json"))
        if path.stem != "report"
    }
    require(bool(measured), f"{folder}: no benchmark left figures there; see its *.txt")
    tests = folder / "tests.txt"
    ended = tests.read_text().strip().splitlines()[-1:] if tests.is_file() else []
    missing = [name for name in (*FAMILIES, ONE, *TWO) if name not in measured]
    text = report(measured, ended, missing)
    sys.stdout.write(text)
    output = Path(options.output or folder)
    output.mkdir(parents=True, exist_ok=True)
    write_atomic(output / "report.md", text)
    write_atomic(output / "report.json", json.dumps({"tests": ended, **measured}, indent=1) + "\n")
    passed = bool(ended) and "passed" in ended[0] and not re.search("failed|error", ended[0])
    return 0 if passed and not missing else 1


def report(
    measured: Mapping[str, Mapping[str, Any]], tests: Sequence[str], missing: Sequence[str]
) -> str:
    """The table in Markdown.

    Args:
        measured: Name of a benchmark -> what its JSON file holds.
        tests: What the tests said last.
        missing: Names of benchmarks without figures.
    """
    facts = next(iter(measured.values()))["facts"]
    rate = facts["matrix_rate"] / 1e12
    lines = [f"{facts['device']}, {facts['dtype']}, matrix product {rate:.0f} TFLOP/s", ""]
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for name, title in FAMILIES.items():
        for line in measured.get(name, {}).get("lines", []):
            share = line.get("share_of_matrix_rate")
            rows.append(
                (
                    title,
                    line["name"],
                    str(line["batch_size"]),
                    f"{line['images_per_second']:.3g}",
                    f"{line['rows_per_second']:.3g}",
                    f"{line['peak_memory_bytes'] / 1e9:.1f}",
                    "" if share is None else f"{100 * share:.0f}",
                )
            )
    lines += [f"| {' | '.join(row)} |" for row in rows]
    if {ONE, *TWO} <= set(measured):
        alone, both = (
            sum(measured[name]["lines"][0]["images_per_second"] for name in names)
            for names in ((ONE,), TWO)
        )
        lines += ["", f"img2img: one process {alone:.3g} images/s, two at a time {both:.3g}"]
    lines += ["", *(f"tests: {text}" for text in tests or ["their output is not there"])]
    lines += [f"not measured: {name}, see {name}.txt" for name in missing]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_command(main)
