"""Shared fixtures. Everything runs offline on the CPU with the embedded digits and checkpoint."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # quicker than 2 whenever anything else runs

import signal
import tempfile
from pathlib import Path

# What images contain is kept between commands; not between test runs.
CACHE = tempfile.TemporaryDirectory(prefix="expansion-cache-")
os.environ["XDG_CACHE_HOME"] = CACHE.name

# A script's background commands ignore Ctrl-C, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
from PIL import Image

pytest.register_assert_rewrite("tests.helpers")

ROOT = Path(__file__).resolve().parents[1]
TINY_MODEL = ROOT / "assets" / "tiny-sd-digits"


@pytest.fixture(scope="session")
def pipeline():
    """The embedded checkpoint; tests must leave it as they found it."""
    from expansion.diffusion.stable_diffusion import load_pipeline

    return load_pipeline(str(TINY_MODEL))


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory) -> Path:
    """A data folder in which the digits are unpacked: `<digits_dir>/digits/train/0/*.png`."""
    from expansion.data.datasets import load_dataset

    folder = tmp_path_factory.mktemp("data")
    load_dataset("digits", folder)
    return folder


@pytest.fixture(scope="session")
def guide_path(tmp_path_factory) -> Path:
    """An untrained classifier of the ten digits, saved as train_original.py saves one."""
    from expansion.classifier.backbones import Classifier, classifier_state

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("guide") / "model_best.pth.tar"
    torch.save(classifier_state(Classifier("resnet10_tiny", 10, 32)), path)
    return path


@pytest.fixture(scope="session")
def warm_processes():
    """Starts real processes in a tenth of a second."""
    from tests.rigs.warm_processes import WarmProcesses

    with WarmProcesses() as server:
        yield server


@pytest.fixture
def expansion(warm_processes, digits_dir, tmp_path):
    """Starts real expansions of 20 digits into one folder."""
    from tests.rigs.warm_processes import Expansion

    return Expansion(warm_processes, digits_dir, tmp_path / "out", tmp_path / "log.txt")


@pytest.fixture(scope="session")
def whole_set(warm_processes, digits_dir, tmp_path_factory) -> Path:
    """What every disturbed expansion must come to; read only."""
    from tests.rigs.warm_processes import NUM_DIGITS, Expansion

    folder = tmp_path_factory.mktemp("undisturbed")
    whole = Expansion(warm_processes, digits_dir, folder / "out", folder / "log.txt")
    assert whole.run()[0] == 0 and len(whole.images) == NUM_DIGITS
    return folder / "out"


@pytest.fixture
def make_folder(tmp_path):
    """Function that writes `<tmp>/<name>/<split>/<class>/<file>` images of one colour per class."""

    def make(name: str, tree: dict[str, dict[str, list[str]]], size: int = 32) -> Path:
        for split, classes in tree.items():
            for i, (class_name, files) in enumerate(classes.items()):
                folder = tmp_path / name / split / class_name
                folder.mkdir(parents=True)
                for j, file in enumerate(files):
                    colour = (40 * i % 256, 60 * j % 256, 128)
                    Image.new("RGB", (size, size), colour).save(folder / file)
        return tmp_path / name

    return make


@pytest.fixture
def calls_of():
    """Function from a module to a list that gets the number of rows of each of its calls."""
    hooks = []

    def watch(module: torch.nn.Module) -> list[int]:
        rows: list[int] = []

        def note(_, inputs, kwargs, output):
            rows.append(len((*inputs, *kwargs.values())[0]))

        hooks.append(module.register_forward_hook(note, with_kwargs=True))
        return rows

    yield watch
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="session")
def sdxl_dir(tmp_path_factory) -> Path:
    """A tiny Stable Diffusion XL of random weights, for images of 32 pixels; read only."""
    from tests.helpers.tiny_checkpoints import tiny_sdxl

    return tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="session")
def sdxl(sdxl_dir):
    """The tiny Stable Diffusion XL, loaded; tests must leave it as they found it."""
    from expansion.diffusion.stable_diffusion import load_pipeline

    return load_pipeline(str(sdxl_dir))
