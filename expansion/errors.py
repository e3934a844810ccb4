"""Errors that a user can act on, and how an entry script reports them."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from expansion.stopping import Stopped, StopRequest, ending_at_once

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
        status = _status_of(main, stop)
    sys.exit(status)


def _status_of(main: Callable[[], int | None], stop: StopRequest) -> int | None:
    try:
        return _unless_stopped(main, stop)
    except KeyboardInterrupt:
        by = f" by {stop.signal.name}" if stop() else ""
        print(f"stopped{by}; {GO_ON}", file=sys.stderr)
        return stop.exit_status if stop() else 130
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:  # the reader of stdout, such as head, has gone
        sys.stderr.close()
        return 1
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        place = error.filename or "the output"
        print(f"error: {place}: {error.strerror}; {REMEDIES[error.errno]}", file=sys.stderr)
    return 2


def _unless_stopped(main: Callable[[], int | None], stop: StopRequest) -> int | None:
    """`main()`; what it raises after a stop is a stop.

    Raised while a library's compiled code runs, Stopped can come out as another error: in
    safetensors, for instance, as weights that cannot be read.
    """
    try:
        return main()
    except Exception as error:
        if stop():
            raise Stopped from error
        raise
