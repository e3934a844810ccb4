"""`--fold`: cross-validation on the training images; the test split is never opened."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import expand
import train_expand
import train_original
from expansion.common.config import load_yaml
from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from expansion.data.splits import fold_of
from expansion.images.content import readable_records
from expansion.metrics.predictions import Predictions
from tests.conftest import TINY_MODEL
from tests.training.conftest import CLASSES, NUM_VARIANTS

TINY = "-a resnet10_tiny --image_size 16 --resize_size 16 --workers 0 --batch_size 4 --seeds 1"
STEPS = "--budget steps --max_train_steps 2 --lr 0.05"


@pytest.fixture
def noise(sets, tmp_path) -> Path:
    """The noise with test images that nobody can read."""
    shutil.copytree(sets / "noise", tmp_path / "noise")
    for path in (tmp_path / "noise" / "test").rglob("*.png"):
        path.write_bytes(b"no image")
    return tmp_path / "noise"


def original(noise: Path, checkpoints: Path, *words: str) -> Path:
    """The run folder."""
    line = f"-d {noise} --checkpoint_dir {checkpoints} {TINY} {STEPS}"
    assert not train_original.main([*shlex.split(line), *words])
    (run,) = checkpoints.rglob("results.yaml")
    return run.parent


def part_of(noise: Path, fold: str) -> list[str]:
    records, _ = readable_records(load_dataset(str(noise)).records("train"), "fail")
    return [record.file_name for record in fold_of(records, fold, 0)[1]]


def learnt_from(monkeypatch) -> list[str]:
    """Gets the file names of the real images and the sources of the generated ones."""
    names: list[str] = []

    def look(config, recipe, data, arm):
        names.extend(record.file_name for record in data.train)
        names.extend(record.source for record in arm.generated)

    monkeypatch.setattr(train_expand, "train_seeds", look)
    return names


@pytest.mark.slow
def test_a_training_with_a_fold_needs_no_test_image_and_is_tested_on_its_part(noise, tmp_path):
    with pytest.raises(InputError, match="cannot read the image"):
        original(noise, tmp_path / "without")
    run = original(noise, tmp_path / "runs", "--fold", "2/3")
    tested = Predictions.load(run / "predictions.npz")
    assert list(tested.file_names) == part_of(noise, "2/3") and len(tested.file_names) == 2
    options = load_yaml(run / "options.yaml").values
    assert (options["num_real"], options["num_test"]) == (4, 2)
    assert load_yaml(run / "results.yaml").values["subset_seed"] == 0
    with pytest.raises(InputError, match="was begun with other settings"):
        original(noise, tmp_path / "runs", "--fold", "1/3")


def test_a_folder_without_a_test_split_can_be_cross_validated(noise, capsys):
    shutil.rmtree(noise / "test")
    line = f"-d {noise} {TINY} {STEPS} --fold 1/3 --dry_run"
    assert not train_original.main(shlex.split(line))
    assert "4 real + 0 generated; 0 held out, 2 for testing" in capsys.readouterr().out


def test_images_that_are_held_out_for_selection_are_not_those_of_the_part(noise, capsys):
    line = f"-d {noise} {TINY} {STEPS} --fold 1/3 --val_fraction 0.5 --dry_run"
    assert not train_original.main(shlex.split(line))
    assert "2 real + 0 generated; 2 held out, 2 for testing" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["0/5", "6/5", "1/1", "a/b", "5"])
@pytest.mark.parametrize("main", [train_original.main, train_expand.main, expand.main])
def test_a_fold_that_is_none_ends_every_command_in_one_line(main, text, noise, sets):
    words = ["-d", str(noise), "--fold", text, "--dry_run"]
    if main is train_expand.main:
        words += ["--expanded_dir", str(sets / "four")]
    if main is expand.main:
        words += ["--method", "img2img", "--pretrained_model_name_or_path", str(TINY_MODEL)]
    with pytest.raises(InputError) as error:
        main(words)
    assert str(error.value).startswith(f"--fold {text}: write I/K") and "\n" not in str(error.value)


@pytest.mark.parametrize("fold", ["1/3", "2/3", "3/3"])
def test_no_variant_of_an_image_that_is_tested_on_is_learnt_from(fold, noise, sets, monkeypatch):
    names = learnt_from(monkeypatch)
    line = f"-d {noise} {TINY} {STEPS} --expanded_dir {sets / 'four'} --fold {fold}"
    train_expand.main(shlex.split(line))
    others = {f"train/{c}/{i}.png" for c in CLASSES for i in range(3)} - {*part_of(noise, fold)}
    assert len(others) == 4
    assert sorted(names) == sorted([*others] * (1 + NUM_VARIANTS))


def test_a_copy_of_a_tested_image_under_another_name_is_not_learnt_from(noise, sets, monkeypatch):
    for name, target in (("ant/0.png", "ant/copy.png"), ("bee/1.png", "ant/mislabelled.png")):
        shutil.copy(noise / "train" / name, noise / "train" / target)
    names = learnt_from(monkeypatch)
    whole: list[str] = []
    for number in (1, 2, 3):
        names.clear()
        line = f"-d {noise} {TINY} {STEPS} --expanded_dir {sets / 'four'} --fold {number}/3"
        train_expand.main([*shlex.split(line), "--on_incomplete", "use"])
        pixels = {(noise / name).read_bytes() for name in names}
        part = part_of(noise, f"{number}/3")
        assert not pixels & {(noise / name).read_bytes() for name in part}
        whole += part
    assert len(whole) == 8


def test_a_set_that_does_not_name_its_sources_is_remarked_upon(
    noise, tmp_path, monkeypatch, caplog
):
    rng = np.random.default_rng(1)
    for name in CLASSES:
        (tmp_path / "other" / name).mkdir(parents=True)
        pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "other" / name / "1.png")
    learnt_from(monkeypatch)
    line = f"-d {noise} {TINY} {STEPS} --expanded_dir {tmp_path / 'other'}"
    train_expand.main(shlex.split(f"{line} --fold 1/3"))
    assert "held-out ones may be among them" in caplog.text


@pytest.mark.slow
def test_a_set_by_a_guide_must_know_nothing_of_the_part_that_is_tested_on(
    noise, tmp_path, monkeypatch, capsys
):
    guides = {
        fold: original(noise, tmp_path / f"guide{fold[0]}", "--fold", fold) / "checkpoint.pth.tar"
        for fold in ("1/3", "2/3")
    }
    make = f"-d {noise} --method distdiff --pretrained_model_name_or_path {TINY_MODEL}"
    make += " --num_inference_steps 4 --guidance_step 2 --resolution 32 --batch_size 8"
    make += " --num_images_per_prompt 1 --device cpu"

    def expanded(name: str, guide: str, *words: str) -> str:
        place = ["--output_dir", str(tmp_path / name)]
        given = ["--encoder_weight_path", str(guides[guide])]
        assert not expand.main([*shlex.split(make), *given, *place, *words])
        return str(tmp_path / name)

    # Which guides a set may have.
    with pytest.raises(InputError, match="was not tested on the part that --fold 1/3 holds out"):
        expanded("no", "2/3", "--fold", "1/3")
    own = expanded("own", "1/3", "--fold", "1/3")
    everything = expanded("everything", "2/3")
    # Which sets a training may have.
    names = learnt_from(monkeypatch)
    line = f"-d {noise} {TINY} {STEPS} --expanded_dir"
    train_expand.main([*shlex.split(line), own, "--fold", "1/3"])
    assert len(names) == 8 and not {*names} & {*part_of(noise, "1/3")}
    for folder, fold in ((everything, "1/3"), (own, "2/3")):
        with pytest.raises(InputError) as error:
            train_expand.main([*shlex.split(line), folder, "--fold", fold])
        assert "--fold " + fold in str(error.value)


@pytest.mark.slow
def test_an_expansion_of_a_fold_is_of_what_is_trained_on_and_lists_all_that_shots_kept(
    noise, tmp_path
):
    kept = tmp_path / "kept.json"
    line = f"-d {noise} --method img2img --pretrained_model_name_or_path {TINY_MODEL}"
    line += " --num_inference_steps 2 --resolution 32 --num_images_per_prompt 1 --device cpu"
    line += f" --shots 3 --subset_file {kept} --fold 1/3 --output_dir {tmp_path / 'out'}"
    assert not expand.main(shlex.split(line))
    assert len(list((tmp_path / "out").glob("*/*.png"))) == 4
    assert kept.read_text().count(".png") == 6
    assert not expand.main([*shlex.split(line), "--fold", "2/3"])  # the same folder grows
    assert len(list((tmp_path / "out").glob("*/*.png"))) == 6
