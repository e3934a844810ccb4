"""Studies of a few digits, put together without running anything."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from expansion.common.config import import_object
from expansion.study import plan
from expansion.study.choices import Machine, choose_network
from expansion.study.config import read_command_line, settle
from expansion.study.photos import look_at
from expansion.study.steps import stages
from tests.helpers.run_folders import write_arm, write_run

CPU = Machine([])


@pytest.fixture(scope="session")
def few_digits_dir(tmp_path_factory, digits_dir) -> Path:
    """A data folder with a few of the digits, which are looked at in no time."""
    folder = tmp_path_factory.mktemp("few")
    for split, number in (("train", 20), ("test", 1)):
        for place in sorted((digits_dir / "digits" / split).iterdir()):
            (folder / "digits" / split / place.name).mkdir(parents=True)
            for path in sorted(place.iterdir())[:number]:
                shutil.copy(path, folder / "digits" / split / place.name)
    return folder


@pytest.fixture
def make_study(few_digits_dir):
    """Function that makes a study of the digits, and its stages, from a command line."""

    def make(*words: str, shards: int = 1, machine: Machine = CPU):
        words = words or ("digits",)
        asked = read_command_line([*words, "--data_dir", str(few_digits_dir)], "")
        photos = look_at(settle(asked, "tiny").config)
        settings = plan.decide(asked, photos, None)
        network = choose_network(settings, photos.side, len(photos.train), machine)
        study = plan.study_of(settings, photos, Path("out"), network)
        return study, stages(study, shards)

    return make


def plain(todo, stage: int) -> list[str]:
    return [command.plain for command in todo[stage].commands]


def options_of(command: str) -> dict[str, list[str]]:
    """Option -> its values."""
    found: dict[str, list[str]] = {}
    for word in shlex.split(command)[2:]:
        if word.startswith("-"):
            found[word] = values = []
        else:
            values.append(word)
    return found


class HereAlone:
    """In the place of a Runner: answers in this process and runs nothing."""

    def __init__(self, *_: object):
        pass

    def __enter__(self) -> HereAlone:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set_processes(self, environs: object) -> None:
        pass

    def ask(self, call: str, *arguments: object) -> object:
        return import_object(call)(*arguments)
