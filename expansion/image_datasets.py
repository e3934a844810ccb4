"""`python -m expansion.image_datasets`: the command of `expansion.data.datasets`."""

from expansion.common.errors import run_command
from expansion.data.datasets import main

if __name__ == "__main__":
    run_command(main)
