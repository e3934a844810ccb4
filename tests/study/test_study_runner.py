"""Commands of a study run side by side in processes that load torch once."""

from __future__ import annotations

import io
import os
import signal
import threading

import pytest

from expansion.study.runner import Failed, Runner
from expansion.study.steps import Command, Stage
from tests.helpers.study_calls import wait_for

CALL = "tests.helpers.study_calls:main"


def stage(*commands: str, side_by_side: bool = True) -> Stage:
    """Commands that do what their words say, called "0", "1", ..."""
    made = (Command(str(i), CALL, tuple(text.split(" "))) for i, text in enumerate(commands))
    return Stage("a stage", tuple(made), side_by_side)


@pytest.fixture
def run_stage():
    """Function that runs a stage on workers; returns the lines of output."""

    def run(*stages: Stage, workers: int = 2, bars: bool = False) -> list[str]:
        out = io.StringIO()
        run.out = out
        with Runner([{}] * workers, out, bars) as runner:
            for each in stages:
                runner.run(each)
        return out.getvalue().splitlines()

    return run


def test_one_process_runs_one_command_after_another(run_stage, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    lines = run_stage(stage(f"mark={first}", f"mark={second}"), workers=1)
    assert first.read_text() == second.read_text() != str(os.getpid())
    assert lines == [f"$ python -m tests.helpers.study_calls mark={p}" for p in (first, second)]


def test_two_processes_work_at_the_same_time(run_stage, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    run_stage(stage(f"mark={one} wait_for={other}", f"mark={other} wait_for={one}"))
    assert one.read_text() != other.read_text()


def test_what_commands_print_bears_their_title_and_comes_before_the_next_command(run_stage):
    lines = run_stage(stage("say=a say=b", "say=c"), workers=1)
    assert [line.split("study_calls")[-1] for line in lines] == [
        " say=a say=b", "  0: a", "  0: b", " say=c", "  1: c"
    ]  # fmt: skip


def test_what_was_said_before_is_not_repeated_by_every_command():
    out = io.StringIO()
    with Runner([{}], out, False, said={"known"}) as runner:
        runner.run(stage("say=known say=new"))
    assert out.getvalue().splitlines()[1:] == ["  0: new"]


def test_a_stage_of_results_is_printed_as_it_is_in_order(run_stage):
    both = stage("say=table say= say=end", "say=page", side_by_side=False)
    lines = [line for line in run_stage(both) if not line.startswith("$")]
    assert lines == ["table", "", "end", "", "page"]


def test_a_command_notes_the_command_line_that_it_stands_for(run_stage, tmp_path):
    run_stage(stage(f"argv={tmp_path / 'argv'}"))
    assert (tmp_path / "argv").read_text() == (
        f"python -m tests.helpers.study_calls argv={tmp_path / 'argv'}"
    )


def test_a_failed_command_ends_the_study_and_stops_the_others_cleanly(run_stage, tmp_path):
    busy = tmp_path / "busy"
    with pytest.raises(Failed) as failure:
        run_stage(
            stage(f"work={busy}", f"wait_for={busy} say=before refuse=too_bad", "mark=never"),
            stage("mark=never"),
        )
    assert failure.value.status == 2
    lines = run_stage.out.getvalue().splitlines()
    at = lines.index("failed with status 2: python -m tests.helpers.study_calls "
                     f"wait_for={busy} say=before refuse=too_bad")  # fmt: skip
    assert lines[at + 1 : at + 3] == ["  before", "  error: too_bad"]
    assert (tmp_path / "busy.finished").exists()
    assert not any("mark=never" in line for line in lines)


@pytest.mark.parametrize(("words", "status", "told"), [
    ("status=1", 1, ""), ("break=defect", 1, "RuntimeError: defect"),
    ("die", 137, "perhaps memory ran out"),
])  # fmt: skip
def test_every_kind_of_bad_end_is_told(run_stage, words, status, told):
    with pytest.raises(Failed) as failure:
        run_stage(stage(words))
    assert failure.value.status == status
    out = run_stage.out.getvalue()
    assert (
        f"failed with status {status}" in out
        and f"python -m tests.helpers.study_calls {words}" in out
    )
    assert told in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_all_commands_finish_what_is_in_flight(run_stage, tmp_path, number, capfd):
    works = [tmp_path / "one", tmp_path / "other"]

    def interrupt() -> None:
        for path in works:
            wait_for(path)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Failed) as failure:
        run_stage(stage(*(f"work={path}" for path in works), "say=never"))
    assert failure.value.status == 128 + number
    assert all((tmp_path / f"{path.name}.finished").exists() for path in works)
    assert "say=never" not in run_stage.out.getvalue()
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)


def test_progress_bars_share_the_last_line_of_a_terminal(run_stage, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    words = "bar=10% bar=20% mark={} wait_for={} say="
    run_stage(stage(words.format(one, other), words.format(other, one)), bars=True)
    out = run_stage.out.getvalue()
    assert "\r\x1b[K10%" in out
    assert out.endswith("\r\x1b[K")  # nothing of a bar is left


def test_a_function_is_called_with_its_result_as_the_answer():
    out = io.StringIO()
    with Runner([{}], out, False) as runner:
        assert runner.ask("tests.helpers.study_calls:add", 2, 3) == 5
        with pytest.raises(Failed):
            runner.ask("tests.helpers.study_calls:main", ["refuse=no"])
    assert out.getvalue() == "error: no\n"
