"""The command line's parser: help in two layers, and a hint at what a mistyped option meant."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

ALL = "all"


class OptionParser(argparse.ArgumentParser):
    """`--help` shows the common options, `--help all` every one under its group.

    Args:
        common: Names of the options that `--help` shows; none: it shows all.
        keywords: As `argparse.ArgumentParser` takes them.
    """

    def __init__(self, *, common: Collection[str] = (), **keywords: Any):
        keywords.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(add_help=False, **keywords)
        self.common = common
        self.add_argument(
            "-h", "--help", nargs="?", const="", choices=("", ALL), metavar=ALL, action=_Help, default=argparse.SUPPRESS,
            help="show the common options and exit; --help all: every option",
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        """End in one line, with exit status 2."""
        words = message.removeprefix("unrecognized arguments: ").split()
        if message.startswith("unrecognized arguments: "):
            message = f"unknown option {words[0]}{self._hint(words[0])}"
        sys.stderr.write(f"error: {message}; --help lists the options\n")
        sys.exit(2)

    def _hint(self, word: str) -> str:
        known = list(self._option_string_actions)
        close = difflib.get_close_matches(word.split("=")[0], known, n=1)
        return f"; did you mean {close[0]}?" if close else ""

    def common_help(self) -> str:
        """The help without the options that are rarely needed."""
        rare = [
            action
            for action in self._actions
            if self.common
            and getattr(action, "of_config", False)
            and action.dest not in self.common
        ]
        texts = [action.help for action in rare]
        for action in rare:
            action.help = argparse.SUPPRESS
        shown = self.format_help()
        for action, text in zip(rare, texts, strict=True):
            action.help = text
        return f"{shown}\n{len(rare)} more options: --help all\n" if rare else shown


class _Help(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> NoReturn:
        assert isinstance(parser, OptionParser)
        sys.stdout.write(parser.format_help() if values == ALL else parser.common_help())
        sys.exit(0)
