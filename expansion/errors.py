"""Errors that a user can act on, and how an entry script reports them."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from expansion.stopping import StopRequest, ending_at_once

GO_ON = "run the same command to go on"
REMEDIES = {
    errno.ENOSPC: f"make room, then {GO_ON}",
    errno.EDQUOT: f"make room, then {GO_ON}",
    errno.EFBIG: f"raise the limit of file sizes (ulimit -f), then {GO_ON}",
    errno.EMFILE: f"raise the limit of open files (ulimit -n), then {GO_ON}",
    errno.EIO: f"check the disk, then {GO_ON}",
    errno.ESTALE: f"check the network file system, then {GO_ON}",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "change the permissions or choose another place",
}


class InputError(ValueError):
    """Wrong input. The message names the value, the file and the remedy in one line."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run the `main` of an entry script and exit with its status.

    Wrong input and a full disk end in one line on stderr and exit code 2; Ctrl-C and SIGTERM end
    in one line and 128 + number of the signal. Everything else is a defect of this program and
    keeps its traceback.
    """
    with ending_at_once() as stop:
        status = _status(main, stop)
    sys.exit(status)


def _status(main: Callable[[], int | None], stop: StopRequest) -> int | None:
    try:
        return main()
    except KeyboardInterrupt:
        return _stopped(stop)
    except Exception as error:
        if stop():  # raised in a library's C code, the stop can come out as some other error
            return _stopped(stop)
        if isinstance(error, InputError):
            print(f"error: {error}", file=sys.stderr)
            return 2
        if isinstance(error, BrokenPipeError):  # the reader of stdout, such as head, has gone
            sys.stderr.close()
            return 1
        if isinstance(error, OSError) and error.errno in REMEDIES:
            place = error.filename or "the output"
            print(f"error: {place}: {error.strerror}; {REMEDIES[error.errno]}", file=sys.stderr)
            return 2
        raise


def _stopped(stop: StopRequest) -> int:
    by = f" by {stop.signal.name}" if stop() else ""
    print(f"stopped{by}; {GO_ON}", file=sys.stderr)
    return stop.exit_status if stop() else 130
