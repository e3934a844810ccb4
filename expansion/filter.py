"""`python -m expansion.filter`: the command of `expansion.selection.command`."""

from expansion.common.errors import run_command
from expansion.selection.command import main

if __name__ == "__main__":
    run_command(main)
