"""Where networks run."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from expansion.common.errors import InputError, require

if TYPE_CHECKING:
    from accelerate import Accelerator


def usable_device(name: str) -> str:
    """The device `name`, or for "auto" this process's GPU (CUDA, MPS, ...), else the CPU.

    Raises:
        InputError: It cannot be used here.
    """
    import torch

    if name == "auto":
        gpu = torch.accelerator.current_accelerator(check_available=True)
        name = f"{gpu.type}:{os.environ.get('LOCAL_RANK', '0')}" if gpu else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used ({reason}); try --device cpu") from error
    return name


def device_and_dtype(device: str, dtype: str) -> tuple[str, str]:
    """Where an expansion runs, and the number format of its networks, for "auto" or as given.

    For "auto" the format is float16 on CUDA alone, float32 elsewhere.

    Raises:
        InputError: See `usable_device`.
    """
    device = usable_device(device)
    if device == "cpu":
        keep_freed_memory()
    automatic = "float16" if device.startswith("cuda") else "float32"
    return device, automatic if dtype == "auto" else dtype


def keep_freed_memory() -> None:
    """Have glibc's malloc keep what is freed, for work on the CPU: about a fifth less time.

    Otherwise it returns the memory of large tensors to the system after every layer and gets it
    back page by page. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    mallopt(mmap_threshold, 32 << 20)  # the most that it takes
    mallopt(trim_threshold, (1 << 31) - 1)


def make_accelerator(mixed_precision: str) -> Accelerator:
    """Devices and processes of a training.

    Args:
        mixed_precision: "no", "fp16" or "bf16".

    Raises:
        InputError: fp16 without a GPU.
    """
    import torch
    from accelerate import Accelerator

    require(
        mixed_precision != "fp16" or torch.cuda.is_available(),
        "--mixed_precision fp16 needs a GPU; use bf16 or no",
    )
    on_cpu = not torch.accelerator.is_available()  # must be said, or torchrun starts lone processes
    if on_cpu:
        keep_freed_memory()
    return Accelerator(cpu=on_cpu, mixed_precision=mixed_precision)


def in_main_process(accelerator: Accelerator, work: Callable[[], None]) -> None:
    """Do `work` in the main process while the others wait.

    Raises:
        InputError: `work` did, in every process, so that none waits for one that has ended.
    """
    refusal: list[str | None] = [None]
    if accelerator.is_main_process:
        try:
            work()
        except InputError as error:
            refusal = [str(error)]
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(refusal)
    if refusal[0] is not None:
        raise InputError(refusal[0])
