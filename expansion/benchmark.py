"""`python -m expansion.benchmark`: the command of `expansion.benchmarks.sampling`."""

from expansion.benchmarks.sampling import main
from expansion.common.errors import run_command

if __name__ == "__main__":
    run_command(main)
