"""Probabilities that a file gives for generated images are learnt in place of seed labels."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from expansion.classifier.recipe import Recipe
from expansion.common.config import load_yaml
from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from expansion.data.soft_labels import with_soft_labels
from expansion.images.content import readable_records
from expansion.store.expanded_set import read_expansion
from expansion.training.mixing import Mixing
from expansion.training.objectives import Supervised
from tests.training.conftest import CLASSES
from tests.training.test_mixing import weights

pytestmark = pytest.mark.slow  # whole trainings

FIRST = "ant/0_expand_0.png"


def write(path: Path, *rows: object, class_names=CLASSES) -> Path:
    lines = [{"class_names": list(class_names)}, *rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def row(name: str, *probabilities: float) -> dict:
    return {"file_name": name, "soft_label": list(probabilities)}


@pytest.fixture
def generated(sets):
    real = load_dataset(str(sets / "noise")).records("train")
    return read_expansion(sets / "four", {record.file_name: record for record in real})


def test_rows_give_probabilities_and_images_without_a_row_keep_their_seed_label(
    generated, tmp_path
):
    path = write(tmp_path / "soft.jsonl", row(FIRST, 0.25, 0.75), row("other.png", 1, 0))
    labeled = with_soft_labels(generated, path, CLASSES)
    assert {r.file_name: r.soft_label for r in labeled if r.soft_label} == {FIRST: (0.25, 0.75)}
    without = [dataclasses.replace(record, soft_label=None) for record in labeled]
    assert without == generated


def test_a_file_of_another_set_is_refused_where_it_says_which_images_it_is_of(generated, tmp_path):
    records, _ = readable_records(generated, "fail")
    (first,) = (record for record in records if record.file_name == FIRST)
    given = row(FIRST, 0.25, 0.75)
    path = write(tmp_path / "soft.jsonl", {**given, "sha256": first.content})
    assert [r.soft_label for r in with_soft_labels(records, path, CLASSES) if r.soft_label]
    path = write(tmp_path / "soft.jsonl", {**given, "sha256": "0" * 64})
    with pytest.raises(InputError, match="is of other images: 1 have another sha256 here"):
        with_soft_labels(records, path, CLASSES)


def test_rounded_probabilities_are_taken_and_add_up_to_one(generated, tmp_path):
    path = write(tmp_path / "soft.jsonl", row(FIRST, 0.3334, 0.667))
    (label,) = (r.soft_label for r in with_soft_labels(generated, path, CLASSES) if r.soft_label)
    assert sum(label) == pytest.approx(1, abs=1e-12) and label[0] == pytest.approx(0.3334, abs=1e-3)


@pytest.mark.parametrize("rows, message", [
    ([row(FIRST, 1.0)], "line 2: soft_label has to be a list of 2 probabilities"),
    ([row(FIRST, 0.5, 0.4)], "line 2: the probabilities of soft_label add up to 0.9"),
    ([row(FIRST, 1.5, -0.5)], "line 2: soft_label holds what is no probability"),
    ([row(FIRST, float("nan"), 1)], "line 2: soft_label holds what is no probability"),
    ([row(FIRST, True, False)], "line 2: soft_label holds what is no probability"),
    ([{"file_name": FIRST}], "line 2: soft_label has to be a list"),
    ([{"soft_label": [0, 1]}], "line 2: file_name is missing"),
    ([row(FIRST, 0, 1), row(FIRST, 1, 0)], f"line 3: {FIRST} occurs twice"),
    ([row("cat/0.png", 0, 1)], "names none of the 24 generated images"),
    ([3], "line 2: expected an object"),
])  # fmt: skip
def test_rows_that_are_no_labels_are_refused(generated, tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        with_soft_labels(generated, write(tmp_path / "soft.jsonl", *rows), CLASSES)


@pytest.mark.parametrize("names", [("bee", "ant"), ("ant",), ("ant", "bee", "cat")])
def test_other_classes_or_another_order_are_refused(generated, tmp_path, names):
    path = write(tmp_path / "soft.jsonl", row(FIRST, 0, 1), class_names=names)
    with pytest.raises(
        InputError, match="its class_names are .*, those of the dataset 2 .ant, bee"
    ):
        with_soft_labels(generated, path, CLASSES)


@pytest.mark.parametrize("content, message", [
    ("", "the first line has to name the classes"),
    (json.dumps(row(FIRST, 0, 1)), "the first line has to name the classes"),
    ('{"class_names": ', "line 1: no JSON"),
    (None, "cannot read soft_labels"),
])  # fmt: skip
def test_what_is_no_such_file_is_refused(generated, tmp_path, content, message):
    path = tmp_path / "soft.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        with_soft_labels(generated, path, CLASSES)


@pytest.mark.parametrize("augment", ["default", "mixup"])
def test_batches_pair_every_image_with_its_probabilities(generated, tmp_path, augment):
    """Also where images are mixed: the labels then are mixtures of the same two rows."""
    rows = [row(r.file_name, 0.25, 0.75) for r in generated]
    labeled = with_soft_labels(generated, write(tmp_path / "soft.jsonl", *rows), CLASSES)
    real = [dataclasses.replace(r, source=None) for r in generated[:2]]
    recipe = Recipe(arch="resnet10_tiny", image_size=16, resize_size=16, workers=0, augment=augment)
    objective = Supervised([*real, *labeled], recipe, 1, 2, Mixing(real_share=0.5))
    (batch,) = objective.batches([8], 0, Accelerator())
    found = sorted(map(tuple, batch[1].tolist()))
    assert found == [(0.25, 0.75)] * 4 + [(1.0, 0.0)] * 4
    inputs, labels = objective.augmented.inputs(*batch, 0.0)
    assert torch.allclose(labels.sum(dim=1), torch.ones(8))
    assert objective.augmented.loss(torch.zeros(8, 2), labels).item() == pytest.approx(
        0.6931, abs=1e-3
    )


def test_certain_probabilities_train_as_labels_and_others_do_not(
    train,
    generated,
    tmp_path,
):
    certain = [row(r.file_name, 1 - r.label, r.label) for r in generated]
    doubtful = [row(r.file_name, 0.5, 0.5) for r in generated]
    paths = [write(tmp_path / "1", *certain), write(tmp_path / "2", *doubtful)]
    plain = train("--exp set")
    same, other = (train(f"--exp set --soft_labels {p} --tag {p.name}") for p in paths)
    mine, its = weights(plain), weights(same)
    assert all(torch.allclose(mine[name], its[name], atol=1e-4) for name in mine)
    assert not torch.allclose(mine["head.weight"], weights(other)["head.weight"], atol=1e-4)
    assert same.parent.name == "resnet10_tiny_unpretrained_set_soft_labels_1_lr0.05"
    results = [load_yaml(folder / "results.yaml").values for folder in (same, other)]
    assert results[0]["soft_labels"].startswith("24 images, ")
    assert results[0]["soft_labels"] != results[1]["soft_labels"]
    with pytest.raises(InputError, match="begun with other settings .*soft_labels"):
        train(f"--exp set --soft_labels {paths[1]} --tag 1")


@pytest.mark.parametrize("options, message", [
    ("--label_noise 0.5", "label_noise makes seed labels wrong, and soft_labels"),
    ("--labels amst", "soft_labels does not go with --labels amst, which labels"),
    ("--labels soft", "soft_labels does not go with --labels soft, which labels"),
    ("--labels clip", "soft_labels does not go with --labels clip, which labels"),
])  # fmt: skip
def test_what_labels_images_in_another_way_is_refused(train, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        train(f"--soft_labels {tmp_path / 'soft.jsonl'} {options}")
