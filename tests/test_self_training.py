"""AMST: Eq. 7 and the votes by hand, the three stages end to end, interruption in each."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import train_expand
from dreamda.pseudo_labels import PseudoLabel, read_pseudo_labels, relabeled, summarize
from dreamda.self_training import SelfTraining, split_budget
from dreamda.self_training_config import AmstConfig
from dreamda.voting import HeadTraining, MultiHead, count_votes, dropout_votes, orthogonality
from expansion.backbones import Classifier
from expansion.config import load_yaml
from expansion.errors import InputError
from expansion.image_datasets import ImageRecord, load_dataset
from expansion.label_noise import with_label_noise
from expansion.recipe import Recipe
from expansion.training import Trainer
from expansion.writer import ExpansionWriter

RECIPE = Recipe(arch="resnet10_tiny", image_size=32, resize_size=36, workers=0, batch_size=4)
VIEWS = ("weak", "weak", "strong", "strong")


# --- stage 1 ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form, expected",
    [
        ("l1_cxc", abs(1 * 3 + 2 * -1) + abs(1 * 0 + 2 * 2) + abs(-1 * 3) + abs(0)),
        # W1^T W2 = [[1*3 + -1*0, 1*-1 + -1*2], [2*3, 2*-1]]: (3 + 3 + 6 + 2) / 2
        ("l1_dxd_mean", 7.0),
        (
            "fro_cosine",
            math.sqrt(
                (1 / math.sqrt(50)) ** 2
                + (4 / math.sqrt(20)) ** 2
                + (-3 / math.sqrt(10)) ** 2
                + 0.0
            ),
        ),
    ],
)
def test_orthogonality_by_hand(form, expected):
    first = torch.tensor([[1.0, 2.0], [-1.0, 0.0]])
    second = torch.tensor([[3.0, -1.0], [0.0, 2.0]])
    assert orthogonality(first, second, form).item() == pytest.approx(expected, abs=1e-5)


def test_the_orthogonality_terms_gradient_by_hand():
    """d sum|W1 W2^T| / dW1 = sign(W1 W2^T) W2."""
    first = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], requires_grad=True)
    second = torch.tensor([[3.0, -1.0], [0.0, 2.0]])
    orthogonality(first, second, "l1_cxc").backward()
    # products: [1, 4], [-3.5, 1]
    expected = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]) @ second
    torch.testing.assert_close(first.grad, expected)


@pytest.mark.parametrize("multi_head, weight", [(True, 0.001), (True, 0.5), (False, 0.5)])
def test_eq_7_by_hand(multi_head, weight):
    """Each head's cross-entropy on its own view, plus lambda |W1^T W2| of each pair."""
    config = AmstConfig(multi_head=multi_head, ortho_weight=weight)
    objective = HeadTraining([], config, RECIPE, seed=1)
    torch.manual_seed(0)
    classifier = Classifier("resnet10_tiny", 3, 32)
    module = objective.wrap(classifier)
    module.dropout = 0.0
    weak, strong = torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32)
    targets = torch.tensor([0, 1, 2, 1])
    loss, _ = objective.loss(module.train(), [weak, strong, targets])
    with torch.no_grad():
        features = classifier.train().features(torch.cat([weak, strong]))
        views = (features[:4], features[:4], features[4:], features[4:])
        weights = [head.weight for head in module.heads]
        expected = sum(F.cross_entropy(h(view), targets) for h, view in zip(module.heads, views))
        if multi_head:
            for a, b in ((0, 1), (2, 3)):
                expected += weight * (weights[a] @ weights[b].T).abs().sum()
    assert len(module.heads) == (4 if multi_head else 1)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)


def test_stage_1_trains_body_and_heads_and_not_the_main_head():
    objective = HeadTraining([], AmstConfig(), RECIPE, seed=1)
    classifier = Classifier("resnet10_tiny", 3, 32)
    module = objective.wrap(classifier).train()
    pixels = torch.randn(4, 3, 32, 32)
    objective.loss(module, [pixels, pixels, torch.tensor([0, 1, 2, 1])])[0].backward()
    assert all(p.grad is not None for p in module.parameters())
    assert classifier.head.weight.grad is None
    assert {id(p) for p in classifier.head.parameters()}.isdisjoint(map(id, module.parameters()))


