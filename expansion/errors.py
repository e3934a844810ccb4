"""Errors that a user can act on, and how an entry script reports them."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable


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
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        print(
            f"error: cannot write {error.filename or 'the output'}: {error.strerror}; "
            "make room or choose another folder, then run the same command to go on",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        print("stopped; run the same command to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(2)
