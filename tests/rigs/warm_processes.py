"""Real processes of expand.py that start in a tenth of a second, to be disturbed by tests.

A server process has imported torch, diffusers and this project, and forks a process per command,
so that hundreds of them can be started and killed. Run as a program this is that server: requests
and answers are JSON lines.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expansion.common import stopping

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    *(
        "torch",
        "torchvision",
        "tqdm",
        "expand",
        "expansion.generation.loop",
        "expansion.pictures.figures",
    ),
    *(
        "expansion.diffusion.img2img",
        "expansion.classifier.backbones",
        "distdiff.sampler",
        "dreamda.sampler",
    ),
    *("transformers.models.clip", "diffusers.models.unets.unet_2d_condition", "accelerate"),
    *("diffusers.models.autoencoders.autoencoder_kl", "expansion.diffusion.stable_diffusion"),
    *(
        "train_original",
        "train_expand",
        "expansion.training.trainer",
        "expansion.training.objectives",
    ),
)
NUM_DIGITS = 20  # that an Expansion makes
EXPAND = "import expand; from expansion.common.errors import run_command; run_command(expand.main)"
WRITING_EVENTS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.truncate"}


def environment() -> dict[str, str]:
    """For real processes: offline, one thread, this project importable."""
    fixed = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **fixed}


class ColdProcess:
    """A command in a new Python process, with stdout and stderr in the file `log`."""

    def __init__(self, command: Sequence[str], log: Path):
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=environment(),
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_default_signals,
            )
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Exit status, negative for the signal that killed it; None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float = 300) -> int:
        """Exit status.

        Raises:
            TimeoutError: It still runs after `seconds`.
        """
        return _wait(self, seconds)

    def send(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class WarmProcess(ColdProcess):
    """A process that the server forked."""

    def __init__(self, server: WarmProcesses, pid: int, log: Path):
        self.server, self.pid, self.log = server, pid, log
        self._status: int | None = None

    def poll(self) -> int | None:
        if self._status is None:
            self._status = self.server.ask({"poll": self.pid})
        return self._status


def _default_signals() -> None:
    """Undo that commands in the background of a script ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _wait(process: ColdProcess, seconds: float) -> int:
    until = time.monotonic() + seconds
    while (status := process.poll()) is None:
        if time.monotonic() > until:
            raise TimeoutError(f"process {process.pid} still runs after {seconds} s")
        time.sleep(0.005)
    return status


class WarmProcesses:
    """Starts processes by forking a warm one; a context manager, whose exit kills them all."""

    def __enter__(self) -> WarmProcesses:
        pipe = subprocess.PIPE
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.rigs.warm_processes"],
            cwd=ROOT,
            env=environment(),
            stdin=pipe,
            stdout=pipe,
            text=True,
        )
        assert self._server.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stdin.close()
        self._server.wait()

    def ask(self, request: Mapping[str, Any]) -> Any:
        """The server's answer to a request."""
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(
        self,
        arguments: Sequence[object],
        log: Path,
        code: str = EXPAND,
        die: tuple[Path, int, float] | None = None,
    ) -> WarmProcess:
        """Start a process.

        Args:
            arguments: Its command line.
            log: File for its stdout and stderr.
            code: What it runs.
            die: (folder, k, seconds): it kills itself that long after the k-th change of a file or
                folder in `folder`, which hits the moments between the steps of a write.
        """
        request = {"arguments": [str(a) for a in arguments], "log": str(log), "code": code}
        if die is not None:
            request["die"] = (str(die[0]), *die[1:])
        return WarmProcess(self, self.ask(request), log)


class Expansion:
    """Starts expansions of 20 digits in five batches into one folder."""

    def __init__(self, server: WarmProcesses, data_dir: Path, output: Path, log: Path):
        self.server, self.data_dir, self.output, self.log = server, data_dir, output, log

    def start(self, *options: object, code: str = "", log: str = "log.txt") -> WarmProcess:
        line = f"-d digits --data_dir {self.data_dir} --method img2img --shots 1 --batch_size 4"
        line += " --num_images_per_prompt 2 --num_inference_steps 4 --device cpu"
        arguments = [*line.split(), "--output_dir", self.output, *options]
        return self.server.start(arguments, self.log.with_name(log), f"{code}\n{EXPAND}")

    def run(self, *options: object, code: str = "") -> tuple[int, list[str]]:
        """(exit status, lines of output)."""
        status = self.start(*options, code=code).wait()
        return status, self.log.read_text().splitlines()

    @property
    def images(self) -> list[Path]:
        return sorted(self.output.glob("*/*.png"))


def die_at_change(folder: str, number: int, seconds: float) -> None:
    """Kill this process `seconds` after its `number`-th change below `folder`."""
    changes = iter(range(1, number + 1))

    def hook(event: str, details: tuple) -> None:
        if event not in WRITING_EVENTS or not str(details[0]).startswith(folder):
            return
        if event == "open" and not (details[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        if next(changes, None) == number:
            if seconds == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()

    sys.addaudithook(hook)


def _run_child(request: Mapping[str, Any]) -> None:
    """What a forked process does; it never returns."""
    status = 1
    try:
        os.setsid()
        _default_signals()
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv[1:] = request["arguments"]
        if "die" in request:
            die_at_change(*request["die"])
        exec(compile(request["code"], "<code>", "exec"), {"__name__": "__child__"})
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        # As at the end of a program: threads are awaited, buffers written, signals died of.
        threading._shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        stopping.die_if_due()
        os._exit(status)


def _poll(pid: int, living: set[int]) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        return None
    living.discard(pid)
    return os.waitstatus_to_exitcode(status)


def serve() -> None:
    """Answer requests until stdin ends."""
    for name in MODULES:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a thread would be lost by fork"
    living: set[int] = set()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            answer = _poll(request["poll"], living)
        else:
            answer = os.fork()
            if answer == 0:
                _run_child(request)
            living.add(answer)
        print(json.dumps(answer), flush=True)
    for pid in living:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    serve()
