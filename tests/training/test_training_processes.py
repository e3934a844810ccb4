"""Trainings in two processes under torchrun: shares of unequal size, and ends that both come to.

Run as a program this is one of the two processes; what it found is in `<folder>/<rank>.json`.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

import train_expand
import train_original
from expansion.classifier.recipe import Recipe
from expansion.common.errors import InputError
from expansion.data import batches
from expansion.data.datasets import load_dataset
from expansion.training.run_lock import only_training
from expansion.training.softmatch import SoftMatch, SoftMatchWeights
from expansion.training.softmatch_config import SoftMatchConfig
from expansion.training.trainer import Trainer
from tests.rigs.warm_processes import ColdProcess

pytestmark = pytest.mark.slow  # whole trainings in several processes

CLASSES = ("ant", "bee", "cat")
SIZES = (7, 1, 2, 5)  # images of a batch


def weights_of(accelerator: Accelerator) -> list[list[float]]:
    """Weights of this process's images, batch by batch."""
    softmatch = SoftMatchWeights(3, SoftMatchConfig(), torch.full((3,), 1 / 3))
    found = []
    for number, size in enumerate(SIZES):
        generator = torch.Generator().manual_seed(number)
        rows = (3 * torch.randn(size, 3, generator=generator)).softmax(dim=1)
        mine = rows[accelerator.process_index :: accelerator.num_processes]
        found.append(softmatch(mine).tolist())
    return found


def losses_of(accelerator: Accelerator, root: Path) -> list[float]:
    """Losses, of all processes, with 8 labelled and 7 unlabelled images a step."""
    records = load_dataset(str(root)).records("train")
    recipe = Recipe(arch="resnet10_tiny", image_size=32, resize_size=36, workers=0, batch_size=8)
    config = SoftMatchConfig(unlabeled_ratio=7 / 8)
    objective = SoftMatch(records[8:16], records[:8], config, recipe, num_classes=3, seed=1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))  # nothing that mixes images
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    model, optimizer = accelerator.prepare(model, optimizer)
    found = []
    for batch in objective.batches([8] * 4, 0, accelerator):
        loss, _ = objective.loss(model, batch, 0.0)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        found.append(accelerator.reduce(loss.detach(), "mean").item())
    return found


def train(root: Path, runs: str, *options: object) -> str:
    """The error's message, or nothing."""
    line = f"-d {root} --checkpoint_dir {root.parent / runs} -a resnet10_tiny --image_size 32"
    line += " --resize_size 36 --workers 0 --seeds 1 --batch_size 4"
    words = [*line.split(), *map(str, options)]
    script = train_expand if "--labels" in words else train_original
    try:
        script.main(words)
    except InputError as error:
        return str(error)
    return ""


def main(root: Path) -> None:
    """All that one of two processes does."""
    accelerator = Accelerator(cpu=True)
    batches.EVAL_BATCH = 4  # 9 test images: 5 in two batches, 4 in one
    folder = root.parent
    few = ("--unlabeled_dir", folder / "few", "--epochs", 2)
    amst = ("--labels", "amst", "--expanded_dir", folder / "set_2x", "--epochs", 1)
    soft = ("--labels", "soft", "--expanded_dir", folder / "one", "--epochs", 1)
    step = Trainer._step

    def failing(self, number, batch):
        loss, hits = step(self, number, batch)
        alone = number == 2 and accelerator.process_index == 1
        return (loss * math.nan if alone else loss), hits

    found = {
        "weights": weights_of(accelerator),
        "losses": losses_of(accelerator, root),
        "seven": train(root, "seven", "--unlabeled_dir", folder / "many", "--epochs", 2,
                       "--batch_size", 14, "--unlabeled_ratio", 0.5),
        "one": train(root, "one_unlabeled", *few),
        "amst": train(root, "amst", *amst),
        "soft": train(root, "soft", *soft, "--warmup_epochs", 1),
        "held": train(root, "held"),
    }  # fmt: skip
    Trainer._step = failing
    found["nan"] = train(root, "nan", "--epochs", 2)
    (folder / f"{accelerator.process_index}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A dataset, unlabelled images, and expanded sets of 18 images and of one."""
    folder, draw = tmp_path_factory.mktemp("processes"), np.random.default_rng(0)

    def noise(*place: str) -> None:
        path = folder.joinpath(*place)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (36, 36, 3), dtype=np.uint8)).save(path)

    rows = []
    for name in CLASSES:
        for i in range(9):
            noise("set", "train" if i < 6 else "test", name, f"{i}.png")
            noise("many", f"{name}{i}.png")
            if i < 6:
                noise("set_2x", name, f"{i}.png")
                row = {"class": name, "source": f"train/{name}/{i}.png", "variant": 0}
                rows.append(row | {"file_name": f"{name}/{i}.png"})
    noise("few", "0.png")
    noise("one", "ant", "0.png")
    for place, content in (("set_2x", rows), ("one", rows[:1])):
        text = "".join(json.dumps(row) + "\n" for row in content)
        (folder / place / "manifest.0-of-1.1.jsonl").write_text(text)
    return folder / "set"


@pytest.fixture(scope="module")
def found(root) -> list[dict]:
    """What both processes found; one launch serves all tests."""
    held = root.parent / "held/set/resnet10_tiny_unpretrained_lr0.1/seed1"
    held.mkdir(parents=True)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    with only_training(held):
        process = ColdProcess([*command, __file__, str(root)], root.parent / "log.txt")
        assert process.wait(seconds=300) == 0, process.log.read_text()
    return [json.loads((root.parent / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_weights_do_not_depend_on_who_has_which_images(found):
    alone = weights_of(Accelerator())
    for number, size in enumerate(SIZES):
        both = [0.0] * size
        both[0::2], both[1::2] = (each["weights"][number] for each in found)
        assert both == pytest.approx(alone[number], abs=1e-6)


def test_seven_unlabelled_images_a_step_teach_two_processes_what_they_teach_one(root, found):
    alone = losses_of(Accelerator(), root)
    for each in found:
        assert each["losses"] == pytest.approx(alone, rel=1e-5)
    assert len(set(alone)) == 4


@pytest.mark.parametrize("run", ["seven", "one", "amst", "soft"])
def test_runs_end_whatever_the_shares(root, found, run: str):
    """Also where epochs end in smaller batches, and where a process has no image of its own."""
    assert [each[run] for each in found] == ["", ""]
    (results,) = (root.parent / ("one_unlabeled" if run == "one" else run)).rglob("results.yaml")
    assert "last_accuracy" in results.read_text()


def test_a_loss_that_is_nan_in_one_process_stops_both(root, found):
    messages = [each["nan"] for each in found]
    assert messages[0] == messages[1]
    assert messages[0].startswith("training has stopped: the loss of step 3 is nan;")
    assert not list((root.parent / "nan").rglob("results.yaml"))


def test_a_folder_in_training_refuses_both(root, found):
    messages = [each["held"] for each in found]
    assert messages[0] == messages[1] and "is being trained by process" in messages[0]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
