"""Errors that a user can act on, and how an entry script reports them."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

REMEDIES = {
    errno.ENOSPC: "make room, then run the same command to go on",
    errno.EDQUOT: "make room, then run the same command to go on",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "change the permissions or choose another place",
}


class InputError(ValueError):
    """Wrong input. The message names the value, the file and the remedy in one line."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run the `main` of an entry script and exit with its status.

    Wrong input and a full disk end in one line on stderr and exit code 2, Ctrl-C in 130.
    Everything else is a defect of this program and keeps its traceback.
    """
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:  # the reader of stdout, such as head, has gone
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        place = error.filename or "the output"
        print(f"error: {place}: {error.strerror}; {REMEDIES[error.errno]}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; run the same command to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(2)