def test_dropout_acts_before_the_heads_in_training_alone():
    module = MultiHead(Classifier("resnet10_tiny", 3, 32), VIEWS, 0.5)
    pixels = torch.randn(4, 3, 32, 32)
    assert torch.equal(module.eval()(pixels), module(pixels)) and module(pixels).shape == (4, 3)
    module.train()
    module.body.eval()
    assert not torch.equal(module(pixels), module(pixels))


def test_evaluation_averages_the_heads_probabilities():
    module = MultiHead(Classifier("resnet10_tiny", 3, 32), VIEWS, 0.5).eval()
    pixels = torch.randn(2, 3, 32, 32)
    features = module.body(pixels)
    mean = sum(head(features).softmax(dim=1) for head in module.heads) / 4
    torch.testing.assert_close(module(pixels).softmax(dim=1), mean)


# --- stage 2 ----------------------------------------------------------------------------------


def test_votes_by_hand():
    """Two heads, two dropout samples, three images, two classes; probabilities of class 0."""
    head_1 = [[0.9, 0.7, 0.2], [0.7, 0.5, 0.4]]  # (T, M)
    head_2 = [[0.8, 0.3, 0.1], [0.6, 0.1, 0.1]]
    p = torch.tensor([head_1, head_2])
    votes = count_votes(torch.stack([p, 1 - p], dim=-1))
    # Means of class 0: head 1: 0.8 0.6 0.3, head 2: 0.7 0.2 0.1; both: 0.75 0.4 0.2.
    assert votes.labels.tolist() == [0, 1, 1]
    assert votes.agreement.tolist() == [2, 1, 2]
    # Population variance: half the squared range for two samples, i.e. (a - b)^2 / 4.
    assert votes.uncertainty.tolist() == pytest.approx([0.01, 0.01, 0.01], abs=1e-6)
    assert votes.confidence.tolist() == pytest.approx([0.75, 0.8, 0.8], abs=1e-6)


def test_the_uncertainty_is_that_of_the_most_uncertain_head_for_its_label():
    p = torch.tensor([[[0.9], [0.9]], [[0.95], [0.65]]])  # heads x samples x one image
    votes = count_votes(torch.stack([p, 1 - p], dim=-1))
    assert votes.uncertainty.item() == pytest.approx((0.95 - 0.65) ** 2 / 4)


SEEDS = torch.full((300,), -1)  # seed labels that nobody votes for


def test_a_confirmed_seed_label_is_accepted_however_uncertain():
    """One image certain, two not; the last one's seed label is not what the heads vote for."""
    p = torch.tensor([[[0.9, 0.9, 0.9], [0.9, 0.5, 0.5]]])
    votes = count_votes(torch.stack([p, 1 - p], dim=-1))
    seed_labels = torch.tensor([1, 0, 1])
    assert votes.accepted(AmstConfig(), 1, seed_labels).tolist() == [True, False, False]
    confirming = AmstConfig(confirm_seed=True)
    assert votes.accepted(confirming, 1, seed_labels).tolist() == [True, True, False]
    split = count_votes(torch.tensor([[[[0.9, 0.1]]], [[[0.2, 0.8]]]]))  # two heads, two opinions
    assert not votes_agree(split) and not split.accepted(confirming, 2, split.labels).any()


def votes_agree(votes) -> bool:
    return bool((votes.agreement == 2).all())


def random_votes():
    torch.manual_seed(0)
    return count_votes((2 * torch.randn(4, 10, 300, 5)).softmax(dim=-1))


def test_acceptance_grows_with_tau_and_falls_with_the_heads_that_must_agree():
    votes = random_votes()
    for name, values in (("tau", (0.001, 0.01, 0.05, 0.3)), ("min_agree", (4, 3, 2, 1))):
        options = {"tau": 0.3, "min_agree": 4}
        before = torch.zeros(300, dtype=torch.bool)
        counts = []
        for value in values:
            accepted = votes.accepted(AmstConfig(**{**options, name: value}), 4, SEEDS)
            if name == "tau":
                assert not (before & ~accepted).any()
            before = accepted
            counts.append(int(accepted.sum()))
        assert counts == sorted(counts) and counts[0] < counts[-1]


