"""`python -m expansion.image_datasets check NAME`: an older name of `python -m expansion.data`."""

from expansion.common.errors import run_command
from expansion.data.__main__ import main

if __name__ == "__main__":
    run_command(main)
