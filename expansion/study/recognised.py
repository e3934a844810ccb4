"""`python -m expansion.study.recognised`: an older name of `expansion.report.recognised`."""

from expansion.common.errors import run_command
from expansion.report.recognised import main

if __name__ == "__main__":
    run_command(main)
