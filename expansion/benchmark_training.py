"""`python -m expansion.benchmark_training`: the command of `expansion.benchmarks.training`."""

from expansion.benchmarks.training import main
from expansion.common.errors import run_command

if __name__ == "__main__":
    run_command(main)
