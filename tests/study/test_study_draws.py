"""Studies whose seeds draw other images, and several sets by one method."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from expansion.common.errors import InputError
from expansion.data.datasets import choose_subset, load_dataset
from expansion.study import plan
from expansion.study.choices import Machine, choose_network
from expansion.study.config import read_command_line, settle
from expansion.study.photos import look_at
from tests.helpers.stand_ins import folders
from tests.study.conftest import options_of, plain

DRAWN = ("digits", "--shots", "2", "--draw_per_seed", "--methods", "img2img", "--seeds", "4", "7")
SETS = {
    "num_images_per_prompt": 3,
    "methods": ["weak", "img2img"],
    "arms": [{}, {"method": "weak"}, {"method": "img2img"}],
    "method_options": {
        "img2img": {"strength": 0.8, "guidance_scale": 2.0},
        "weak": {"method": "img2img", "strength": 0.3},
    },
}


@pytest.fixture
def study_file(tmp_path):
    """Function that writes a study file like SETS and returns the words that name it."""

    def write(**changes) -> list[str]:
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**SETS, **changes}))
        return ["digits", "--config", str(tmp_path / "mine.yaml")]

    return write


def test_each_seed_has_its_own_images_its_own_sets_and_its_own_guide(make_study):
    _, todo = make_study(*DRAWN[:4], "--methods", "distdiff", "--seeds", "4", "7")
    trained = [options_of(command) for command in plain(todo, 0)]
    assert [(o["--subset_seed"], o["--seeds"]) for o in trained] == [
        (["4"], ["4"]), (["7"], ["7"])
    ] * 2  # fmt: skip
    for seed, command, made in zip((4, 7), plain(todo, 1), todo[1].commands, strict=True):
        options = options_of(command)
        assert options["--subset_seed"] == [str(seed)] and options["--shots"] == ["2"]
        assert options["--output_dir"] == [f"out/expanded/draw{seed}/distdiff_10x"]
        assert made.folders == (Path("out", "expanded", f"draw{seed}", "distdiff_10x"),)
        assert options["--encoder_weight_path"][0].endswith(f"/seed{seed}/checkpoint.pth.tar")
    for command, ran in zip(plain(todo, 2), todo[2].commands, strict=True):
        options = options_of(command)
        (seed,) = options["--seeds"]
        assert options["--subset_seed"] == [seed]
        assert options["--expanded_dir"] == [f"out/expanded/draw{seed}/distdiff_10x"]
        assert [folder.name for folder in ran.folders] == [f"seed{seed}"]


def test_the_runs_of_an_arm_lie_beside_each_other_whatever_they_drew(make_study):
    drawn = {f for stage in make_study(*DRAWN)[1] for c in stage.commands for f in c.folders}
    words = [word for word in DRAWN if word != "--draw_per_seed"]
    usual = {f for stage in make_study(*words)[1] for c in stage.commands for f in c.folders}
    assert {f for f in drawn if "checkpoint" in f.parts} == {
        f for f in usual if "checkpoint" in f.parts
    }


def test_two_seeds_are_two_draws_of_the_same_size(few_digits_dir):
    records = load_dataset("digits", few_digits_dir).records("train")
    drawn = [{r.file_name for r in choose_subset(records, 2, seed, None)} for seed in (1, 2)]
    assert [len(names) for names in drawn] == [20, 20] and drawn[0] != drawn[1]


def identity(few_digits_dir, *words: str) -> dict:
    asked = read_command_line([*words, "--data_dir", str(few_digits_dir)], "")
    photos = look_at(settle(asked, "tiny").config)
    settings = plan.decide(asked, photos, None)
    network = choose_network(settings, photos.side, len(photos.train), Machine([]))
    return plan.identity_of(plan.study_of(settings, photos, Path("out"), network), photos, network)


def test_a_seed_may_be_added_later_but_not_another_number_of_images(few_digits_dir):
    first = identity(few_digits_dir, *DRAWN)
    assert identity(few_digits_dir, *DRAWN, "9") == first
    assert identity(few_digits_dir, *DRAWN[:7], "9") == first
    assert identity(few_digits_dir, *DRAWN, "--shots", "3") != first
    assert identity(few_digits_dir, *(w for w in DRAWN if w != "--draw_per_seed")) != first


def test_the_page_of_draws_is_judged_by_a_classifier_that_was_no_guide(make_study):
    _, todo = make_study(*DRAWN[:4], "--methods", "distdiff", "--seeds", "4", "7")
    judges = [c.arguments for c in todo[3].commands if c.title == "recognised"]
    assert [Path(judge).name for judge, _ in judges] == ["seed7", "seed4"]
    assert [Path(folder).parent.name for _, folder in judges] == ["draw4", "draw7"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--draw_per_seed", "draw_per_seed: give --shots, the images per class"),
        ("--draw_per_seed --shots 2 --subset_seed 3", "subset_seed 3: with draw_per_seed the see"),
    ],
)
def test_draws_need_a_number_of_images_and_no_seed_of_their_own(words, message):
    with pytest.raises(InputError) as error:
        read_command_line(["digits", *words.split()], "")
    assert str(error.value).startswith(message)


def test_an_image_that_only_a_later_seed_draws_may_be_broken(tmp_path):
    for split, count in (("train", 6), ("test", 1)):
        folders(tmp_path / "photos" / split, {"ant": count, "bee": count})
    root = str(tmp_path / "photos")
    records = load_dataset(root).records("train")
    names = [{r.path for r in choose_subset(records, 2, seed, None)} for seed in (1, 2)]
    broken = sorted(names[1] - names[0])[0]
    broken.write_bytes(b"no image")
    words = [root, "--shots", "2", "--seeds", "1", "2"]
    photos = look_at(settle(read_command_line([*words, "--draw_per_seed"], ""), "tiny").config)
    assert photos.place[-2:] == ("--on_error", "skip") and len(photos.unreadable) == 1
    assert {r.path for r in photos.train} == names[0]


def test_a_further_set_has_the_options_of_its_method_beneath_its_own(make_study, study_file):
    study, todo = make_study(*study_file())
    weak, plain_one = (options_of(command) for command in plain(todo, 1))
    assert weak["--method"] == plain_one["--method"] == ["img2img"]
    assert (weak["--strength"], plain_one["--strength"]) == (["0.3"], ["0.8"])
    assert weak["--guidance_scale"] == plain_one["--guidance_scale"] == ["2"]
    assert weak["--output_dir"] == ["out/expanded/weak_3x"]
    assert "--encoder_weight_path" not in weak
    trained = {c.title: options_of(c.plain)["--expanded_dir"] for c in todo[2].commands}
    assert trained == {
        "weak_3x": ["out/expanded/weak_3x"],
        "img2img_3x": ["out/expanded/img2img_3x"],
    }


def test_a_further_set_of_a_guided_method_has_the_guide_and_its_own_number(make_study, study_file):
    options = {"spread": {"method": "distdiff", "num_images_per_prompt": 2, "rho": 3}}
    words = study_file(methods=["spread"], arms=[{}, {"method": "spread"}], method_options=options)
    _, todo = make_study(*words)
    (command,) = plain(todo, 1)
    made = options_of(command)
    assert made["--method"] == ["distdiff"] and made["--rho"] == ["3"]
    assert made["--num_images_per_prompt"] == ["2"] and "--encoder_weight_path" in made
    assert todo[2].commands[0].title == "spread_2x"


def test_what_a_dataset_says_of_a_method_holds_for_its_further_sets(make_study, study_file):
    options = {"mild": {"method": "dreamda", "noise_scale": 2}}
    words = study_file(methods=["mild"], arms=[{}, {"method": "mild"}], method_options=options)
    study, todo = make_study(*words)
    assert study.settings.method_options["mild"]["guidance_scale"] == 7.5  # of digits.yaml
    made = options_of(plain(todo, 1)[0])
    assert made["--noise_scale"] == ["2"] and "--guidance_scale" not in made


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weak": {"strength": 0.3}}, "method_options: unknown method 'weak'"),
        ({"weak": {"method": "img2imgg"}}, "weak: unknown method 'img2imgg'; did you mean 'img2im"),
        ({"weak": {"method": "weak"}}, "weak: unknown method 'weak'"),
        ({"weak": {"method": None}}, "weak: unknown method 'None'"),
        ({"distdiff": {"method": "img2img"}}, "distdiff: is the name of a method; give another"),
        ({"a/b": {"method": "img2img"}}, "a/b: names a folder; give a text of letters"),
        ({"..": {"method": "img2img"}}, "..: names a folder; give a text of letters"),
        ({".weak": {"method": "img2img"}}, ".weak: names a folder; give a text of letters"),
        ({"-weak": {"method": "img2img"}}, "-weak: names a folder; give a text of letters"),
        ({5: {"method": "img2img"}}, "5: names a folder; give a text of letters"),
        ({"weak": {"method": "img2img", "rho": 1}}, "weak: unknown key 'rho'"),
        ({"weak": {"method": "img2img", "strength": 3}}, "strength 3.0: give more than 0"),
        ({"weak": {"method": "img2img", "seeds": [1]}}, "weak: leave out 'seeds'; give it to the"),
    ],
)
def test_a_wrong_further_set_is_named(options, message, study_file):
    with pytest.raises(InputError) as error:
        read_command_line(study_file(method_options=options, methods=["img2img"]), "")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["train", "expand"])
def test_a_study_sets_the_fold_itself(key, study_file):
    with pytest.raises(InputError, match=f"{key}: leave out 'fold'; the study sets it"):
        read_command_line(study_file(**{key: {"fold": "1/5"}}), "")


def test_options_of_all_expansions_need_to_suit_the_methods_of_the_study_alone(study_file):
    few = {"expand": {"num_inference_steps": 5}, "method_options": {}}  # distdiff guides at step 20
    words = study_file(methods=["img2img"], arms=[{}, {"method": "img2img"}], **few)
    read_command_line(words, "")
    words = study_file(methods=["distdiff"], arms=[{}, {"method": "distdiff"}], **few)
    with pytest.raises(InputError, match="guidance_step 20 lies before the first of the"):
        read_command_line(words, "")


def test_a_begun_study_knows_its_further_sets_without_the_file(few_digits_dir, study_file):
    place = ["--data_dir", str(few_digits_dir)]
    asked = read_command_line([*study_file(), *place], "")
    photos = look_at(settle(asked, "tiny").config)
    settings = plan.decide(asked, photos, None)
    network = choose_network(settings, photos.side, len(photos.train), Machine([]))
    study = plan.study_of(settings, photos, Path("out"), network)
    kept = yaml.safe_load(yaml.safe_dump(plan.identity_of(study, photos, network)["settings"]))
    assert kept["method_options"]["weak"] == {
        "method": "img2img",
        "strength": 0.3,
        "guidance_scale": 2.0,
    }
    # The file no longer says it.
    asked = read_command_line(["digits", "--methods", "img2img", *place], "")
    begun = plan.Source(kept, "out/study.yaml")
    again = plan.decide(asked, photos, begun)
    assert again.samplers["weak"] == "img2img"
    assert again.method_options["weak"] == settings.method_options["weak"]
