"""What a study is made of: its settings, its commands, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import expand
import train_expand
import train_original
from expansion.advise.config import AdviseConfig
from expansion.common.config import CONFIG_DIR
from expansion.common.errors import InputError
from expansion.study import choices, plan, talk
from expansion.study.config import read_command_line, settle
from expansion.study.photos import look_at
from expansion.study.settings import SCALES, Arm
from expansion.study.steps import work_left
from tests.conftest import TINY_MODEL
from tests.helpers.stand_ins import folders
from tests.study.conftest import options_of, plain


@pytest.fixture
def photos_dir(tmp_path) -> Path:
    """Class folders without a split."""
    folders(tmp_path / "photos", {"ant": 6, "bee": 4})
    return tmp_path / "photos"


@pytest.mark.slow
def test_a_study_is_guide_then_images_then_classifiers_then_the_result(make_study):
    _, todo = make_study("digits", "--shots", "2")
    kinds = [{command.split()[1] for command in plain(todo, i)} for i in range(4)]
    assert kinds[:3] == [{"train_original.py"}, {"expand.py"}, {"train_expand.py"}]
    assert plain(todo, 3)[1:] == [
        "python parse_logs.py out/checkpoint --table",
        "python parse_logs.py out/checkpoint --table --format html --output out/page.html",
    ]


def test_every_method_of_the_study_stands_alone_and_with_randaugment_and_amst_beside_its_control(
    make_study,
):
    _, todo = make_study()
    titles = [command.title for stage in todo for command in stage.commands if command.work.runs]
    sets = [f"{name}_10x" for name in ("img2img", "text2img", "distdiff", "dreamda")]
    mixed = [f"{name}_real0.25_randaugment" for name in sets]
    amst = "dreamda_10x_real0.25_amst_randaugment"  # of configs/studies/tiny.yaml
    assert sorted(titles) == sorted(["Original", "randaugment", amst, *sets, *mixed])
    assert titles[2] == amst  # the longest is begun first


def test_the_commands_are_those_that_one_would_type(make_study, few_digits_dir):
    words = ("digits", "--shots", "2", "--methods", "img2img", "--seeds", "4", "5")
    _, todo = make_study(*words, "--lr", "0.1", "--no-page")
    place = f"-d digits --data_dir {few_digits_dir} --shots 2"
    recipe = "--checkpoint_dir out/checkpoint --lr 0.1 --budget steps --max_train_steps 300"
    recipe += " --eval_steps 100"
    images = "--exp img2img_10x --expanded_dir out/expanded/img2img_10x"
    assert [command for i in range(4) for command in plain(todo, i)] == [
        f"python train_original.py {place} {recipe} --seeds 4 5",
        f"python train_original.py {place} --augment randaugment {recipe} --seeds 4 5",
        f"python expand.py {place} --method img2img --num_images_per_prompt 10 "
        "--output_dir out/expanded/img2img_10x",
        f"python train_expand.py {place} {images} --augment randaugment --real_share 0.25 {recipe} "
        "--seeds 4 5",
        f"python train_expand.py {place} {images} {recipe} --seeds 4 5",
        "python parse_logs.py out/checkpoint --table",
    ]


@pytest.mark.slow
def test_the_scripts_understand_all_commands_and_agree_on_the_folders(make_study, capsys):
    _, todo = make_study("digits", "--shots", "2", shards=2)
    for command in (c for stage in todo[:2] for c in stage.commands):
        main = {"train_original": train_original, "expand": expand}[command.call.split(":")[0]].main
        if "--encoder_weight_path" not in command.arguments:
            assert not main([*command.arguments, "--dry_run"])
            assert f"output: {command.folders[0].parent if command.work.runs else ''}" in (
                capsys.readouterr().out
            )
    for command in todo[2].commands:
        parsed = train_expand.parse_training(
            command.arguments, "", (), train_expand.TrainExpandConfig, train_expand._learning
        )
        name = train_expand.expanded_arm_name(parsed[0].exp, *parsed[:2], parsed[3])
        assert command.title == name and f"_{name}_lr" in str(command.folders[0])


def test_all_arms_take_the_same_number_of_steps(make_study):
    _, todo = make_study()
    counts = [
        options_of(command.plain)["--max_train_steps"]
        for stage in todo
        for command in stage.commands
        if command.work.runs
    ]
    assert counts == [["300"]] * 11


@pytest.mark.slow
def test_a_guided_method_gets_the_first_classifier_of_the_real_images(make_study):
    _, todo = make_study("digits", "--methods", "distdiff", "--seeds", "7", "8")
    (command,) = plain(todo, 1)
    (guide,) = options_of(command)["--encoder_weight_path"]
    assert guide == str(todo[0].commands[0].folders[0] / "checkpoint.pth.tar")
    assert "/seed7/" in guide
    _, todo = make_study("digits", "--methods", "distdiff", "--guide", "my.pth.tar")
    assert options_of(plain(todo, 1)[0])["--encoder_weight_path"] == ["my.pth.tar"]


@pytest.mark.slow
def test_expansions_are_cut_into_a_part_per_process_but_not_smaller_than_a_batch(make_study):
    _, todo = make_study("digits", "--shots", "2", "--methods", "img2img", shards=3)
    splits = [options_of(command)["--split"] for command in plain(todo, 1)]
    assert splits == [["0"], ["1"], ["2"]]
    words = ("--shots", "1", "--num_images_per_prompt", "5", "--methods", "img2img")
    _, todo = make_study("digits", *words, shards=3)  # 50 images are one batch
    assert "--split" not in plain(todo, 1)[0] and len(todo[1].commands) == 1


@pytest.mark.slow
def test_a_dataset_file_wins_over_the_study_file_and_what_is_typed_over_both(make_study, tmp_path):
    study, todo = make_study()
    assert study.model is None and "--image_size" not in plain(todo, 0)[0]
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "train: {image_size: 40, resize_size: 40, max_train_steps: 9}\n"
        "expand: {guidance_scale: 2}\nmethod_options: {dreamda: {guidance_scale: 4}}\n"
    )
    _, todo = make_study("digits", "--config", str(mine), "--model", str(TINY_MODEL))
    train, sets = options_of(plain(todo, 0)[0]), [options_of(c) for c in plain(todo, 1)]
    assert train["--image_size"] == ["40"] and train["--max_train_steps"] == ["9"]
    assert train["--budget"] == ["steps"]  # options are merged, not replaced
    assert [s["--guidance_scale"] for s in sets] == [["2"], ["2"], ["2"], ["4"]]
    assert all(s["--pretrained_model_name_or_path"] == [str(TINY_MODEL)] for s in sets)


def test_a_study_of_the_time_of_the_disk_cache_goes_on_as_it_was_begun(make_study, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("train: {image_cache: disk, image_cache_gb: 20}")
    study, todo = make_study("digits", "--config", str(mine))
    commands = [command for stage in todo for command in stage.commands]
    assert not any("image_cache" in word for c in commands for word in c.arguments)
    assert study.settings.train["image_cache"] == "disk"  # as in the identity of its folder


def test_a_number_of_images_may_be_a_methods_own(make_study, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("method_options: {dreamda: {num_images_per_prompt: 20}}")
    _, todo = make_study("digits", "--config", str(mine), "--num_images_per_prompt", "3")
    numbers = [options_of(command)["--num_images_per_prompt"] for command in plain(todo, 1)]
    assert numbers == [["3"], ["3"], ["3"], ["20"]]
    assert {c.title for c in todo[2].commands} >= {"img2img_3x", "dreamda_20x"}


def test_what_is_left_of_a_study_is_what_its_folders_lack(make_study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, todo = make_study("digits", "--shots", "2", "--methods", "img2img")
    whole = work_left(todo)
    assert (whole.images, whole.runs) == (200, 12)
    for number in range(50):
        path = Path("out/expanded/img2img_10x/0", f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for seed in (1, 2, 3):
        run = todo[0].commands[0].folders[seed - 1]
        run.mkdir(parents=True)
        (run / "results.yaml").touch()
    left = work_left(todo)
    assert (left.images, left.runs) == (150, 9)
    assert left.rows == whole.rows * 0.75 and left.trained < whole.trained


@pytest.mark.parametrize("scale", SCALES)
def test_every_study_file_compares_all_that_the_question_needs(scale):
    settings = settle(read_command_line(["digits"], ""), scale)
    kinds = [(arm.method, arm.labels, arm.options.get("augment")) for arm in settings.arms]
    assert kinds[:2] == [(None, "seed", None), (None, "seed", "randaugment")]
    for method in settings.config.methods:
        assert {(method, "seed", None), (method, "seed", "randaugment")} <= set(kinds)
    # What AMST's strong views add by themselves stands beside it.
    amst = next(arm for arm in settings.arms if arm.labels == "amst")
    assert ("dreamda", "seed", "randaugment") in kinds
    if "augment" in amst.options:
        assert Arm("dreamda", "seed", amst.options) in settings.arms


def test_every_study_file_is_that_of_a_scale_of_the_adviser_or_of_the_results():
    names = {path.stem for path in (CONFIG_DIR / "studies").glob("*.yaml")}
    assert names == {*SCALES, *AdviseConfig.files, "results"}


# What a stranger gets wrong -> what the one line says.
WRONG = {
    "--methods distdif": "command line: unknown method 'distdif'; did you mean 'distdiff'?",
    "--seeds 1 1": "seeds 1 1: one occurs twice",
    "--test_fraction 30": "test_fraction 30.0: give a share between 0 and 1",
    "": "which photos? give a folder that holds a folder of images per class, or 'mnist-few-shot'",
    "--num_images_per_prompt 0": "num_images_per_prompt 0: give a positive number",
}
WRONG_FILES = {
    "arms: [{}, {method: dremda}]": ("arm 2: unknown method 'dremda'; did you mean 'dreamda'?"),
    "arms: [{}, {method: each, labels: amts}]": ("arm 2: unknown labels 'amts'; did you mean"),
    "arms: [{}, {augmnt: mixup}]": "arm 2: unknown key 'augmnt'; did you mean 'augment'?",
    "arms: [{}, {augment: mixpu}]": "arm 2: augment: 'mixpu' is not one of",
    "arms: [{}, {labels: amst}]": "arm 2: labels amst are those of generated images",
    "arms: [{}, {method: each}, {method: each}]": "arm 3 is the same as an earlier one",
    "arms: [{method: each}]": "add the arm {}, real images only",
    "arms: [{}]": "no arm trains on the images of img2img, text2img, distdiff, dreamda;",
    "arms: [{}, {lr: 1, method: each}]": "arm 2: leave out 'lr'; give it to the study itself",
    "arms: 3": "arms: expected a list, got 3",
    "arms: [x]": "arms: expected dict, got 'x'",
    "train: {max_train_stepz: 3}": "train: unknown key 'max_train_stepz'; did you mean",
    "train: {seeds: [1]}": "train: leave out 'seeds'; give it to the study itself",
    "train: {checkpoint_dir: x}": "train: leave out 'checkpoint_dir'; the study sets it",
    "train: 3": "train: expected dict, got 3",
    "expand: {rho: 3}": "expand: unknown key 'rho'",
    "expand: {strength: much}": "expand: strength: expected float, got 'much'",
    "expand: {strength: 3}": "strength 3.0: give more than 0 and at most 1",
    "method_options: {distdif: {}}": "method_options: unknown method 'distdif'; did you mean",
    "method_options: {distdiff: {roh: 1}}": "method_options: distdiff: unknown key 'roh'; did you",
    "method_options: {distdiff: 3}": "method_options: distdiff: expected 'option: value', got 3",
    "mehtods: [img2img]": "unknown key 'mehtods'; did you mean 'methods'?",
    "scale: huge": "scale: 'huge' is not one of tiny, small, paper",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_word_is_named_before_anything_runs(words):
    with pytest.raises(InputError) as error:
        read_command_line(words.split(), "")
    assert str(error.value).startswith(WRONG[words])


@pytest.mark.parametrize("text", WRONG_FILES)
def test_a_wrong_study_file_is_named_with_its_key(text, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(text)
    with pytest.raises(InputError) as error:
        read_command_line(["digits", "--config", str(mine)], "")
    message = str(error.value)
    assert WRONG_FILES[text] in message and "\n" not in message
    assert str(mine) in message or "strength 3.0" in message


@pytest.mark.slow
def test_two_arms_of_one_name_need_a_tag(make_study, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("arms: [{}, {method: each}, {method: each, weight_decay: 0.1}]")
    words = ("digits", "--methods", "img2img", "--config", str(mine))
    with pytest.raises(InputError, match=r"two arms are called img2img_10x; give one .* a tag"):
        make_study(*words)
    mine.write_text("arms: [{}, {method: each}, {method: each, weight_decay: 0.1, tag: decay}]")
    _, todo = make_study(*words)
    assert todo[2].commands[1].title == "img2img_10x_decay"


@pytest.mark.slow
def test_the_tiny_model_makes_a_rehearsal_of_photos_but_not_of_digits(photos_dir, make_study):
    asked = read_command_line([str(photos_dir), "--model", choices.REHEARSAL_MODEL], "")
    photos = look_at(settle(asked, "small").config)
    settings = plan.decide(asked, photos, None)
    assert plan.is_rehearsal(settings, photos.dataset)
    assert (settings.config.scale, settings.config.arch) == ("tiny", "resnet10_tiny")
    assert (settings.config.num_images_per_prompt, settings.train["max_train_steps"]) == (2, 100)
    study, todo = make_study()
    assert not plan.is_rehearsal(study.settings, study.dataset)


def test_a_begun_study_keeps_what_it_was_begun_with(tmp_path, photos_dir):
    words = [str(photos_dir), "--model", choices.REHEARSAL_MODEL]
    photos = look_at(settle(read_command_line(words, ""), "small").config)
    begun = tmp_path / "study"
    begun.mkdir()
    (begun / "study.yaml").write_text("settings: {arch: resnet18, lr: 0.2, train: {workers: 0}}")
    kept = plan.begun_with(begun)
    settings = plan.decide(read_command_line(words, ""), photos, kept)
    assert (settings.config.arch, settings.config.lr) == ("resnet18", 0.2)
    settings = plan.decide(read_command_line([*words, "--lr", "0.3"], ""), photos, kept)
    assert settings.config.lr == 0.3
    assert plan.begun_with(tmp_path / "nothing") is None


def test_the_best_arm_is_recommended(make_study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, todo = make_study("digits", "--methods", "img2img")
    commands = [command for stage in todo for command in stage.commands if command.work.runs]
    for place, command in enumerate(commands):
        for folder in command.folders:
            folder.mkdir(parents=True)
            (folder / "results.yaml").write_text(
                f"last_accuracy: {[50.0, 70.0, 60.0, 70.0][place]}"
            )
    assert talk.best_run(todo) == commands[1].folders[0]
