"""AMST beside a folder of unlabelled images: they join stage 3 and nothing before it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train_expand
from dreamda.self_training.objective import SelfTraining
from expansion.common.config import load_yaml
from expansion.common.errors import InputError

pytestmark = pytest.mark.slow  # whole trainings

CLASSES = ("ant", "bee")
NUM_UNLABELED = 30


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """`<root>/set`, a dataset of two colours, `<root>/set_2x` made from it and `<root>/more`."""
    folder, draw = tmp_path_factory.mktemp("amst"), np.random.default_rng(0)

    def image(channel: int, *place: str) -> None:
        path = folder.joinpath(*place)
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 120, (16, 16, 3), dtype=np.uint8)
        pixels[..., channel] += 100
        Image.fromarray(pixels).save(path)

    rows = []
    for channel, name in enumerate(CLASSES):
        for i in range(5):
            image(channel, "set", "train", name, f"{i}.png")
            image(channel, "set", "test", name, f"{i}.png")
            for k in range(2):
                file = f"{name}/{i}_expand_{k}.png"
                image(channel, "set_2x", file)
                row = {"class": name, "source": f"train/{name}/{i}.png", "variant": k}
                rows.append(json.dumps(row | {"file_name": file}) + "\n")
    for i in range(NUM_UNLABELED):
        image(i % 2, "more", f"{i}.png")
    (folder / "set_2x" / "manifest.0-of-1.1.jsonl").write_text("".join(rows))
    return folder


def train(root: Path, checkpoints: Path, *options: object) -> Path:
    line = f"-d {root / 'set'} --expanded_dir {root / 'set_2x'} --checkpoint_dir {checkpoints}"
    line += " -a resnet10_tiny --image_size 16 --resize_size 16 --workers 0 --batch_size 6"
    line += " --seeds 1 --lr 0.05 --labels amst"
    if "epochs" not in options:
        line += " --budget steps --max_train_steps 16 --eval_steps 4"
    train_expand.main([*line.split(), *map(str, options)])
    (results,) = checkpoints.rglob("results.yaml")
    return results.parent


@pytest.fixture
def streams(monkeypatch) -> dict[str, list[str]]:
    """Names of the images in the streams of stage 3, by salt."""
    found: dict[str, list[str]] = {}
    stream = SelfTraining.stream

    def noting(self, records, transform, sizes, first, accelerator, salt="", **options):
        found[salt] = [record.file_name for record in records]
        return stream(self, records, transform, sizes, first, accelerator, salt, **options)

    monkeypatch.setattr(SelfTraining, "stream", noting)
    return found


def test_unlabelled_images_join_stage_3_and_leave_stage_2_as_it_was(root, tmp_path, streams):
    options = ("--lr", 0.001, "--head_dropout", 0.9, "--tau", 1e-30)  # rejects all
    alone = train(root, tmp_path / "alone", *options)
    rejected = set(streams["unlabeled"])
    beside = train(root, tmp_path / "beside", *options, "--unlabeled_dir", root / "more")
    assert len(rejected) == 20
    joined = {f"{i}.png" for i in range(NUM_UNLABELED)}
    assert set(streams["unlabeled"]) == rejected | joined
    assert not joined & set(streams[""])
    for name in ("pseudo_labels.jsonl", "pseudo_labels.yaml", "pseudo_labels.png"):
        assert (alone / name).read_bytes() == (beside / name).read_bytes()
    stage1 = [folder / "stage1" / "checkpoint.pth.tar" for folder in (alone, beside)]
    assert stage1[0].read_bytes() == stage1[1].read_bytes()
    ends = [folder / "checkpoint.pth.tar" for folder in (alone, beside)]
    assert ends[0].read_bytes() != ends[1].read_bytes()


def test_they_join_where_rejected_images_do_not(root, tmp_path, streams):
    train(root, tmp_path, "--no-consistency", "--unlabeled_dir", root / "more")
    assert set(streams["unlabeled"]) == {f"{i}.png" for i in range(NUM_UNLABELED)}


def test_an_epoch_of_stage_3_goes_through_all_of_them(root, tmp_path):
    """10 real images beside 50 others: 50 labelled ones an epoch, 9 steps of 6."""
    epochs = ("--budget", "epochs", "--epochs", 1, "--tau", 1e-30)  # rejects all 20
    folder = train(root, tmp_path, *epochs, "--unlabeled_dir", root / "more")
    stage1, steps = 2, 9
    assert load_yaml(folder / "results.yaml").values["steps"] == stage1 + steps


def test_the_run_says_how_many_and_has_a_name_of_its_own(root, tmp_path):
    folder = train(root, tmp_path, "--unlabeled_dir", root / "more")
    results = load_yaml(folder / "results.yaml").values
    assert results["num_unlabeled"] == NUM_UNLABELED and results["labels"] == "amst"
    assert "images_per_epoch" not in results  # it depends on what is accepted
    assert folder.parent.name.endswith("set_2x_amst_softmatch_lr0.05")


def test_stage_3_ends_with_a_running_mean_of_its_weights_if_asked(root, tmp_path):
    plain = train(root, tmp_path / "plain")
    mean = train(root, tmp_path / "mean", "--ema_decay", 0.5)
    last, averaged = (
        torch.load(folder / "checkpoint.pth.tar", weights_only=True) for folder in (plain, mean)
    )
    name = "head.weight"
    assert torch.equal(last["state_dict"][name], averaged["module"][f"classifier.{name}"])
    assert not torch.equal(last["state_dict"][name], averaged["state_dict"][name])
    votes = [folder / "pseudo_labels.jsonl" for folder in (plain, mean)]
    assert votes[0].read_bytes() == votes[1].read_bytes()  # stages 1 and 2 take no mean


def test_a_dry_run_says_what_becomes_of_them(root, tmp_path, capsys):
    line = f"-d {root / 'set'} --expanded_dir {root / 'set_2x'} --checkpoint_dir {tmp_path}"
    line += " -a resnet10_tiny --image_size 16 --resize_size 16 --labels amst --dry_run"
    train_expand.main([*line.split(), "--unlabeled_dir", str(root / "more")])
    assert "unlabelled images: 30, beside rejected generated ones in stage 3" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("labels", ["soft", "clip"])
def test_other_labels_refuse_them(root, tmp_path, labels):
    with pytest.raises(InputError, match=f"goes with --labels seed or amst, not {labels}"):
        train(root, tmp_path, "--labels", labels, "--unlabeled_dir", root / "more")
