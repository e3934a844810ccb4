"""How batches are made up of real and generated images: shares, stand-ins, fewer variants."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

import parse_logs
from expansion.classifier.recipe import Recipe
from expansion.common.config import load_yaml
from expansion.common.errors import InputError
from expansion.data.batches import FixedShare, StandIns, StreamBatches
from expansion.data.datasets import load_dataset
from expansion.images.content import readable_records
from expansion.images.records import ImageRecord
from expansion.store.expanded_set import read_expansion
from expansion.store.manifest import read_manifest
from expansion.store.selection import Selection
from expansion.store.tars import sample
from expansion.training.mixing import Mixing
from expansion.training.objectives import Supervised
from expansion.training.trainer import Trainer

pytestmark = pytest.mark.slow  # whole trainings


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pth.tar", weights_only=True)["state_dict"]


def equal(first: Path, second: Path) -> bool:
    mine, its = weights(first), weights(second)
    return all(torch.equal(mine[name], its[name]) for name in mine)


# Real images are numbers 0 to 4, generated ones 5 to 44.
REAL, GENERATED = range(5), range(5, 45)


def shared(share: float, sizes: list[int], **options) -> list[list[tuple[int, int]]]:
    return list(FixedShare(REAL, GENERATED, share, sizes, seed=3, **options))


def num_real(batch) -> int:
    return sum(index in REAL for index, _ in batch)


@pytest.mark.parametrize("share", [0.25, 0.1, 1 / 3, 0.9])
@pytest.mark.parametrize("sizes", [[8] * 60, [7, 7, 2] * 30, [1] * 200])
def test_real_images_hold_their_share_of_every_batch_and_exactly_of_the_run(share, sizes):
    batches = shared(share, sizes)
    assert [len(batch) for batch in batches] == sizes
    assert all(abs(num_real(batch) - share * len(batch)) < 1 for batch in batches)
    seen = np.cumsum([num_real(batch) for batch in batches])
    assert np.abs(seen - share * np.cumsum(sizes)).max() <= 0.5 + 1e-9


def test_both_parts_go_through_all_of_their_images_pass_by_pass():
    drawn = [index for batch in shared(0.25, [8] * 40) for index, _ in batch]
    real = Counter(index for index in drawn if index in REAL)
    generated = Counter(index for index in drawn if index in GENERATED)
    assert set(real) == set(REAL) and set(real.values()) == {16}  # 80 draws of 5 images
    assert set(generated) == set(GENERATED) and set(generated.values()) == {6}


@pytest.mark.parametrize("first", [1, 5, 9])
def test_a_run_with_a_share_goes_on_where_it_stopped(first):
    sizes = [8, 8, 3] * 4
    assert shared(0.3, sizes, first=first) == shared(0.3, sizes)[first:]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_every_process_has_its_share_of_real_images(world_size):
    whole = shared(0.25, [16] * 10)
    parts = [shared(0.25, [16] * 10, rank=r, world_size=world_size) for r in range(world_size)]
    for i, batch in enumerate(whole):
        assert sorted(sample for part in parts for sample in part[i]) == sorted(batch)
        counts = [num_real(part[i]) for part in parts]
        assert min(counts) >= 1 and max(counts) - min(counts) <= 1


def test_real_images_do_not_stand_together_in_a_batch():
    """MixUp mixes neighbours: else it would mix real images with real ones alone."""
    first = [[index in REAL for index, _ in batch] for batch in shared(0.25, [16] * 10)]
    assert len(set(map(tuple, first))) > 5


def test_a_stand_in_is_one_of_the_variants_of_the_drawn_image():
    stand_ins = {0: [3, 4, 5], 1: [6], 2: []}
    drawn = [i for batch in StreamBatches(3, [6] * 200, seed=1) for i, _ in batch]
    shown = [i for batch in StandIns(stand_ins, 0.5, [6] * 200, seed=1) for i, _ in batch]
    assert all(b == a or b in stand_ins[a] for a, b in zip(drawn, shown, strict=True))
    counts = Counter(shown)
    assert counts[2] == 400  # has no variant
    assert abs(counts[0] - 200) < 40 and abs(counts[1] - 200) < 40
    assert all(abs(counts[i] - 67) < 25 for i in (3, 4, 5))
    later = StandIns(stand_ins, 0.5, [6] * 200, seed=1, first=150)
    assert [i for batch in later for i, _ in batch] == shown[900:]


@pytest.mark.parametrize("probability, expected", [(0.0, {0, 1, 2}), (1.0, {3, 4, 5})])
def test_stand_ins_never_and_always(probability, expected):
    batches = StandIns({0: [3], 1: [4], 2: [5]}, probability, [3] * 5, seed=1)
    assert {i for batch in batches for i, _ in batch} == expected


def records(sources) -> list[ImageRecord]:
    return [
        ImageRecord(Path(f"{i}.png"), f"{i}.png", 0, "a", source=source)
        for i, source in enumerate(sources)
    ]


def test_a_mixing_tells_real_from_generated_images_by_their_source():
    images = records([None, None, "1.png", "0.png", "1.png"])
    share = Mixing(real_share=0.5).batches(images)([2], seed=0)
    assert (share.part, share.others) == ([0, 1], [2, 3, 4])
    stand_ins = Mixing(replace_probability=0.5).batches(images)([2], seed=0)
    assert stand_ins.stand_ins == [(0, [3]), (1, [2, 4])]
    assert type(Mixing().batches(images)([2], seed=0)) is StreamBatches


def test_self_training_that_accepts_nothing_learns_from_real_images():
    assert type(Mixing(real_share=0.5).batches(records([None]))([2], seed=0)) is StreamBatches


@pytest.mark.parametrize("mixing, epoch", [
    (Mixing(), 5), (Mixing(real_share=0.5), 5), (Mixing(replace_probability=0.5), 2),
])  # fmt: skip
def test_an_epoch_is_what_the_help_says(mixing, epoch):
    images = records([None, None, "1.png", "0.png", "1.png"])
    assert Supervised(images, Recipe(), 1, 2, mixing).num_images == epoch


def test_the_batches_of_a_training_hold_the_share(sets):
    real = load_dataset(str(sets / "noise")).records("train")
    generated = read_expansion(sets / "four", {record.file_name: record for record in real})
    origin = [int(record.source is None) for record in [*real, *generated]]
    images = [
        ImageRecord(r.path, r.file_name, origin[i], "", source=r.source)
        for i, r in enumerate([*real, *generated])
    ]
    recipe = Recipe(image_size=16, resize_size=16, workers=0, augment="mixup")
    objective = Supervised(images, recipe, 1, 2, Mixing(real_share=0.75))
    batches = objective.batches([8] * 4, 0, Accelerator())
    assert [int(labels.sum()) for _, labels in batches] == [6] * 4


@pytest.mark.parametrize("labels", ["seed", "amst", "soft"])
def test_the_first_variants_train_as_a_set_of_as_many(train, labels):
    options = f"--labels {labels} --batch_size 6"
    assert equal(train(f"{options} --max_variants 2"), train(options, "two"))


def test_the_first_variants_of_tars_train_as_those_of_folders(train, sets, tmp_path):
    folder = tmp_path / "tars"
    folder.mkdir()
    rows = read_manifest(sets / "four")
    with (folder / "four-00000.tar").open("wb") as file:
        for number, row in enumerate(rows):
            png = (sets / "four" / row["file_name"]).read_bytes()
            row |= {"tar": "four-00000.tar", "offset": file.tell() + 512, "size": len(png)}
            file.write(sample(f"{number:08d}", png, {**row, "label": 0}))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "manifest.four-00000.jsonl").write_text(lines)
    packed = train(f"--expanded_dir {folder} --max_variants 2")
    assert equal(packed, train("", "two"))


def test_the_first_variants_have_the_soft_labels_of_a_file_for_all(train, sets, tmp_path):
    names = sorted(row["file_name"] for row in read_manifest(sets / "four"))
    lines = [{"class_names": ["ant", "bee"]}]
    lines += [{"file_name": name, "soft_label": [0.25, 0.75]} for name in names]
    path = tmp_path / "soft.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = f"--soft_labels {path}"
    assert equal(train(f"{options} --max_variants 2"), train(options, "two"))


def selection_of(sets: Path, path: Path, keep) -> Path:
    """A selection of the set `four`, of the rows for which `keep` is true."""
    rows = read_manifest(sets / "four")
    real = {r.file_name: r for r in load_dataset(str(sets / "noise")).records("train")}
    images = readable_records(read_expansion(sets / "four", real), "fail")[0]
    contents = {record.file_name: record.content for record in images}
    kept = {r["file_name"]: contents[r["file_name"]] for r in rows if keep(r)}
    dropped = {name: "odd" for name in contents if name not in kept}
    Selection("noise", "four", "even ones", {}, {}, kept, dropped).write(path)
    return path


def test_of_a_selection_what_it_keeps_of_the_first_variants_is_trained_on(train, sets, tmp_path):
    even = selection_of(sets, tmp_path / "even.json", lambda row: row["variant"] % 2 == 0)
    few = train(f"--exp set --selection {even} --max_variants 2")
    assert few.parent.name == "resnet10_tiny_unpretrained_set_even_first2_lr0.05"
    assert load_yaml(few / "results.yaml").values["num_generated"] == 6
    assert equal(few, train("--max_variants 1"))  # of the first two only number 0 is even


def test_a_selection_of_later_variants_alone_is_refused_with_the_first(train, sets, tmp_path):
    late = selection_of(sets, tmp_path / "late.json", lambda row: row["variant"] > 1)
    with pytest.raises(InputError, match="late.json keeps none of the first 2 variants"):
        train(f"--selection {late} --max_variants 2")


def test_max_variants_counts_in_the_identity_and_in_the_name(train):
    folder = train("--max_variants 2 --exp set")
    assert folder.parent.name == "resnet10_tiny_unpretrained_set_first2_lr0.05"
    results = load_yaml(folder / "results.yaml").values
    assert (results["max_variants"], results["num_generated"]) == (2, 12)


def test_more_variants_than_there_are_is_refused(train):
    with pytest.raises(InputError, match="four holds 4 variants of each image, max_variants 5"):
        train("--max_variants 5")


@pytest.mark.parametrize(
    "options, name",
    [
        ("--real_share 0.5", "real0.5"),
        ("--replace_probability 0.5", "replace0.5"),
        ("--only_generated", "generated"),
    ],
)
def test_a_mixing_trains_another_network_under_a_name_of_its_own(train, options, name):
    plain, other = train("--exp set"), train(f"--exp set {options}")
    assert not equal(plain, other)
    assert other.parent.name == f"resnet10_tiny_unpretrained_set_{name}_lr0.05"
    key = options.split()[0].removeprefix("--")
    results = load_yaml(other / "results.yaml").values
    assert results[key] in (0.5, True)
    assert key not in load_yaml(plain / "results.yaml").values
    assert results["num_real"] == (0 if key == "only_generated" else 6)


def test_tables_show_how_arms_are_mixed(train, capsys):
    train("--exp set")
    folder = train("--exp set --real_share 0.5")
    parse_logs.main([str(folder.parents[1]), "--table", "--columns", "real_share"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (row,) = (line for line in lines if line[:1] == ["set_real0.5"])
    assert "real_share" in sum(lines, []) and "0.5" in row


def test_only_generated_does_not_look_at_the_pixels_of_real_images(train, sets, tmp_path):
    """Other real images under the same names give the same network."""
    first = train("--only_generated")
    for path in (sets / "noise" / "train").rglob("*.png"):
        kept = path.read_bytes()
        Image.new("RGB", (16, 16)).save(path)
        (tmp_path / f"{path.parent.name}{path.name}.kept").write_bytes(kept)
    try:
        second = train("--only_generated --tag black")
    finally:
        for path in (sets / "noise" / "train").rglob("*.png"):
            path.write_bytes((tmp_path / f"{path.parent.name}{path.name}.kept").read_bytes())
    assert equal(first, second)


def test_a_stopped_run_with_a_share_ends_with_the_same_weights(train, monkeypatch, caplog):
    caplog.set_level("INFO")
    options = "--real_share 0.5 --augment mixup --eval_steps 2"
    whole = train(options)
    step = Trainer._step

    def stopping(self, number, batch):
        if number == 2:
            raise KeyboardInterrupt
        return step(self, number, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(f"{options} --tag stopped")
    resumed = train(f"{options} --tag stopped")
    assert "going on after step 2" in caplog.text and equal(whole, resumed)


@pytest.mark.parametrize("options, message", [
    ("--real_share 1", "real_share 1.0: give more than 0 and less"),
    ("--real_share 0", "real_share 0.0: give"),
    ("--replace_probability 1.5", "replace_probability 1.5: give 0 to 1"),
    ("--max_variants 0", "max_variants 0: give 1 or more"),
    ("--real_share 0.5 --only_generated", "real_share and only_generated exclude each other"),
    ("--labels soft --real_share 0.5", "real_share does not go with --labels soft, .*min_labeled"),
    ("--labels amst --only_generated", "only_generated does not go with --labels amst"),
    ("--labels amst --replace_probability 0.5", "replace_probability does not go with"),
])  # fmt: skip
def test_what_cannot_be_mixed_is_refused(train, options, message):
    with pytest.raises(InputError, match=message):
        train(options)


def test_only_generated_needs_an_image_of_every_class(train, sets, tmp_path):
    target = tmp_path / "ants"
    rows = (sets / "four" / "manifest.0-of-1.1.jsonl").read_text().splitlines(keepends=True)
    (target / "ant").mkdir(parents=True)
    for path in (sets / "four" / "ant").iterdir():
        (target / "ant" / path.name).write_bytes(path.read_bytes())
    kept = [row for row in rows if json.loads(row)["class"] == "ant"]
    (target / "manifest.0-of-1.1.jsonl").write_text("".join(kept))
    with pytest.raises(InputError, match="no generated image of bee, and only_generated"):
        train(f"--only_generated --expanded_dir {target}")
