"""Ctrl-C, which a terminal sends to a whole group: loops end, and what scripts began with them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.rigs.warm_processes import _default_signals, environment

COMMAND = """
import sys, time
from expansion.common.errors import run_command
def main():
    open(sys.argv[1], "w").close()
    time.sleep(60)
run_command(main)
"""
SCRIPT = """
set -euo pipefail
. {root}/scripts/stopping.bash
{body}
echo "went on"
"""
BODIES = {
    "two in the background": (
        '"$PYTHON" command.py 1 & one=$!\n"$PYTHON" command.py 2 & wait "$one"; wait "$!"'
    ),
    "one attended": 'attended "$PYTHON" command.py 1',
    "foreground and background": '"$PYTHON" command.py 1 &\n"$PYTHON" command.py 2',
}


@pytest.fixture
def shell(tmp_path):
    """Starts bash in a session of its own, with what the text says."""
    (tmp_path / "command.py").write_text(COMMAND)
    started = []

    def start(text: str, num_commands: int) -> subprocess.Popen:
        process = subprocess.Popen(
            ["bash", "-c", text],
            cwd=tmp_path,
            env={**environment(), "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=_default_signals,
        )
        started.append(process)
        names = [tmp_path / str(i + 1) for i in range(num_commands)]
        until = time.monotonic() + 30
        while not all(name.exists() for name in names):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def lines_of(process: subprocess.Popen) -> list[str]:
    """All that was printed; it ends when every process has closed the pipe."""
    return process.communicate(timeout=20)[0].splitlines()


def test_ctrl_c_ends_a_loop_of_commands(shell):
    process = shell('for i in 1 2 3; do "$PYTHON" command.py $i; done; echo "went on"', 1)
    os.killpg(process.pid, signal.SIGINT)
    assert lines_of(process) == ["stopped by SIGINT; run the same command to go on"]
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_shell_sees_the_usual_status(shell, number, status):
    text = '"$PYTHON" command.py 1 & trap "kill -s {0} $!" USR1; wait $!; wait $!; echo "status $?"'
    process = shell("set -m; " + text.format(number.name.removeprefix("SIG")), 1)
    process.send_signal(signal.SIGUSR1)
    name = number.name
    lines = [line for line in lines_of(process) if line.startswith(("stopped", "status"))]
    assert lines == [f"stopped by {name}; run the same command to go on", f"status {status}"]


@pytest.mark.parametrize("body", BODIES, ids=lambda name: name.replace(" ", "-"))
@pytest.mark.parametrize("looped", [False, True])
def test_ctrl_c_ends_a_script_and_all_that_it_started(shell, body, looped):
    text = SCRIPT.format(root=ROOT, body=BODIES[body])
    if looped:
        text = f"for i in 1 2 3; do bash -c '{text}'; done; echo went on"
    process = shell(text, 1 if "attended" in body else 2)
    os.killpg(process.pid, signal.SIGINT)
    lines = lines_of(process)
    assert len(lines) == (1 if "attended" in body else 2)
    assert all(line.startswith("stopped by SIG") for line in lines), lines
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize("body", ["two in the background", "one attended"])
def test_sigterm_to_a_script_alone_ends_all_that_it_started(shell, body):
    process = shell(SCRIPT.format(root=ROOT, body=BODIES[body]), 1 if "attended" in body else 2)
    begun = time.monotonic()
    process.terminate()
    lines = lines_of(process)
    assert process.returncode == -signal.SIGTERM and time.monotonic() - begun < 15
    assert set(lines) == {"stopped by SIGTERM; run the same command to go on"}


def test_scripts_with_commands_in_the_background_end_them():
    background = re.compile(r"[^&>]& *($|[a-z])", re.M)  # not && and 2>&1
    scripts = {p: p.read_text() for p in Path(ROOT, "scripts").rglob("*.sh")}
    found = [path for path, text in scripts.items() if background.search(text)]
    assert found and all(". scripts/stopping.bash" in scripts[path] for path in found)
