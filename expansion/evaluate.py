"""`python -m expansion.evaluate`: the command of `expansion.measures.command`."""

from expansion.common.errors import run_command
from expansion.measures.command import main

if __name__ == "__main__":
    run_command(main)
