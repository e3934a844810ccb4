"""Reports what a dataset holds and what is wrong with it.

    python -m expansion.data check caltech-101
    python -m expansion.data check path/to/classes --test_fraction 0.3

`check` counts the images of each class and split, reads them all, and lists problems.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from expansion.common.errors import InputError, run_command
from expansion.common.option_parser import OptionParser
from expansion.data.check import check_splits
from expansion.data.datasets import load_dataset


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line above; returns 0 where nothing is wrong, else 1."""
    parser = OptionParser(prog="python -m expansion.data", description=__doc__)
    parser.add_argument("command", choices=("check",))
    parser.add_argument("dataset", help="dataset name or folder")
    parser.add_argument("--data_dir", default="data", help="where named datasets lie")
    parser.add_argument("--test_fraction", type=float, help="share of each class for testing")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        dataset = load_dataset(options.dataset, options.data_dir, options.test_fraction, False)
    except InputError as error:
        sys.stdout.write(f"problem: {error}\n")
        return 1
    text, problems = check_splits(
        f"dataset {dataset.name}, reader {dataset.config.reader}, in {dataset.root}",
        dataset.class_names,
        dataset.prompt_names,
        dataset.records,
        dataset.remarks,
    )
    sys.stdout.write(text)
    return 1 if problems else 0


if __name__ == "__main__":
    run_command(main)
