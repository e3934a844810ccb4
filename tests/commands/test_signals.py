"""SIGTERM, Ctrl-C and SIGKILL to real processes: expansions, several under torchrun, trainings."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from expansion.common.config import load_yaml
from expansion.store.manifest import read_manifest
from tests.rigs.fault_rig import compare
from tests.rigs.warm_processes import ColdProcess

pytestmark = pytest.mark.slow  # real processes, and signals to them

# What a command dies of, so that a shell ends its loop; `$?` is 130 or 143.
SIGNALS = pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, -signal.SIGTERM)]
)

# Every batch takes 0.2 s longer, so that a signal can hit one of five.
SLOWLY = """
import time
from expansion.diffusion.img2img import Img2ImgSampler
sample = Img2ImgSampler.sample
def slowly(*arguments):
    time.sleep(DELAY)
    return sample(*arguments)
Img2ImgSampler.sample = slowly
"""


# The second batch never ends.
STUCK = "delays = iter((0, 600))\n"


def wait_for(condition, process) -> None:
    while not condition():
        assert process.poll() is None, process.log.read_text()
        time.sleep(0.005)


def begun(expansion) -> bool:
    """Whether the first batch is written, so that the second one is being computed."""
    manifests = expansion.output.glob("manifest.*")
    return any(b'{"file_name"' in path.read_bytes() for path in manifests)


@SIGNALS
def test_a_signal_lets_the_batch_in_flight_be_finished(expansion, whole_set, number, status):
    process = expansion.start(code=SLOWLY.replace("DELAY", "0.2"))
    wait_for(lambda: begun(expansion), process)
    process.send(number)
    process.send(number)  # as terminals and launchers do
    assert process.wait() == status
    lines, count = expansion.log.read_text().splitlines(), len(expansion.images)
    name = signal.Signals(number).name
    assert lines == [
        f"{name}: finishing the images in flight; once more ends at once",
        (
            f"stopped by {name}: {count} images written; shard 0 of 1 has {count} of 20 images, "
            f"{20 - count} are missing; run the same command to go on"
        ),
    ]
    assert 4 <= count < 20 and count % 4 == 0
    assert len(read_manifest(expansion.output)) == count
    assert not list(expansion.output.rglob(".*.partial"))
    listed = (expansion.output / "metadata.jsonl").read_text().splitlines()
    assert len(listed) == count
    assert expansion.run()[0] == 0 and not +compare(expansion.output, whole_set)


def test_a_signal_during_the_last_batch_changes_nothing(expansion, whole_set):
    process = expansion.start(code=SLOWLY.replace("DELAY", "0.3"))
    wait_for(lambda: len(expansion.images) == 16, process)
    process.send(signal.SIGTERM)
    assert process.wait() == 0 and not +compare(expansion.output, whole_set)


def test_a_second_signal_ends_at_once(expansion, whole_set):
    process = expansion.start(code=SLOWLY.replace("DELAY", "next(delays)") + STUCK)
    wait_for(lambda: begun(expansion), process)
    time.sleep(0.5)  # from the first batch's rows to the second batch
    process.send(signal.SIGTERM)
    time.sleep(1.2)
    assert process.poll() is None
    process.send(signal.SIGTERM)
    assert process.wait(seconds=10) == -signal.SIGTERM
    lines = expansion.log.read_text().splitlines()
    assert lines[1:] == ["stopped by SIGTERM; run the same command to go on"]
    assert expansion.run()[0] == 0 and not +compare(expansion.output, whole_set)


@SIGNALS
def test_a_signal_while_weights_load_ends_at_once_in_one_line(expansion, number, status):
    loading = "import time\nfrom expansion.diffusion import stable_diffusion\ndef load(*_):\n"
    loading += (
        "    print('loading', flush=True); time.sleep(60)\nstable_diffusion.load_pipeline = load"
    )
    process = expansion.start(code=loading)
    wait_for(lambda: expansion.log.exists() and "loading" in expansion.log.read_text(), process)
    process.send(number)
    assert process.wait(seconds=10) == status
    name = signal.Signals(number).name
    expected = ["loading", f"stopped by {name}; run the same command to go on"]
    assert expansion.log.read_text().splitlines() == expected
    assert not expansion.output.exists()


@SIGNALS
def test_a_signal_while_libraries_are_imported_ends_in_one_line(expansion, number, status):
    """A process as a user starts it, stopped while it imports torch."""
    places = ["--data_dir", expansion.data_dir, "--output_dir", expansion.output]
    line = ["expand.py", "-d", "digits", "--method", "img2img", "--device", "cpu", *places]
    process = ColdProcess([str(part) for part in line], expansion.log)
    libraries = re.compile("libtorch|safetensors")
    maps = Path(f"/proc/{process.pid}/maps")
    if not maps.exists():
        pytest.skip("what a process has loaded is read from /proc")
    wait_for(lambda: libraries.search(maps.read_text()), process)
    process.send(number)
    assert process.wait(seconds=20) == status
    name = signal.Signals(number).name
    assert expansion.log.read_text() == f"stopped by {name}; run the same command to go on\n"


def test_torchrun_hands_the_signal_on_and_both_processes_finish(expansion, whole_set):
    program = expansion.log.with_name("slow.py")
    program.write_text(
        SLOWLY.replace("DELAY", "0.5") + "import expand\nfrom expansion.common.errors import "
        "run_command\nrun_command(expand.main)\n"
    )
    line = f"-d digits --data_dir {expansion.data_dir} --method img2img --shots 1 --batch_size 1"
    line += " --num_images_per_prompt 2 --num_inference_steps 4 --device cpu"
    line += f" --output_dir {expansion.output}"
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", str(program), *line.split()]
    process = ColdProcess(launcher, expansion.log)
    wait_for(lambda: len(list(expansion.output.glob("manifest.*"))) == 2, process)
    process.send(signal.SIGTERM)
    assert process.wait(seconds=60) != 0
    text = expansion.log.read_text()
    stopped = re.findall(r"stopped by SIGTERM: (\d+) images written; shard (\d) of 2", text)
    assert sorted(shard for _, shard in stopped) == ["0", "1"], text
    assert sum(int(count) for count, _ in stopped) == len(read_manifest(expansion.output)) < 20
    assert "SIGTERM: finishing" in text and not list(expansion.output.rglob(".*.partial"))


class Training:
    """Starts a training of six steps on ten digits."""

    def __init__(self, server, script: str, options: str, folder: Path):
        self.server, self.script, self.options, self.folder = server, script, options, folder

    def start(self, name: str, code: str = "", die=None):
        line = "-d digits --shots 1 --seeds 1 --workers 0 -a resnet10_tiny --image_size 32"
        line += (
            f" --resize_size 32 --budget steps --max_train_steps 6 --eval_steps 2 {self.options}"
        )
        line += f" --checkpoint_dir {self.folder / name}"
        command = f"{code}\nimport {self.script} as script\n"
        command += "from expansion.common.errors import run_command\n"
        die = die and (self.folder / name, *die)
        log = self.folder / f"{name}.txt"
        return self.server.start(line.split(), log, f"{command}run_command(script.main)", die)

    def outcome(self, name: str) -> tuple:
        """What must not depend on how the training went on."""
        (run_dir,) = (path.parent for path in (self.folder / name).rglob("results.yaml"))
        results = dict(load_yaml(run_dir / "results.yaml").values)
        results.pop("seconds")
        states = []
        for file in ("checkpoint.pth.tar", "model_best.pth.tar"):
            state = torch.load(run_dir / file, weights_only=True)
            weights = [value.double().sum().item() for value in state["state_dict"].values()]
            states.append((state["step"], state["history"], weights))
        return results, states, (run_dir / "log.txt").read_bytes()


@pytest.fixture(params=["train_original", "train_expand"])
def training(request, warm_processes, digits_dir, whole_set, tmp_path) -> Training:
    options = f"--data_dir {digits_dir}"
    if request.param == "train_expand":
        options += f" --expanded_dir {whole_set} --batch_size 8"
    return Training(warm_processes, request.param, options, tmp_path)


def test_trainings_that_are_killed_go_on_to_the_same_result(training):
    assert training.start("whole").wait() == 0
    moments, kills = random.Random(1), 0
    for number in (12, 27, 28):  # the last two between the files of the last evaluation
        name = f"killed{number}"
        for step in (number, moments.randint(1, 15)):
            kills += training.start(name, die=(step, 0)).wait() == -signal.SIGKILL
        assert training.start(name).wait() == 0
        assert training.outcome(name) == training.outcome("whole"), number
    assert kills >= 4


@SIGNALS
def test_a_signal_to_training_and_its_loading_processes_is_one_line_too(training, number, status):
    """As from a terminal or SLURM: every process of the group gets it."""
    more = "import sys\nsys.argv += '--workers 2 --max_train_steps 3000 --eval_steps 3'.split()"
    process = training.start("workers", more)
    wait_for(lambda: any((training.folder / "workers").rglob("checkpoint.pth.tar")), process)
    os.killpg(process.pid, number)
    assert process.wait(seconds=20) == status
    name = signal.Signals(number).name
    assert process.log.read_text() == f"stopped by {name}; run the same command to go on\n"


@SIGNALS
def test_a_signal_ends_a_training_in_one_line(training, number, status):
    slowly = "import time\nfrom expansion.training.trainer import Trainer\nstep = Trainer._step\n"
    slowly += "def slow(*arguments):\n    time.sleep(0.2)\n    return step(*arguments)\n"
    slowly += "Trainer._step = slow"
    process = training.start("stopped", slowly)
    wait_for(lambda: any((training.folder / "stopped").rglob("checkpoint.pth.tar")), process)
    process.send(number)
    assert process.wait(seconds=20) == status
    name = signal.Signals(number).name
    assert process.log.read_text().splitlines() == [
        f"stopped by {name}; run the same command to go on"
    ]
    assert training.start("stopped").wait() == 0
    assert training.start("whole").wait() == 0
    assert training.outcome("stopped") == training.outcome("whole")
