"""Runs the commands of a study in worker processes side by side, one for each device.

A worker loads torch once and runs one command after another. Each line that a command prints
appears with the command's title in front. On a terminal, the last line shows the progress bars.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import IO, Any

from expansion.common.config import PROJECT_ROOT
from expansion.common.stopping import StopRequest, finishing_first
from expansion.study.steps import Command, Stage
from expansion.study.worker import MARK

WAIT_SECONDS = 0.2  # between checks for a signal
END_SECONDS = 10.0  # that a worker may take to end before it is killed
# Beginnings of lines that are not shown: the study says them once, or the manifests hold them.
QUIET = ("skipped: ", "mean ", "SIGINT: finishing", "SIGTERM: finishing")
LAST_LINES = 5  # lines of a failed command that are shown again


class Failed(RuntimeError):
    """A command failed, or a signal stopped it (`stopped`); `status` is the exit status."""

    def __init__(self, status: int, stopped: bool = False):
        super().__init__(f"exit status {status}")
        self.status, self.stopped = status, stopped


def _exit_status(code: int) -> int:
    """The exit status, as in shells, of a process that ended without an answer; never 0."""
    return 128 - code if code < 0 else code or 1


class Worker:
    """A process that runs functions of this project, one at a time; see `expansion.study.worker`.

    Args:
        environ: Further environment variables.
        events: Receives (worker, kind, value), where kind is "line" or "bar" for printed text,
            "answer" for the result of a function, and at the end "gone" with the exit status.
    """

    def __init__(self, environ: Mapping[str, str], events: queue.Queue):
        paths = [str(PROJECT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environ = {**environ, "PYTHONPATH": os.pathsep.join(paths)}
        pipe = subprocess.PIPE
        # In a session of its own, so that Ctrl-C reaches it only through this process.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "expansion.study.worker"],
            env={**os.environ, **self.environ},
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.busy_with: Command | None = None
        self.last_lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self.bar = ""
        self._events = events
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, call: str, arguments: Sequence[Any]) -> None:
        """Let the process call a function, "module:function"; the answer comes as an event.

        The arguments must be JSON values.
        """
        request = json.dumps({"call": call, "arguments": list(arguments)})
        with contextlib.suppress(BrokenPipeError):  # if it has ended, there is an event for that
            self.process.stdin.write(request.encode() + b"\n")
            self.process.stdin.flush()

    def send(self, number: int) -> None:
        """Send a signal to the process, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def close(self) -> None:
        """Let the process end when it has nothing left to do."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def _read(self) -> None:
        text, kind = "", "line"
        output: Any = self.process.stdout
        while chunk := output.read1(1 << 16):
            text += chunk.decode(errors="backslashreplace")
            *whole, text = re.split(r"(?<=[\r\n])", text)
            for piece in whole:
                printed, mark, answer = piece.rstrip("\r\n").partition(MARK)
                # Text after a carriage return belongs to a bar, which overwrites itself.
                is_bar = piece.endswith("\r") or kind == "bar"
                kind = "bar" if piece.endswith("\r") else "line"
                if printed or not mark:
                    self._events.put((self, "bar" if is_bar else "line", printed))
                if mark:
                    self._events.put((self, "answer", json.loads(answer)))
        if text:
            self._events.put((self, "line", text))
        self._events.put((self, "gone", self.process.wait()))


class Runner:
    """Runs stages on workers; a context manager that ends all workers at its exit.

    Args:
        environs: Environment variables of each worker, which choose its device.
        out: Stream for all output.
        bars: Whether to show progress bars; `out` must be a terminal.
        said: Lines that were shown before, which commands need not repeat.
        brief: Whether to show the titles of commands alone, unless one fails.
        keep_going: Whether the other commands of a stage are run though one fails.

    Attributes:
        failures: With `keep_going`: command that failed -> the last line that it printed.
    """

    def __init__(
        self,
        environs: Sequence[Mapping[str, str]],
        out: IO[str],
        bars: bool,
        said: Collection[str] = (),
        brief: bool = False,
        keep_going: bool = False,
    ):
        self.failures: dict[Command, str] = {}
        self._keep_going = keep_going
        self._environs, self._out, self._bars, self._said = list(environs), out, bars, said
        self._brief = brief
        self._events: queue.Queue = queue.Queue()
        self._workers: list[Worker] = []

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            if worker.busy_with is not None:
                worker.send(signal.SIGTERM)
            worker.close()
        for worker in self._workers:
            try:
                worker.process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()

    def set_processes(self, environs: Sequence[Mapping[str, str]]) -> None:
        """Change the environment variables of all workers.

        For a worker that runs already they only change how its device is named in the output.
        """
        self._environs = list(environs)
        for worker, environ in zip(self._workers, environs, strict=False):
            worker.environ |= environ

    def ask(self, call: str, *arguments: Any) -> Any:
        """Let the first worker call a function and return its result.

        Args:
            call: The function, as "module:function".
            arguments: JSON values.

        Raises:
            Failed: The function failed, after printing its error, or a signal stopped it.
        """
        worker = self._worker(0)
        worker.busy_with = Command(call, call, ())
        worker.ask(call, arguments)
        with finishing_first() as stop:
            for asked, kind, value in self._next_events(stop):
                if kind == "answer" and asked is worker:
                    worker.busy_with = None
                    if value["status"]:
                        raise Failed(value["status"], stopped=stop())
                    return value["result"]
                if kind == "gone":
                    raise Failed(stop.exit_status if stop() else 1, stopped=stop())
                if kind == "line":
                    self._say(value)

    def run(self, stage: Stage) -> None:
        """Run all commands of a stage, as many at a time as there are devices.

        Raises:
            Failed: A command failed, and the others were stopped, unless the runner keeps going;
                or a signal stopped them all.
        """
        waiting = collections.deque(stage.commands)
        num_running, failed = 0, 0
        num_workers = min(len(waiting), len(self._environs)) if stage.side_by_side else 1
        with finishing_first() as stop:
            # Each worker gets a command, and another one whenever it is done.
            for number in range(num_workers):
                num_running += self._start(self._worker(number), waiting)
            for worker, kind, value in self._next_events(stop):
                if kind == "line":
                    self._show_line(worker, value, titled=stage.side_by_side)
                elif kind == "bar":
                    worker.bar = value
                    self._draw_bars()
                elif kind in ("answer", "gone") and worker.busy_with is not None:
                    status = value["status"] if kind == "answer" else _exit_status(value)
                    num_running -= 1
                    if status and not failed and not stop():
                        self._report(worker, status)
                        if self._keep_going:
                            self.failures[worker.busy_with] = self._reason(worker, status)
                        else:
                            failed = status
                            self._stop_others(worker)
                    worker.busy_with, worker.bar = None, ""
                    self._draw_bars()
                    if kind == "gone" and self._keep_going and not stop():
                        worker = self._replaced(worker)
                    if waiting and not failed and not stop():
                        self._out.write("" if stage.side_by_side else "\n")
                        num_running += self._start(worker, waiting)
                if not num_running:
                    break
        if stop():
            raise Failed(stop.exit_status, stopped=True)
        if failed:
            raise Failed(failed)

    def _next_events(self, stop: StopRequest) -> Iterator[tuple[Worker, str, Any]]:
        """Events as they come; a first signal to this process is passed on to busy workers."""
        forwarded = False
        while True:
            if stop() and not forwarded:
                forwarded = True
                for worker in self._workers:
                    if worker.busy_with is not None:
                        worker.send(stop.signal)
            with contextlib.suppress(queue.Empty):
                yield self._events.get(timeout=WAIT_SECONDS)

    def _worker(self, number: int) -> Worker:
        while len(self._workers) <= number:
            environ = dict(self._environs[len(self._workers)])
            if self._bars:
                environ |= {"STUDY_BARS": "1", "COLUMNS": "60"}
            self._workers.append(Worker(environ, self._events))
        return self._workers[number]

    def _replaced(self, gone: Worker) -> Worker:
        """A new worker in the place of one whose process has ended."""
        number = self._workers.index(gone)
        self._workers[number] = Worker(gone.environ, self._events)
        return self._workers[number]

    def _reason(self, worker: Worker, status: int) -> str:
        """Why a command failed, in a line: the last that it printed, or its status."""
        last = worker.last_lines[-1].strip() if worker.last_lines else ""
        return last or f"exit status {status}"

    def _start(self, worker: Worker, waiting: collections.deque[Command]) -> int:
        """Give a worker the next command; returns the number of commands it got, 0 or 1."""
        if not waiting:
            return 0
        command = waiting.popleft()
        worker.busy_with, worker.bar = command, ""
        worker.last_lines.clear()
        gpu = worker.environ.get("CUDA_VISIBLE_DEVICES")
        several = gpu is not None and len(self._environs) > 1
        prefix = f"CUDA_VISIBLE_DEVICES={gpu} " if several else ""
        self._say(f"  {command.title}" if self._brief else f"$ {prefix}{command.plain}")
        worker.ask(command.call, [list(command.arguments)])
        return 1

    def _show_line(self, worker: Worker, line: str, titled: bool) -> None:
        if worker.busy_with is None:
            return  # libraries may print at the end of the process
        worker.last_lines.append(line)
        if line in self._said or self._brief:
            return
        if not titled:
            self._say(line)
        elif line.strip() and not line.startswith(QUIET):
            self._say(f"  {worker.busy_with.title}: {line}")

    def _report(self, worker: Worker, status: int) -> None:
        killed = ", killed; perhaps memory ran out" if status == 128 + signal.SIGKILL else ""
        self._say(f"failed with status {status}{killed}: {worker.busy_with.plain}")
        for line in worker.last_lines:
            self._say(f"  {line}")

    def _stop_others(self, failed: Worker) -> None:
        for worker in self._workers:
            if worker is not failed and worker.busy_with is not None:
                worker.send(signal.SIGTERM)

    def _say(self, line: str) -> None:
        clear = "\r\x1b[K" if self._bars else ""
        self._out.write(f"{clear}{line}\n")
        self._out.flush()
        self._draw_bars()

    def _draw_bars(self) -> None:
        if not self._bars:
            return
        bars = [worker.bar.strip() for worker in self._workers if worker.bar]
        width = max(20, shutil.get_terminal_size().columns - 1) // max(1, len(bars))
        line = " ".join(bar[: width - 1].ljust(width - 1) for bar in bars)
        self._out.write(f"\r\x1b[K{line.rstrip()}")
        self._out.flush()
