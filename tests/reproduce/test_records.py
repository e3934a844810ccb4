"""What was made by other options is not taken for what is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expansion.common.errors import InputError
from expansion.reproduce.__main__ import main
from expansion.reproduce.nodes import RUNS, Node, Plan
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
    figures.write_text('{"settings": {"paper_images": 3000}}')
    assert main([*jobs, "--inception", "two.pth", "--shards", "3"]) == 0
    with pytest.raises(InputError, match="features: inception:two.pth there, inception:one.pth"):
        main([*jobs, "--inception", "one.pth"])


def _path_of(line: str) -> str:
    return json.loads(line)["path"] if line else ""
