"""What becomes of a paper's settings at a smaller scale."""

from __future__ import annotations

import pytest
import yaml

from expansion.common.errors import InputError
from expansion.reproduce import scales
from expansion.reproduce.scales import read_scale


def scaled(method: str, given: dict, images: int = 5, swept: bool = False, scale: str = "small"):
    return read_scale(scale).expansion("caltech-101", method, given, images, swept)


@pytest.mark.parametrize(
    ("window", "period", "expected"),
    [
        # 25 of 50 steps are run in the paper, 12 of 15 here: M * 12 / 25, to the nearest.
        (20, 2, (10, 2)),
        (25, 2, (12, 2)),
        (10, 4, (5, 4)),
        (1, 1, (1, 1)),
        (5, 4, (2, 2)),  # 2.4; no longer than to the end
    ],
)
def test_the_window_of_guided_steps_keeps_its_place_in_the_schedule(window, period, expected):
    given = {"guidance_step": window, "guidance_period": period}
    options = scaled("distdiff", given).options
    assert (options["guidance_step"], options["guidance_period"]) == expected


def test_what_the_scale_changes_is_said():
    notes = scaled("distdiff", {"K": 2}).notes
    assert "guidance_step 20 of 25 steps -> 10 of 12" in notes
    assert "distdiff: num_inference_steps 50 -> 15" in notes
    assert "distdiff: strength 0.5 -> 0.8" in notes
    assert "5 images of each real one -> 10" in notes


def test_more_groups_than_a_class_has_images_are_said_to_be_that_many():
    note = "distdiff: K 5 -> 2, the images of a class"
    assert note in scaled("distdiff", {"K": 5}).notes
    for fewer in ({"K": 2}, {"optimize_targets": "global_prototype"}):
        assert not any(" K " in each for each in scaled("distdiff", fewer).notes)


def test_what_a_table_sweeps_keeps_its_value():
    assert scaled("distdiff", {"rho": 0.1, "K": 5}).options["rho"] == 0.1
    assert scaled("img2img", {"strength": 0.3}).options["strength"] == 0.3
    assert scaled("img2img", {}, images=20, swept=True).images == 20
    assert scaled("img2img", {}, images=20, swept=False).images == 10


def test_a_strength_without_a_step_is_raised_to_one():
    options = scaled("img2img", {"strength": 0.05}).options
    assert options["strength"] == pytest.approx(1 / 15)


def test_the_papers_own_scale_changes_nothing():
    given = {"guidance_step": 20, "strength": 0.5, "resolution": 512}
    found = scaled("distdiff", given, images=30, scale="paper")
    assert (found.options, found.images, found.notes) == (given, 30, ())


def test_networks_that_do_not_fit_small_images_have_stand_ins():
    train, notes = read_scale("small").training({"arch": "resnet50", "epochs": 90}, 0, 0)
    assert train["arch"] == "resnet10_tiny" and train["max_train_steps"] == 300
    assert "epochs" not in train
    assert "resnet50 -> resnet10_tiny" in notes and "epochs 90 -> left out" in notes


def test_the_first_of_more_variants_than_are_made_are_all_of_them():
    train, notes = read_scale("tiny").training({"max_variants": 10}, 20, 3)
    assert "max_variants" not in train and "the first 10 variants -> 3" in notes
    assert read_scale("tiny").training({"max_variants": 2}, 20, 3)[0]["max_variants"] == 2
    paper = read_scale("paper")
    assert paper.training({"max_variants": 5}, 5, 5) == ({}, [])
    assert paper.training({"max_variants": 5}, 20, 20) == ({"max_variants": 5}, [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": [1, 2, 1]}, "configs/papers/small.yaml: seeds 1 2 1: one occurs twice"),
        ({"images": 0}, "configs/papers/small.yaml: images 0: give 1 or more"),
        ({"most_images": 0}, "configs/papers/small.yaml: most_images 0: give 1 or more"),
    ],
)
def test_a_scale_is_refused_that_would_count_a_run_twice_or_make_nothing(
    change, words, tmp_path, monkeypatch
):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(change))
    monkeypatch.setattr(scales, "FOLDER", tmp_path)
    with pytest.raises(InputError) as error:
        read_scale("small")
    assert str(error.value) == words
