"""`expand.py --until_kept`: rounds of variants until a judge accepts enough of every class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import expand
import train_expand
import train_original
from expansion.classifier.clip import ClipClassifier
from expansion.common.config import load_yaml
from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from expansion.images.records import ImageRecord
from tests.helpers.clip_folders import clip_dir  # noqa: F401

CLASSIFIER = "-a resnet10_tiny --image_size 32 --resize_size 36 --workers 0 --seeds 1"


@pytest.fixture(scope="module")
def judge(digits_dir, tmp_path_factory) -> Path:
    """The run folder of a classifier of all digits."""
    runs = tmp_path_factory.mktemp("runs")
    line = f"-d digits --data_dir {digits_dir} --checkpoint_dir {runs} {CLASSIFIER}"
    train_original.main(f"{line} --budget steps --max_train_steps 60".split())
    return next(runs.rglob("seed1"))


def grow(digits_dir, output: Path, judge: object, *more: object) -> int | None:
    line = f"-d digits --data_dir {digits_dir} --method img2img --shots 1 --output_dir {output}"
    line += f" --num_inference_steps 5 --strength 0.6 --num_images_per_prompt 1 --judge {judge}"
    return expand.main([*line.split(), "--device", "cpu", "--batch_size", "4", *map(str, more)])


def content(output: Path) -> dict[str, bytes]:
    names = [path.relative_to(output).as_posix() for path in output.glob("*/*.png")]
    return {name: (output / name).read_bytes() for name in (*names, "selected.json")}


@pytest.fixture(scope="module")
def whole(digits_dir, judge, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "set"
    assert not grow(digits_dir, output, judge, "--until_kept", 3, "--most_variants", 16)
    return output


def test_every_class_has_as_many_as_asked_for_and_the_set_is_whole(whole):
    selection = json.loads((whole / "selected.json").read_text())
    assert all(each["kept"] == 3 for each in selection["classes"].values())
    asked = json.loads((whole / "plan.json").read_text())["num_images_per_prompt"]
    assert asked in (4, 8, 16)  # 3 of one real image need two doublings or more
    assert len(selection["kept"]) == 30
    assert len(selection["kept"]) + len(selection["dropped"]) == 10 * asked
    assert len(list(whole.glob("*/*.png"))) == 10 * asked


def test_shards_that_take_turns_and_a_stop_come_to_the_same(
    digits_dir, judge, whole, tmp_path, monkeypatch
):
    options = ("--until_kept", 3, "--most_variants", 16, "--total_split", 2, "--split")
    # A process dies in its first round.
    with monkeypatch.context() as patch:
        patch.setattr("expansion.store.writer.ExpansionWriter.note_unit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            grow(digits_dir, tmp_path, judge, *options, 0)
    # Then both take turns: one that finds the other's part missing says so.
    statuses = [grow(digits_dir, tmp_path, judge, *options, turn % 2) for turn in range(20)]
    assert statuses[0] == 1 and statuses[-2:] == [0, 0]
    chosen, other = (json.loads((f / "selected.json").read_text()) for f in (tmp_path, whole))
    assert chosen["kept"].keys() == other["kept"].keys()


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_same_command_once_more_makes_nothing_new(digits_dir, judge, whole):
    before = content(whole)
    assert not grow(digits_dir, whole, judge, "--until_kept", 3, "--most_variants", 16)
    assert content(whole) == before


def test_a_classifier_learns_from_the_selection(digits_dir, whole, tmp_path):
    line = f"-d digits --data_dir {digits_dir} --shots 1 --expanded_dir {whole} {CLASSIFIER}"
    line += f" --selection {whole / 'selected.json'} --checkpoint_dir {tmp_path}"
    train_expand.main(f"{line} --budget steps --max_train_steps 2".split())
    (path,) = tmp_path.rglob("results.yaml")
    assert load_yaml(path).values["num_generated"] == 30


def test_too_few_in_the_end_are_named_and_no_selection_is_left(digits_dir, judge, tmp_path):
    more = ("--until_kept", 3, "--most_variants", 2)
    with pytest.raises(InputError, match=r"2 variants .* do not bring 3 accepted ones of 0 \(\d\)"):
        grow(digits_dir, tmp_path / "set", judge, *more)
    assert not (tmp_path / "set" / "selected.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--until_kept 0", "until_kept 0: give a positive number"),
        ("--until_kept 2 --judge_at_least 1.5", "judge_at_least 1.5: give more than 0"),
        ("--until_kept 2 --most_variants 0", "most_variants 0: give num_images_per_prompt or more"),
        (
            "--until_kept 2 --output_format webdataset",
            "one of webdataset cannot be extended",
        ),
        ("", "give --until_kept and --judge"),
        ("--until_kept 2 --judge_template a{}", "for a CLIP; give --judge clip:ID_OR_FOLDER"),
        ("--until_kept 2 --judge clip:no --judge_template a", "'a': write {} once"),
        ("--until_kept 2 --judge clip:./no", "clip:FOLDER"),
    ],
)
def test_options_that_do_not_fit_are_refused(digits_dir, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        grow(digits_dir, tmp_path / "set", "nowhere", *options.split())
    assert not (tmp_path / "set").exists()


def test_a_judge_that_is_no_finished_run_is_refused_before_anything_is_made(digits_dir, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        grow(digits_dir, tmp_path / "set", tmp_path / "nowhere", "--until_kept", 2)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("fault", ["generated images", "does not know"])
def test_a_judge_that_does_not_fit_is_refused_before_anything_is_made(
    digits_dir, judge, tmp_path, fault
):
    other = tmp_path / "seed1"
    shutil.copytree(judge, other)
    if fault == "generated images":
        results = (
            (other / "results.yaml").read_text().replace("num_generated: 0", "num_generated: 9")
        )
        (other / "results.yaml").write_text(results)
    else:
        path = other / "checkpoint.pth.tar"
        state = torch.load(path, weights_only=True)
        torch.save({**state, "class_names": [f"kind {i}" for i in range(10)]}, path)
    with pytest.raises(InputError, match=fault):
        grow(digits_dir, tmp_path / "set", other, "--until_kept", 2)
    assert not (tmp_path / "set").exists()


def own_by_clip(clip: ClipClassifier, output: Path) -> dict[str, float]:
    """The probability of every image's own class."""
    rows = (output / "metadata.jsonl").read_text().splitlines()
    records = [
        ImageRecord(output / row["file_name"], row["file_name"], row["label"], row["class"], "s")
        for row in map(json.loads, rows)
    ]
    found = clip.predict(records).tolist()
    return {r.file_name: own[r.label] for r, own in zip(records, found, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("template", [None, "the number {}"])
def test_a_clip_may_be_the_judge(digits_dir, clip_dir, tmp_path, template):  # noqa: F811
    dataset = load_dataset("digits", digits_dir)
    told = template or dataset.config.prompt_template
    clip = ClipClassifier.load(str(clip_dir), dataset.prompt_names, [told])
    options = ["--until_kept", 1, "--num_images_per_prompt", 4, "--most_variants", 4]
    options += ["--judge_template", template] if template else []
    output = tmp_path / "set"
    assert not grow(digits_dir, output, f"clip:{clip_dir}", *options, "--judge_at_least", 1e-9)
    # The largest limit that an image of every class reaches, and some are below it.
    own = own_by_clip(clip, output)
    limit = min(max(p for name, p in own.items() if name[0] == str(i)) for i in range(10)) - 1e-6
    assert not grow(digits_dir, output, f"clip:{clip_dir}", *options, "--judge_at_least", limit)
    selection = json.loads((output / "selected.json").read_text())
    assert all(each["kept"] == 1 for each in selection["classes"].values())
    assert selection["rule"].startswith("clip_own_probability at least ")
    assert selection["settings"].get("judge_template") == template
    below = {name for name, why in selection["dropped"].items() if "below" in why}
    assert below == {name for name, p in own.items() if p < limit} and below


def test_images_in_memory_and_files_get_the_same_probabilities(digits_dir, clip_dir):  # noqa: F811
    records = load_dataset("digits", digits_dir).records("train")[:5]
    clip = ClipClassifier.load(str(clip_dir), ["a", "b", "c"], ["{}"])
    found = clip.of_images([record.load() for record in records], batch_size=2)
    assert found.shape == (5, 3) and torch.allclose(found, clip.predict(records), atol=1e-6)
