"""What was made by other options is not taken for what is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expansion.common.errors import InputError
from expansion.reproduce.__main__ import main
from expansion.reproduce.nodes import RUNS, Node, Plan, PlanOptions
from expansion.reproduce.records import RECORDS_FILE, check_records, keep_records
from expansion.reproduce.scales import read_scale
from expansion.study.steps import Command


def node(path: Path, words: str, *needs: Path) -> Node:
    command = Command(path.name, "module:main", tuple(words.split()))
    return Node(path, (command,), RUNS, needs, path.is_file)


def plan_of(root: Path, words: str = "--clip a", run: str = "-d x --lr -0.1 0.2") -> Plan:
    """Figures with some options, and a run that needs them."""
    nodes = [node(root / "run", run, root / "figures"), node(root / "figures", words)]
    return Plan(read_scale("tiny"), root, {each.path: each for each in nodes}, {}, {})


def begin(plan: Plan, *finished: str) -> None:
    keep_records(plan, plan.nodes.values())
    for name in finished:
        (plan.root / name).touch()


def test_other_options_of_what_is_finished_are_refused_in_one_sentence(tmp_path):
    begin(plan_of(tmp_path), "figures", "run")
    check_records(plan_of(tmp_path))
    with pytest.raises(InputError) as caught:
        check_records(plan_of(tmp_path, "--clip b --seed 1"))
    assert str(caught.value) == (
        f"{tmp_path}/figures was made with other options (clip: a there, b now, seed: not given "
        "there, 1 now); give another --output_dir, or remove what was made so: "
        f"{tmp_path}/run, {tmp_path}/figures"
    )


def test_what_was_made_from_removed_work_is_refused_too(tmp_path):
    begin(plan_of(tmp_path), "figures", "run")
    (tmp_path / "figures").unlink()
    for _ in range(2):  # before and after the figures are made again
        with pytest.raises(InputError, match="run was made with other options .those of something"):
            check_records(plan_of(tmp_path, "--clip b"))
        again = plan_of(tmp_path, "--clip b")
        keep_records(again, [again.nodes[tmp_path / "figures"]])
        (tmp_path / "figures").touch()


def test_what_failed_may_be_tried_with_other_options(tmp_path):
    begin(plan_of(tmp_path))
    check_records(plan_of(tmp_path, "--clip b"))
    begin(plan_of(tmp_path, "--clip b"), "figures", "run")
    check_records(plan_of(tmp_path, "--clip b"))
    with pytest.raises(InputError, match="clip: b there, a now"):
        check_records(plan_of(tmp_path))


def test_shards_a_moved_folder_and_torn_lines_make_no_difference(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    options = "--exp {}/set --total_split {} --split 0"
    begin(plan_of(old, options.format(old, 1)), "figures", "run")
    with (old / RECORDS_FILE).open("a") as file:
        file.write('\n{"path": "ru')
    begin(plan_of(old, options.format(old, 1)), "figures")
    old.rename(new)
    check_records(plan_of(new, options.format(new, 4)))
    with pytest.raises(InputError, match="exp"):
        check_records(plan_of(new, options.format("elsewhere", 4)))


def test_files_without_a_record_are_taken_as_they_are(tmp_path):
    (tmp_path / "figures").touch()
    check_records(plan_of(tmp_path))
    keep_records(plan_of(tmp_path), [plan_of(tmp_path).nodes[tmp_path / "run"]])
    assert (tmp_path / RECORDS_FILE).read_text().count("path") == 1


def test_the_command_refuses_other_weights_for_finished_figures(tmp_path):
    """`--jobs` keeps what the jobs are to make; the figures of one set are then put there."""
    arguments = ["distdiff/table4", "--scale", "paper", "--output_dir", str(tmp_path)]
    jobs = [*arguments, "--jobs", str(tmp_path / "jobs.txt")]
    assert main([*jobs, "--inception", "one.pth"]) == 0
    assert main([*jobs, "--inception", "two.pth"]) == 0  # nothing is there yet
    records = (tmp_path / "paper" / RECORDS_FILE).read_text()
    assert "inception:one.pth" in records and "inception:two.pth" in records
    paths = [p for p in map(_path_of, records.splitlines()) if p.endswith("evaluation.json")]
    figures = tmp_path / "paper" / paths[0]
    figures.parent.mkdir(parents=True)
    numbers = {"paper_frechet": 1.0, "paper_mmd": 1.0}
    figures.write_text(json.dumps({"settings": {"paper_images": 3000}, "figures": numbers}))
    assert main([*jobs, "--inception", "two.pth", "--shards", "3"]) == 0
    with pytest.raises(InputError, match="features: inception:two.pth there, inception:one.pth"):
        main([*jobs, "--inception", "one.pth"])


def _path_of(line: str) -> str:
    return json.loads(line)["path"] if line else ""


def test_jobs_that_are_written_but_not_run_are_not_taken_for_those_of_other_options(tmp_path):
    """They may be run whenever their file is there: first one file, then the other."""
    first, other = (str(tmp_path / name) for name in ("first.txt", "other.txt"))
    a, b = plan_of(tmp_path), plan_of(tmp_path, "--clip b")
    keep_records(a, a.nodes.values(), first)
    check_records(b, other)  # the file was not written, so nothing can be run by it
    Path(first).touch()
    for jobs in (other, None):
        with pytest.raises(InputError) as caught:
            check_records(b, jobs)
        assert str(caught.value) == (
            f"{first} has commands that make {tmp_path}/figures with other options (clip: a there, "
            "b now); give another --output_dir, or remove that file if they are not to be run"
        )
    check_records(a, other)
    check_records(b, first)  # which is overwritten
    keep_records(b, b.nodes.values(), first)
    check_records(b)
    for name in ("figures", "run"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="clip: b there, a now"):
        check_records(a)


def test_options_of_jobs_count_until_their_file_is_removed(tmp_path):
    jobs = tmp_path / "jobs.txt"
    jobs.touch()
    plan, other = plan_of(tmp_path), plan_of(tmp_path, "--clip b")
    keep_records(plan, plan.nodes.values(), str(jobs))
    begin(plan)  # a run here that failed
    with pytest.raises(InputError, match="jobs.txt has commands"):
        check_records(other)
    jobs.unlink()
    check_records(other)
    begin(other, "figures", "run")
    check_records(other)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--jobs /proc/nope/j.txt", "/proc/nope/j.txt cannot be written: .*; give --jobs another"),
        ("--jobs {}", "cannot be written: .*; give --jobs another place"),
        ("--jobs {}/j.txt --dry_run", "jobs and dry_run: give one of them"),
    ],
)
def test_jobs_that_cannot_be_written_leave_nothing_behind(words, message, tmp_path):
    folder = tmp_path / "out"
    arguments = ["distdiff/table6", "--scale", "tiny", "--output_dir", str(folder)]
    with pytest.raises(InputError, match=message):
        main([*arguments, *words.format(tmp_path).split()])
    assert not list(tmp_path.iterdir())


def test_two_spellings_of_one_folder_are_one(tmp_path, capsys):
    arguments = ["distdiff/table6", "--scale", "tiny", "--output_dir", str(tmp_path), "--dry_run"]
    plans = []
    for words in ("", "--data_dir ./data/", "--data_dir x/../data --inception ./{}"):
        words = words.format(PlanOptions.inception)
        main([*arguments, *words.split()])
        plans.append(capsys.readouterr().out)
    assert plans[0] == plans[1] == plans[2] and "--data_dir" not in plans[0]
