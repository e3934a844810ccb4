"""One training per run folder at a time, on all machines that share it.

    <folder>/.lock   JSON: place, pid and start of the process that trains there

The file's time is renewed every `BEAT` seconds, because locks of the operating system do not reach
other machines on every file system. A lock whose process is gone is void: at once on the same
machine, after `EXPIRY` seconds without a beat on another one.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expansion.common.devices import in_main_process
from expansion.common.errors import JSON_ERRORS, InputError
from expansion.common.files import (
    check_claim,
    claim_folder,
    is_done,
    partial_path,
    write_if_absent,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

OPTIONS = "options.yaml"
REMEDY = (
    "give another --tag or --checkpoint_dir, or --name if this is another dataset, or remove the "
    "folder"
)
FILE_NAME = ".lock"
BEAT = 20.0  # seconds
EXPIRY = 120.0  # seconds


def check_run(run_dir: Path, identity: Mapping[str, Any]) -> None:
    """Raise InputError if the run folder of a classifier was begun with another identity."""
    check_claim(run_dir, OPTIONS, identity, REMEDY)


@contextlib.contextmanager
def training_in(
    run_dir: Path, identity: Mapping[str, Any], accelerator: Accelerator
) -> Iterator[bool]:
    """Hold the run folder inside, all processes together; gives whether its run is done before.

    Args:
        run_dir: Made if it is not there.
        identity: All that decides the result; goes into options.yaml.
        accelerator: The processes that train together.

    Raises:
        InputError: The folder belongs to another identity, or is being trained in already.
    """
    with contextlib.ExitStack() as until_the_end:

        def claim() -> None:
            claim_folder(run_dir, OPTIONS, identity, REMEDY)
            if not is_done(run_dir):
                until_the_end.enter_context(only_training(run_dir))

        in_main_process(accelerator, claim)
        accelerator.wait_for_everyone()
        yield is_done(run_dir)


@contextlib.contextmanager
def only_training(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` inside.

    Raises:
        InputError: Another process holds it.
    """
    path = folder / FILE_NAME
    mine = {"place": _place(), "pid": os.getpid(), "started": _start_of(os.getpid())}
    _acquire(path, mine)
    done = threading.Event()
    beats = threading.Thread(target=_keep_beating, args=(path, mine, done), daemon=True)
    beats.start()
    try:
        yield
    finally:
        done.set()
        beats.join()
        if _read(path) == mine:
            with contextlib.suppress(OSError):
                path.unlink()


def _acquire(path: Path, mine: dict[str, Any]) -> None:
    for _ in range(10):  # several may find the same void lock; one of them is the first
        if write_if_absent(path, json.dumps(mine)):
            return
        holder = _read(path)
        if holder is not None and _is_alive(path, holder):
            raise InputError(
                f"{path.parent} is being trained by process {holder.get('pid')} on "
                f"{str(holder.get('place')).split()[0]}; wait for its end, or stop it (if it is "
                f"gone, remove {path})"
            )
        _take_away(path, holder)
    raise InputError(f"{path} changes all the time: too many processes train there; start one")


def _take_away(path: Path, holder: dict[str, Any] | None) -> None:
    """Remove a void lock, but not one that another process has put in its place meanwhile."""
    aside = partial_path(path)
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if _read(aside) != holder:
            write_if_absent(path, aside.read_text())
        aside.unlink()


def _read(path: Path) -> dict[str, Any] | None:
    """Who holds the lock; None where nobody does, or one that died while it wrote it."""
    try:
        found = json.loads(path.read_text())
    except (OSError, *JSON_ERRORS):
        return None
    return found if isinstance(found, dict) else None


def _is_alive(path: Path, holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")
    if holder.get("place") != _place():
        return _age(path) < EXPIRY
    if type(pid) is not int or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # it is another user's
    return _start_of(pid) == holder.get("started")


def _age(path: Path) -> float:
    """Seconds since the last beat by the disk's clock, from which this machine's may differ."""
    probe = partial_path(path)
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return EXPIRY
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _keep_beating(path: Path, mine: dict[str, Any], done: threading.Event) -> None:
    while not done.wait(BEAT):
        with contextlib.suppress(OSError):
            if _read(path) == mine:
                os.utime(path)


def _place() -> str:
    """Machine and, on Linux, its process numbers: two containers of one name have their own."""
    with contextlib.suppress(OSError, AttributeError):
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    return platform.node()


def _start_of(pid: int) -> str | None:
    """When a process began, which tells it from another one under its number.

    None where that is unknown, and for a process that has ended but was not waited for.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]
