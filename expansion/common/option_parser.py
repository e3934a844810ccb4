"""The command line's parser: rules that are the same for all commands.

Nothing may be abbreviated, what is wrong ends in one line with a hint at what was meant, and the
help of a command with many options has two layers. Of a command with a schema, every option but
`--help` and `--config` is a YAML key too, and the command line wins over the `--config` files.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

from expansion.common.config import Layers, Source, add_options, load_yaml

ALL = "all"
ONCE = ("--lora",)  # options of which one may want several
UNKNOWN = "unrecognized arguments: "  # how argparse begins


class OptionParser(argparse.ArgumentParser):
    """The parser of a command: `read` takes its options from config classes, if it has any.

    `--help` shows the common options, `--help all` every one under its group.

    Args:
        common: Names of the options that `--help` shows; none: it shows all.
        keywords: As `argparse.ArgumentParser` takes them.

    Attributes:
        words: After `read`, the values of `take_words` that were typed, by name.
    """

    def __init__(self, *, common: Collection[str] = (), **keywords: Any):
        keywords.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(add_help=not common, allow_abbrev=False, **keywords)
        self.common = common
        self.words: dict[str, str] = {}
        self._word_names: Sequence[str] = ()
        self._files: dict[str, Source] = {}
        if common:
            self.add_argument(
                "-h",
                "--help",
                nargs="?",
                const="",
                choices=("", ALL),
                metavar=ALL,
                action=_Help,
                default=argparse.SUPPRESS,
                help="show the common options and exit; --help all: every option",
            )

    def take_words(self, names: Sequence[str], metavar: str, help: str) -> None:
        """Let words without an option be the values of the options `names`, in their order.

        Args:
            names: A name that no option has is left to the caller, in `words`.
            metavar: What `--help` calls the words.
            help: What they are, for `--help`.
        """
        self._word_names = names
        self.add_argument("words", nargs="*", metavar=metavar, help=help)

    def first_look(self, arguments: Sequence[str] | None, *keys: str) -> Layers:
        """What command line and `--config` files say of `keys` that decide which options there are.

        Args:
            arguments: As for `read`, which refuses what is wrong; this does not.
            keys: Names of long options; on the command line, other spellings are not seen.
        """
        look = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        _add_config(look)
        for key in keys:
            look.add_argument(f"--{key}", default=argparse.SUPPRESS)
        try:
            found = vars(look.parse_known_args(arguments)[0])
        except argparse.ArgumentError:
            return Layers(())
        return self._layers(found)

    def read(self, arguments: Sequence[str] | None, classes: Mapping[str, type]) -> Layers:
        """Read the whole command line and its `--config` files.

        Args:
            arguments: None stands for those of the process.
            classes: Title of a group of options in the help -> config class that declares them.
        """
        # The options.
        _add_config(self)
        for title, config_class in classes.items():
            add_options(self, config_class, title)
        found = vars(self.parse_args(arguments))
        # The words without one.
        words = found.pop("words", [])
        if len(words) > len(self._word_names):
            self.error(f"'{words[len(self._word_names)]}' is one word too many")
        self.words = dict(zip(self._word_names, words, strict=False))
        declared = {field.name for each in classes.values() for field in dataclasses.fields(each)}
        booleans = {"True": True, "False": False}  # as the papers' scripts write them
        short = {k: booleans.get(v, v) for k, v in self.words.items() if k in declared}
        return self._layers({**short, **found})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but of the options in `ONCE` the first value is not lost in silence."""
        words = sys.argv[1:] if args is None else args
        for name in ONCE:
            if sum(word.split("=")[0] == name for word in words) > 1:
                self.error(f"{name} is given more than once, and one is taken")
        return super().parse_args(args, namespace)

    def _layers(self, found: dict[str, Any]) -> Layers:
        """The `--config` files, each read once as it may be a pipe, and the rest above them."""
        paths = found.pop("config")
        for path in paths:
            if path not in self._files:
                self._files[path] = load_yaml(path)
        return Layers((*(self._files[path] for path in paths), Source(found, "command line")))

    def error(self, message: str) -> NoReturn:
        """End in one line, with exit status 2."""
        hint = "--help lists the options"
        if message.startswith(UNKNOWN):
            words = message.removeprefix(UNKNOWN).split()
            word = next((word for word in words if word.startswith("-")), words[0])
            message = f"'{word}' is one word too many"
            if word.startswith("-"):
                message = f"unknown option {word}"
                known = list(self._option_string_actions)
                close = difflib.get_close_matches(word.split("=")[0], known, n=1)
                hint = f"did you mean {close[0]}?" if close else hint
        sys.stderr.write(f"error: {message}; {hint}\n")
        sys.exit(2)

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


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        nargs="*",
        action="extend",
        default=[],
        metavar="FILE",
        help="YAML files whose keys are the options below; later ones win",
    )


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
