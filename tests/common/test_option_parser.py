"""Help in two layers, and what a mistyped option is answered."""

from __future__ import annotations

import pytest

import expand
import train_expand
import train_original
from dreamda.finetune import __main__ as finetune
from expansion.study import config as study

COMMANDS = {
    "expand.py": expand.parse,
    "train_original.py": train_original.main,
    "train_expand.py": train_expand.main,
    "finetune": finetune.parse,
    "study": lambda words: study.read_command_line(words, ""),
}


def printed(command, words, capsys) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        command(words)
    return caught.value.code, *capsys.readouterr()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_common_options_and_says_how_to_see_the_rest(name, capsys):
    status, short, _ = printed(COMMANDS[name], ["--help"], capsys)
    _, long, _ = printed(COMMANDS[name], ["--help", "all"], capsys)
    assert status == 0 and len(short.splitlines()) < len(long.splitlines())
    options = {line.split("--")[1].split()[0] for line in short.splitlines() if "  --" in line}
    assert 5 < len(options) < 35
    assert "more options: --help all" in short and "more options" not in long
    again = printed(COMMANDS[name], ["--help", "all"], capsys)[1]
    assert again == long  # showing less has left no trace


@pytest.mark.parametrize(
    ("name", "word", "meant"),
    [
        ("expand.py", "--strenght=0.3", "--strength"),
        ("train_expand.py", "--lables", "--labels"),
        ("finetune", "--max_train_step", "--max_train_steps"),
    ],
)
def test_a_mistyped_option_ends_in_one_line_with_the_one_that_was_meant(name, word, meant, capsys):
    status, out, err = printed(COMMANDS[name], [word], capsys)
    assert status == 2 and not out and len(err.splitlines()) == 1
    assert err.startswith(f"error: unknown option {word}; did you mean {meant}?")


def test_a_wrong_value_ends_in_one_line(capsys):
    status, _, err = printed(expand.parse, ["--strength", "much"], capsys)
    assert status == 2 and "--strength" in err and "much" in err and len(err.splitlines()) == 1
