"""Runs functions of this project, one after another, in one process that loads torch once.

    python -m expansion.study.worker

A request is a JSON line on stdin: {"call": "expand:main", "arguments": [["-d", "digits", ...]]}.
The function prints to stdout; after that come MARK and a line with the JSON answer
{"status": 0, "result": null}. The process ends with stdin, or when a signal stopped a function.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from expansion.common.config import import_object
from expansion.common.errors import run_command

MARK = "\x1e"  # record separator in ASCII


def typed(name: str, arguments: Sequence[str]) -> list[str]:
    """The words that a user would type after `python` to run the function `main` of a module.

    Args:
        name: The function, as "module:main".
        arguments: Its command line.
    """
    module = name.split(":")[0].removesuffix(".__main__")
    return [*(["-m", module] if "." in module else [f"{module}.py"]), *arguments]


def call(name: str, arguments: Sequence[Any]) -> tuple[int, Any]:
    """Call a function with an entry script's treatment of errors and signals.

    Args:
        name: The function, as "module:function".
        arguments: Its arguments.

    Returns:
        The exit status, and the result; None after an error.
    """
    results = []

    def main() -> int | None:
        is_command = name.endswith(":main")
        if is_command:  # for the command line that it writes down
            sys.orig_argv = ["python", *typed(name, arguments[0])]
            sys.argv = [name, *arguments[0]]
        results.append(import_object(name)(*arguments))
        return results[0] if is_command else None

    status: Any = 0
    try:
        run_command(main)
    except SystemExit as end:
        status = end.code or 0
    return status, results[0] if results else None


class _Terminal:
    """A stream that claims to be a terminal, so that progress bars are written into the pipe."""

    def __init__(self, stream: Any):
        self._stream = stream

    def isatty(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def serve() -> None:
    """Answer requests until stdin ends or a signal stops one."""
    output: Any = sys.stdout
    output.reconfigure(line_buffering=True)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its list of fonts
    if os.environ.get("STUDY_BARS"):
        sys.stderr = _Terminal(sys.stderr)
    for line in sys.stdin:
        request = json.loads(line)
        status, result = call(request["call"], request["arguments"])
        sys.stderr.flush()
        answer = json.dumps({"status": status, "result": result})
        sys.stdout.write(f"{MARK}{answer}\n")
        sys.stdout.flush()
        if status > 128:
            break
        gc.collect()  # frees pipelines, whose parts refer to each other, for the next one on a GPU


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):  # a signal while it has nothing to do
        serve()
