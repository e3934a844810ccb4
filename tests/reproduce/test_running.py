"""Work that is run, or written down for a cluster."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from expansion.reproduce.nodes import BEFORE, RUNS, Node, Plan, PlanOptions, stages_of
from expansion.reproduce.papers import read_tables
from expansion.reproduce.planning import plan_tables
from expansion.reproduce.running import missing_nodes, run_nodes, write_jobs
from expansion.reproduce.scales import read_scale
from expansion.study.runner import Runner
from expansion.study.steps import Command, Stage

CALL = "tests.helpers.study_calls:main"


def node(tmp_path: Path, name: str, text: str, stage: int = RUNS, needs: tuple = ()) -> Node:
    """A piece of work whose command does what `text` says and then makes the file `name`."""
    path = tmp_path / name
    command = Command(name, CALL, (*text.split(), f"mark={path}"))
    return Node(path, (command,), stage, tuple(tmp_path / each for each in needs), path.is_file)


def plan_of(*nodes: Node) -> Plan:
    return Plan(read_scale("tiny"), nodes[0].path.parent, {n.path: n for n in nodes}, {}, {})


def test_what_fails_stops_neither_its_stage_nor_what_does_not_need_it(tmp_path):
    nodes = [
        node(tmp_path, "good", "say=a", BEFORE),
        node(tmp_path, "bad", "refuse=no", BEFORE),
        node(tmp_path, "dead", "die", BEFORE),
        node(tmp_path, "after_good", "say=b", needs=("good",)),
        node(tmp_path, "after_bad", "say=c", needs=("bad",)),
    ]
    plan = plan_of(*nodes)
    failed = run_nodes(plan, missing_nodes(plan), [{}])
    assert {path.name for path in failed} == {"bad", "dead", "after_bad"}
    assert failed[tmp_path / "after_bad"] == failed[tmp_path / "bad"] == "error: no"
    assert failed[tmp_path / "dead"] == "exit status 137"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after_good", "good"]


def test_a_runner_that_keeps_going_tells_what_failed():
    commands = (Command("a", CALL, ("say=x", "status=3")), Command("b", CALL, ("say=y",)))
    with Runner([{}], io.StringIO(), False, keep_going=True) as runner:
        runner.run(Stage("a stage", commands))
        assert runner.failures == {commands[0]: "x"}


def test_finished_work_and_what_only_that_needs_is_left_out(tmp_path):
    nodes = [
        node(tmp_path, "guide", "say=a", BEFORE),
        node(tmp_path, "set", "say=a", BEFORE, needs=("guide",)),
        node(tmp_path, "done", "say=a", needs=("set",)),
        node(tmp_path, "left", "say=a", needs=("guide",)),
    ]
    (tmp_path / "done").touch()
    names = [each.path.name for each in missing_nodes(plan_of(*nodes))]
    assert names == ["guide", "left"]


@pytest.fixture(scope="module")
def table6(tmp_path_factory) -> Plan:
    tables = read_tables(["distdiff/table6"])
    root = tmp_path_factory.mktemp("root")
    return plan_tables(tables, read_scale("paper"), root, PlanOptions(num_shards=2))


def test_a_jobs_file_says_at_which_lines_its_stages_stand(table6, tmp_path):
    nodes = missing_nodes(table6)
    write_jobs(nodes, tmp_path / "jobs.txt")
    lines = (tmp_path / "jobs.txt").read_text().splitlines()
    found = [
        re.search(r"^# stage \d+, (.*): lines (\d+)-(\d+)$", line) for line in lines if "#" in line
    ]
    spans = {match[1]: (int(match[2]), int(match[3])) for match in found if match}
    expected = {stage.title: [c.plain for c in stage.commands] for stage in stages_of(nodes)}
    assert len(spans) == len(expected) == 3
    for title, (first, last) in spans.items():
        assert lines[first - 1 : last] == expected[title]
    assert len(lines) == max(last for _, last in spans.values())


def test_sets_are_made_in_shards_and_runs_seed_by_seed(table6):
    stages = {stage.title: stage.commands for stage in stages_of(table6.nodes.values())}
    images = stages["images"]
    assert len(images) == 4 * 2 and "--total_split 2 --split 1" in images[1].plain
    runs = stages["classifiers on real + generated images"]
    assert len(runs) == 4 * 3 and runs[0].plain.endswith("--seeds 1")
    guide = stages["classifiers on the real images alone"]
    assert len(guide) == 1  # one seed, the guide's
    path = f"{guide[0].folders[0]}/model_best.pth.tar"
    assert all(f"--encoder_weight_path {path}" in command.plain for command in images)