def test_acceptance_falls_with_the_confidence_asked():
    votes = random_votes()
    counts = [
        int(votes.accepted(AmstConfig(tau=0.3, min_agree=1, min_conf=c), 4, SEEDS).sum())
        for c in (0.0, 0.3, 0.5, 0.99)
    ]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


def test_one_head_is_tested_for_its_uncertainty_alone():
    p = torch.tensor([[[0.9, 0.9], [0.9, 0.5]]])
    votes = count_votes(torch.stack([p, 1 - p], dim=-1))
    assert votes.accepted(AmstConfig(), 1, torch.zeros(2)).tolist() == [True, False]


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    """A folder dataset: three classes that differ in colour, 6 training and 3 test images each."""
    root = tmp_path_factory.mktemp("sets") / "colours"
    draw = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for i, name in enumerate(("ant", "bee", "cat")):
            (root / split / name).mkdir(parents=True)
            for j in range(count):
                pixels = draw.integers(0, 90, (36, 36, 3), dtype=np.uint8)
                pixels[..., i] += 140
                Image.fromarray(pixels).save(root / split / name / f"{j}.png")
    return root


@pytest.fixture(scope="module")
def expansion_dir(small_set, tmp_path_factory):
    """Two variants of each training image; those of cat/0 are bees, whatever the manifest says."""
    folder = tmp_path_factory.mktemp("expansions") / "set"
    folder.mkdir()
    draw = np.random.default_rng(1)
    with ExpansionWriter(folder, 0, 1) as writer:
        for record in load_dataset(str(small_set)).records("train"):
            for k in range(2):
                shown = 1 if record.file_name == "train/cat/0.png" else record.label
                pixels = draw.integers(0, 90, (36, 36, 3), dtype=np.uint8)
                pixels[..., shown] += 140
                name = f"{record.class_name}/{record.path.stem}_expand_{k}.png"
                row = {"file_name": name, "label": record.label, "class": record.class_name}
                row |= {"source": record.file_name, "seed": k, "prompt": "p", "method": "m"}
                writer.write(pixels, {**row, "model": "m", "config": "0"})
    return folder


def test_batch_normalisation_keeps_its_statistics_and_only_the_heads_dropout_acts(small_set):
    torch.manual_seed(0)
    module = MultiHead(Classifier("resnet10_tiny", 3, 32), VIEWS, 0.5).train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    modes = []
    module.body.register_forward_hook(lambda m, i, o: modes.append((m.training, len(o))))
    records = load_dataset(str(small_set)).records("train")
    config = AmstConfig(mc_passes=7)
    first, again, other = (
        dropout_votes(module, records, config, RECIPE, seed) for seed in (1, 1, 2)
    )
    assert modes == [(False, 18)] * 3  # the body runs once, not once per dropout sample
    assert module.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert torch.equal(first.uncertainty, again.uncertainty)
    assert not torch.equal(first.uncertainty, other.uncertainty) and (first.uncertainty > 0).all()
    module.dropout = 1e-9
    assert dropout_votes(module, records, config, RECIPE, 1).uncertainty.max() < 1e-10


# --- labels, noise, budget --------------------------------------------------------------------


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
    assert {(a - b.label) % 3 for a, b in zip(labels, records)} == {1, 2}


def test_the_steps_are_shared_out_among_the_stages():
    steps = dataclasses.replace(RECIPE, budget="steps", max_train_steps=300)
    for config, expected in (
        (AmstConfig(), (150, 150)),
        (AmstConfig(stage1_share=0.2), (60, 240)),
        (AmstConfig(stage1_share=0.2, rounds=2), (30, 240)),
    ):
        assert tuple(r.max_train_steps for r in split_budget(steps, config)) == expected
    epochs = split_budget(RECIPE, AmstConfig(stage1_epochs=7))
    assert [r.epochs for r in epochs] == [7, 100]


# --- end to end -------------------------------------------------------------------------------


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
        patch.setattr("dreamda.self_training.dropout_votes", dying_vote)
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
            train_expand.main(["--labels", labels, "--help"])
        texts[labels] = capsys.readouterr().out
    assert "--mc_passes" in texts["amst"] and "--mc_passes" not in texts["seed"]
    assert "--no-consistency" in texts["amst"]
