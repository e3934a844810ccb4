"""How many processes work side by side, and on which devices."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from expansion.common.errors import require

SMALL_NETWORKS = 4  # processes on a CPU if the networks are too small for several threads
THREADS = "OMP_NUM_THREADS"
GPU = "CUDA_VISIBLE_DEVICES"


def num_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def on_cpu(
    cores: int, small_images: bool, environ: Mapping[str, str] = os.environ
) -> list[dict[str, str]]:
    """The environment variables of each process on a CPU.

    Args:
        cores: Number of cores to use.
        small_images: Whether the networks are too small to keep several threads busy.
        environ: Environment of this process; a number of threads in it is kept.
    """
    number = min(cores, SMALL_NETWORKS) if small_images else 1
    threads = environ.get(THREADS) or str(max(1, cores // number))
    return [{THREADS: threads} for _ in range(number)]


def on_gpus(
    gpus: Sequence[str], wanted: Sequence[str], environ: Mapping[str, str] = os.environ
) -> list[dict[str, str]]:
    """The environment variables of each process, one for each GPU; none without a GPU.

    Args:
        gpus: Names of the GPUs that the first process sees; of `wanted` it only sees the first.
        wanted: Numbers of the GPUs to use; an empty list means all.
        environ: Environment of this process, which may restrict the GPUs.

    Raises:
        InputError: Some GPUs are wanted, and there are none.
    """
    require(
        bool(gpus) or not wanted,
        f"--devices {' '.join(wanted)}: there is no such GPU here; leave the option out",
    )
    seen = environ.get(GPU, "")
    numbers = list(wanted) or [n for n in seen.split(",") if n] or range(len(gpus))
    return [{GPU: str(number)} for number in numbers]
