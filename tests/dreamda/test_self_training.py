"""AMST from end to end: labels, budget, the three stages, interruption in each."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
from PIL import Image

import train_expand
from dreamda.self_training.config import AmstConfig
from dreamda.self_training.objective import SelfTraining
from dreamda.self_training.pseudo_labels import (
    PseudoLabel,
    acceptance_warnings,
    read_pseudo_labels,
    relabeled,
    summarize,
)
from dreamda.self_training.voting import (
    dropout_votes,
)
from expansion.classifier.recipe import split_budget
from expansion.common.config import load_yaml
from expansion.common.errors import InputError
from expansion.data.label_noise import with_label_noise
from expansion.images.records import ImageRecord
from expansion.training.trainer import Trainer
from tests.dreamda.test_voting import RECIPE

pytestmark = pytest.mark.slow  # whole trainings


def row(name: str, seed: int, pseudo: int, accepted: bool, true: int | None = None) -> PseudoLabel:
    return PseudoLabel(name, seed, pseudo, 0.001, 4, 0.9, accepted, true)


def test_accepted_images_get_their_pseudo_label_and_others_stay_as_they_are():
    records = [ImageRecord(None, f"{i}.png", 0, "ant", "s") for i in range(3)]
    rows = [row("0.png", 0, 2, True), row("1.png", 0, 1, False), row("2.png", 0, 0, True)]
    accepted, rejected = relabeled(records, rows, ("ant", "bee", "cat"))
    assert [(r.file_name, r.label, r.class_name) for r in accepted] == [
        ("0.png", 2, "cat"),
        ("2.png", 0, "ant"),
    ]
    assert rejected == records[1:2]


def test_the_summary_by_hand():
    rows = [
        row("0", 0, 0, True, 0),
        row("1", 0, 1, True, 1),
        row("2", 1, 1, True, 0),
        row("3", 1, 0, False, 1),
    ]
    summary = summarize(rows, ("ant", "bee"))
    assert (summary["generated"], summary["accepted"], summary["acceptance_rate"]) == (4, 3, 75.0)
    assert summary["accepted_with_seed_label"] == 66.67
    assert summary["accepted_accuracy"] == 66.67
    assert summary["seed_accuracy"] == 50.0
    assert summary["acceptance_rate_by_seed_class"] == {"ant": 100.0, "bee": 50.0}
    unknown = summarize([dataclasses.replace(r, true_label=None) for r in rows], ("ant", "bee"))
    assert "accepted_accuracy" not in unknown
    nothing = summarize([dataclasses.replace(r, accepted=False) for r in rows], ("ant", "bee"))
    assert nothing["acceptance_rate"] == 0 and nothing["accepted_accuracy"] is None


@pytest.mark.parametrize(
    "rows, options, words",
    [
        (
            [(3, 0.5, 0.9)] * 60,
            {},
            "AMST accepts 0 of 60 generated images, .*: 4 heads agree on 0; give --tau or ",
        ),
        (
            [(4, 0.5, 0.9), (4, 0.25, 0.9), (1, 0.0, 0.9)],
            {},
            "0 of 3 .*4 heads agree on 2, of these 0 have a variance below tau 0.01 .*is 0.25.;",
        ),
        (
            [(3, 0.001, 0.7), (4, 0.001, 0.8)],
            {"min_conf": 0.9, "min_agree": 3},
            "3 heads agree on 2, of these 2 have .*, of these none has min_conf 0.9 .*is 0.800.",
        ),
    ],
)
def test_a_line_says_why_nothing_was_accepted_and_what_to_change(rows, options, words):
    rejected = [
        PseudoLabel(str(i), 0, 0, uncertainty, agreement, confidence, False)
        for i, (agreement, uncertainty, confidence) in enumerate(rows)
    ]
    (line,) = acceptance_warnings(rejected, AmstConfig(**options), 4, ("ant", "bee"))
    assert re.search(words, line) and line.endswith("or --min_agree or --min_conf less")
    assert "\n" not in line


def test_classes_without_any_accepted_image_are_named():
    rows = [row("0", 0, 0, True), row("1", 1, 0, True), row("2", 1, 1, False)]
    (line,) = acceptance_warnings(rows, AmstConfig(), 4, ("ant", "bee", "cat"))
    assert "accepts 2 of 3 generated images, none of them as bee, cat (2 of 3 classes)" in line
    every = [row("0", 0, 1, True), row("1", 1, 0, True)]
    assert acceptance_warnings(every, AmstConfig(), 4, ("ant", "bee")) == []


def test_a_run_that_accepts_nothing_says_so(small_set, expansion_dir, tmp_path, caplog):
    folder = run(small_set, expansion_dir, tmp_path, "--tau", 1e-30, "--max_train_steps", 4)
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert record.getMessage().startswith("AMST accepts 0 of 36 generated images")
    assert load_yaml(folder / "results.yaml").values["acceptance_rate"] == 0


def test_label_noise_makes_the_asked_share_wrong_and_nested():
    records = [ImageRecord(None, f"{i}.png", i % 3, "abc"[i % 3], "s") for i in range(50)]
    wrong = {}
    for share in (0.0, 0.2, 0.4, 1.0):
        noisy = with_label_noise(records, share, 7, "abc")
        assert [r.true_label for r in noisy] == [r.label for r in records]
        assert all(r.class_name == "abc"[r.label] for r in noisy)
        wrong[share] = {r.file_name for r in noisy if r.label != r.true_label}
        assert len(wrong[share]) == round(50 * share)
    assert wrong[0.2] < wrong[0.4]
    assert with_label_noise(records, 0.4, 7, "abc") == with_label_noise(records, 0.4, 7, "abc")
    assert with_label_noise(records, 0.4, 8, "abc") != with_label_noise(records, 0.4, 7, "abc")
    labels = [r.label for r in with_label_noise(records, 1.0, 7, "abc")]
    assert {(a - b.label) % 3 for a, b in zip(labels, records, strict=True)} == {1, 2}


def test_the_steps_are_shared_out_among_the_stages():
    steps = dataclasses.replace(RECIPE, budget="steps", max_train_steps=300)
    for share, rounds, expected in (
        (0.5, 1, (150, 150)),
        (0.2, 1, (60, 240)),
        (0.2, 2, (30, 240)),
        (0.999, 1, (299, 1)),
        (0.01, 299, (1, 1)),
    ):
        parts = split_budget(steps, share=share, epochs=None, rounds=rounds)
        assert tuple(part.max_train_steps for part in parts) == expected
    assert [r.epochs for r in split_budget(RECIPE, share=0.5, epochs=7)] == [7, 100]
    assert [r.epochs for r in split_budget(RECIPE, share=0.5, epochs=None)] == [100, 100]


def test_fewer_steps_than_stages_are_refused_at_once(small_set, expansion_dir, tmp_path):
    """They would have been exceeded: every stage took one at least."""
    with pytest.raises(InputError, match="max_train_steps 2: .* give 3 or more"):
        run(small_set, expansion_dir, tmp_path, "--max_train_steps", 2, "--rounds", 2)
    assert not list(tmp_path.iterdir())


def run(small_set, expansion_dir, checkpoints, *options: object):
    line = f"-d {small_set} --expanded_dir {expansion_dir} --checkpoint_dir {checkpoints} --seeds 1"
    line += " -a resnet10_tiny --lr 0.05 --image_size 32 --resize_size 36 --rotation 0 --workers 0"
    line += " --batch_size 6 --labels amst --budget steps --max_train_steps 24 --eval_steps 4"
    train_expand.main([*line.split(), *map(str, options)])
    return next(path for path in checkpoints.glob("colours/*/seed1"))


@pytest.fixture(scope="module")
def finished(small_set, expansion_dir, tmp_path_factory):
    return run(small_set, expansion_dir, tmp_path_factory.mktemp("runs"), "--label_noise", 0.25)


def test_a_run_leaves_labels_summary_picture_and_results(finished):
    rows = [json.loads(line) for line in (finished / "pseudo_labels.jsonl").open()]
    assert len(rows) == 36
    assert set(rows[0]) >= {
        *("file_name", "seed_label", "pseudo_label", "uncertainty", "agreement", "accepted"),
    }
    results = load_yaml(finished / "results.yaml").values
    summary = load_yaml(finished / "pseudo_labels.yaml").values
    accepted = [r for r in rows if r["accepted"]]
    assert results["acceptance_rate"] == summary["acceptance_rate"]
    assert results["acceptance_rate"] == pytest.approx(100 * len(accepted) / 36, abs=0.01)
    assert results["seed_accuracy"] == 75.0 and results["steps"] == 24
    assert results["label_noise"] == 0.25 and results["learning"]["tau"] == 0.01
    assert all(r["agreement"] == 4 and r["uncertainty"] < 0.01 for r in accepted)
    with Image.open(finished / "pseudo_labels.png") as picture:
        assert picture.width > 500
    assert finished.parent.name.endswith("set_noise0.25_amst_lr0.05")
    assert load_yaml(finished / "options.yaml").values["labels"] == "amst"


def weights(folder):
    state = torch.load(folder / "checkpoint.pth.tar", weights_only=True)
    return state["state_dict"], state["objective"], state["history"]


@pytest.mark.parametrize("stage, step", [("stage 1", 6), ("stage 2", 0), ("stage 3", 7)])
def test_a_run_killed_in_each_stage_resumes_to_the_same_result(
    small_set, expansion_dir, finished, tmp_path, monkeypatch, stage, step
):
    seen = {"steps": 0}
    take_step, vote = Trainer._step, dropout_votes

    def dying_step(self, number, batch):
        in_stage = "stage 1" if self.run_dir.name == "stage1" else "stage 3"
        if in_stage == stage and number == step:
            raise KeyboardInterrupt
        return take_step(self, number, batch)

    def dying_vote(*arguments):
        if stage == "stage 2":
            raise KeyboardInterrupt
        return vote(*arguments)

    options = ("--label_noise", 0.25)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", dying_step)
        patch.setattr("dreamda.self_training.objective.dropout_votes", dying_vote)
        with pytest.raises(KeyboardInterrupt):
            run(small_set, expansion_dir, tmp_path, *options)

    def counting_step(self, number, batch):
        seen["steps"] += 1
        return take_step(self, number, batch)

    monkeypatch.setattr(Trainer, "_step", counting_step)
    resumed = run(small_set, expansion_dir, tmp_path, *options)
    assert seen["steps"] == {"stage 1": 12 - 4 + 12, "stage 2": 12, "stage 3": 12 - 4}[stage]
    ours, theirs = weights(resumed), weights(finished)
    assert all(torch.equal(value, theirs[0][key]) for key, value in ours[0].items())
    assert ours[2] == theirs[2] and torch.equal(ours[1]["mean"], theirs[1]["mean"])
    for name in ("pseudo_labels.jsonl", "pseudo_labels.yaml", "pseudo_labels.png"):
        assert (resumed / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        ("--no-consistency",),
        ("--no-multi_head",),
        ("--rounds", 2),
        ("--reinit",),
        ("--tau", 1e-30, "--head_dropout", 0.9, "--mc_passes", 50),  # nothing is accepted
        ("--tau", 1.0, "--min_agree", 1),  # everything is
        ("--target", "soft", "--alignment", "off", "--ortho", "fro_cosine"),
        ("--budget", "epochs", "--epochs", 2, "--stage1_epochs", 1),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_every_variant_runs(small_set, expansion_dir, tmp_path, options):
    if "--budget" in options:
        options = (*options, "--config", tmp_path / "epochs.yaml")
        (tmp_path / "epochs.yaml").write_text("max_train_steps: null\n")
        line = (
            f"-d {small_set} --expanded_dir {expansion_dir} --checkpoint_dir {tmp_path} --seeds 1"
        )
        line += " -a resnet10_tiny --lr 0.05 --image_size 32 --resize_size 36 --workers 0"
        train_expand.main([*line.split(), "--labels", "amst", *map(str, options)])
        folder = next(tmp_path.glob("colours/*/seed1"))
    else:
        folder = run(small_set, expansion_dir, tmp_path, *options)
    results = load_yaml(folder / "results.yaml").values
    rows = read_pseudo_labels(folder / "pseudo_labels.jsonl")
    assert results["acceptance_rate"] == pytest.approx(
        100 * sum(r.accepted for r in rows) / 36, abs=0.01
    )
    if options[0] == "--tau":
        assert results["acceptance_rate"] == (0 if options[1] < 1 else 100)
    if "--rounds" in options:
        assert {p.name for p in folder.glob("stage1*")} == {"stage1", "stage1_round2"}


def test_images_of_another_class_than_their_seed_get_the_label_of_what_they_show(
    small_set, expansion_dir, tmp_path
):
    folder = run(small_set, expansion_dir, tmp_path, "--max_train_steps", 60)
    rows = {r.file_name: r for r in read_pseudo_labels(folder / "pseudo_labels.jsonl")}
    for k in range(2):
        wrong = rows[f"cat/0_expand_{k}.png"]
        assert (wrong.seed_label, wrong.pseudo_label) == (2, 1)
    assert sum(r.pseudo_label == r.seed_label for r in rows.values()) >= 30


def test_stage_3_learns_from_accepted_images_under_their_new_labels(
    small_set, expansion_dir, tmp_path, monkeypatch
):
    built = []
    init = SelfTraining.__init__

    def note(self, labeled, unlabeled, *arguments, **named):
        built.append((labeled, unlabeled))
        init(self, labeled, unlabeled, *arguments, **named)

    monkeypatch.setattr(SelfTraining, "__init__", note)
    folder = run(small_set, expansion_dir, tmp_path)
    rows = {r.file_name: r for r in read_pseudo_labels(folder / "pseudo_labels.jsonl")}
    ((labeled, unlabeled),) = built
    generated = [r for r in labeled if r.source is not None]
    assert len(labeled) - len(generated) == 18
    assert {r.file_name for r in generated} == {n for n, r in rows.items() if r.accepted}
    assert all(r.label == rows[r.file_name].pseudo_label for r in generated)
    assert {r.file_name for r in unlabeled} == {n for n, r in rows.items() if not r.accepted}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tau": 0.0}, "tau 0"),
        ({"head_dropout": 0.0}, "head_dropout 0"),
        ({"min_agree": 5}, "min_agree 5"),
        ({"min_conf": 1.0}, "min_conf 1"),
        ({"stage1_share": 1.0}, "stage1_share 1"),
        ({"rounds": 0}, "rounds 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        AmstConfig(**options)


def test_options_of_self_training_are_shown_with_it_alone(capsys):
    texts = {}
    for labels in ("seed", "amst"):
        with pytest.raises(SystemExit):
            train_expand.main(["--labels", labels, "--help", "all"])
        texts[labels] = capsys.readouterr().out
    assert "--mc_passes" in texts["amst"] and "--mc_passes" not in texts["seed"]
    assert "--no-consistency" in texts["amst"]
