"""Errors that a user can act on, and how an entry script reports them."""

from __future__ import annotations

import difflib
import errno
import io
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from expansion.common.stopping import (
    SIGNALS,
    Stopped,
    StopRequest,
    die_at_exit,
    ending_at_once,
    prepare_exit,
)

# What json raises: JSONDecodeError is a ValueError, as is an integer of thousands of digits.
JSON_ERRORS = (ValueError, RecursionError)
GO_ON = "run the same command to go on"
LONGEST_VALUE = 80  # characters of a wrong value that a message shows
LONGEST_MESSAGE = 2000
# Control characters, line breaks, changes of the writing direction, and what is no text at all.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# A loader raises the errors of its worker processes anew, with their tracebacks as the message.
FROM_WORKER = re.compile(
    r"Caught InputError in .*^(?:[\w.]+\.)?InputError: ([^\n]*)\s*\Z", re.DOTALL | re.MULTILINE
)
REMEDIES = {
    errno.ENOSPC: f"make room, then {GO_ON}",
    errno.EDQUOT: f"make room, then {GO_ON}",
    errno.EFBIG: f"raise the limit of file sizes (ulimit -f), then {GO_ON}",
    errno.EMFILE: f"raise the limit of open files (ulimit -n), then {GO_ON}",
    errno.EIO: f"check the disk, then {GO_ON}",
    errno.ESTALE: f"check the network file system, then {GO_ON}",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "change the permissions or choose another place",
    errno.EISDIR: "remove the folder, a file belongs there",
    errno.ENOTDIR: "remove the file, a folder belongs there",
    errno.EEXIST: "remove it or choose another place",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "remove the symbolic link, it leads to itself",
}


class InputError(ValueError):
    """Wrong input. The message names the value, the file and the remedy in one line."""

    def __str__(self) -> str:
        text = super().__str__()
        in_worker = FROM_WORKER.match(text)
        return one_line(in_worker[1] if in_worker else text)


def require(condition: bool, message: str) -> None:
    """Raise InputError with `message` unless `condition` holds."""
    if not condition:
        raise InputError(message)


def unknown_name(kind: str, name: str, known: Sequence[str]) -> InputError:
    """The error for a name that is in no registry, with a close name or the known ones."""
    shown = name if isinstance(name, str) else brief(name)
    hint = suggestion(shown, known)
    listed = "" if hint and len(known) > 12 else f"; known: {', '.join(sorted(known))}"
    return InputError(f"unknown {kind} '{shown}'{hint}{listed}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """ "; did you mean '...'?" if one of the known names is close, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1) if len(name) < 100 else []
    return f"; did you mean '{close[0]}'?" if close else ""


def shown(names: Iterable[str], count: int = 5) -> str:
    """The first few names, as an error or a report lists them."""
    names = list(names)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def one_line(text: str) -> str:
    """`text` of bounded length with escapes for what would break the line or steer a terminal."""
    if len(text) > LONGEST_MESSAGE:
        text = f"{text[: LONGEST_MESSAGE - 500]} ... {text[-500:]}"
    return UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def is_text(name: str) -> bool:
    """Whether UTF-8 can hold it: not so the name of a file that is made of other bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def brief(value: Any) -> str:
    """`repr` of a value for a message, in a moment and of bounded length whatever it is."""
    shower = reprlib.Repr()
    shower.maxlevel = 2
    shower.maxstring = shower.maxother = shower.maxlong = LONGEST_VALUE
    try:
        return shower.repr(value)
    except ValueError:  # an integer of thousands of digits
        return f"a {type(value).__name__} too long to show"


def run_command(main: Callable[[], int | None]) -> None:
    """Run the `main` of an entry script and exit with its status.

    Wrong input and a full disk end in one line on stderr and exit code 2; Ctrl-C and SIGTERM end
    in one line and, after all clean-up, by the signal itself: 128 + its number for a shell. So does
    a `main` that returns that status. Everything else is a defect of this program and keeps its
    traceback.
    """
    prepare_exit()
    # Names of files may be no text; a report that shows one must not fail.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with ending_at_once() as stop:
        status = _status_of(main, stop)
        if (status or 0) - 128 in SIGNALS:
            die_at_exit(status - 128)
    sys.exit(status)


def _status_of(main: Callable[[], int | None], stop: StopRequest) -> int | None:
    try:
        return _unless_stopped(main, stop)
    except KeyboardInterrupt:
        by = f" by {stop.signal.name}" if stop() else ""
        sys.stderr.write(f"stopped{by}; {GO_ON}\n")
        return stop.exit_status if stop() else 130
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
    except BrokenPipeError:  # the reader of stdout, such as head, has gone
        sys.stderr.close()
        return 1
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        place = error.filename2 or error.filename or "the output"
        message = one_line(f"{place}: {error.strerror}; {REMEDIES[error.errno]}")
        sys.stderr.write(f"error: {message}\n")
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
