"""What a study is made of: its settings, its commands, its choices, and what is refused."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, TINY_MODEL
from stand_ins import folders

import expand
import train_expand
import train_original
from expansion.config import CONFIG_DIR
from expansion.errors import InputError
from expansion.image_datasets import load_dataset
from expansion.study import choices, estimate, jobs, plan, talk
from expansion.study.choices import Machine, choose_network
from expansion.study.config import METHODS, SCALES, read_command_line, settle
from expansion.study.photos import look_at
from expansion.study.steps import stages, work_left

CPU = Machine([])
GPU = Machine(["a GPU"])
WEIGHTS = {"resnet50": "cached", "resnet18": "reachable"}


@pytest.fixture
def photos_dir(tmp_path) -> Path:
    """Class folders without a split."""
    folders(tmp_path / "photos", {"ant": 6, "bee": 4})
    return tmp_path / "photos"


@pytest.fixture(scope="session")
def few_digits_dir(tmp_path_factory, digits_dir) -> Path:
    """A data folder with a few of the digits, which are looked at in no time."""
    folder = tmp_path_factory.mktemp("few")
    for split, number in (("train", 20), ("test", 1)):
        for place in sorted((digits_dir / "digits" / split).iterdir()):
            (folder / "digits" / split / place.name).mkdir(parents=True)
            for path in sorted(place.iterdir())[:number]:
                shutil.copy(path, folder / "digits" / split / place.name)
    return folder


@pytest.fixture
def make_study(few_digits_dir):
    """Function that makes a study of the digits, and its stages, from a command line."""

    def make(*words: str, shards: int = 1, machine: Machine = CPU):
        words = words or ("digits",)
        asked = read_command_line([*words, "--data_dir", str(few_digits_dir)], "")
        photos = look_at(settle(asked, "tiny").config)
        settings = plan.decide(asked, photos, None)
        network = choose_network(settings, photos.side, len(photos.train), machine)
        study = plan.study_of(settings, photos, Path("out"), network)
        return study, stages(study, shards)

    return make


def plain(todo, stage: int) -> list[str]:
    return [command.plain for command in todo[stage].commands]


def options_of(command: str) -> dict[str, list[str]]:
    """Option -> its values."""
    found: dict[str, list[str]] = {}
    for word in shlex.split(command)[2:]:
        if word.startswith("-"):
            found[word] = values = []
        else:
            values.append(word)
    return found


def test_a_study_is_guide_then_images_then_classifiers_then_the_result(make_study):
    _, todo = make_study("digits", "--shots", "2")
    kinds = [{command.split()[1] for command in plain(todo, i)} for i in range(4)]
    assert kinds[:3] == [{"train_original.py"}, {"expand.py"}, {"train_expand.py"}]
    assert plain(todo, 3)[1:] == [
        "python parse_logs.py out/checkpoint --table",
        "python parse_logs.py out/checkpoint --table --format html --output out/page.html",
    ]


def test_every_method_has_seed_labels_and_randaugment_and_amst_stands_beside_them(make_study):
    _, todo = make_study()
    titles = [command.title for stage in todo for command in stage.commands if command.work.runs]
    sets = [f"{method}_10x" for method in METHODS]
    assert sorted(titles) == sorted(
        ["Original", "randaugment", "dreamda_10x_amst", *sets, *(f"{s}_randaugment" for s in sets)]
    )
    assert titles[2].endswith("amst")  # the longest is begun first


def test_the_commands_are_those_that_one_would_type(make_study, few_digits_dir):
    words = ("digits", "--shots", "2", "--methods", "img2img", "--seeds", "4", "5")
    _, todo = make_study(*words, "--lr", "0.1", "--no-page")
    place = f"-d digits --data_dir {few_digits_dir} --shots 2"
    recipe = "--checkpoint_dir out/checkpoint --lr 0.1 --budget steps --max_train_steps 300"
    images = "--exp img2img_10x --expanded_dir out/expanded/img2img_10x"
    assert [command for i in range(4) for command in plain(todo, i)] == [
        f"python train_original.py {place} {recipe} --seeds 4 5",
        f"python train_original.py {place} --augment randaugment {recipe} --seeds 4 5",
        f"python expand.py {place} --method img2img --num_images_per_prompt 10 "
        "--output_dir out/expanded/img2img_10x",
        f"python train_expand.py {place} {images} --augment randaugment {recipe} --seeds 4 5",
        f"python train_expand.py {place} {images} {recipe} --seeds 4 5",
        "python parse_logs.py out/checkpoint --table",
    ]


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
        name = train_expand.expanded_arm_name(parsed[0].exp, *parsed[:2])
        assert command.title == name and f"_{name}_lr" in str(command.folders[0])


def test_all_arms_take_the_same_number_of_steps(make_study):
    _, todo = make_study()
    counts = [
        options_of(command.plain)["--max_train_steps"]
        for stage in todo
        for command in stage.commands
        if command.work.runs
    ]
    assert counts == [["300"]] * 9


def test_a_guided_method_gets_the_first_classifier_of_the_real_images(make_study):
    _, todo = make_study("digits", "--methods", "distdiff", "--seeds", "7", "8")
    (command,) = plain(todo, 1)
    (guide,) = options_of(command)["--encoder_weight_path"]
    assert guide == str(todo[0].commands[0].folders[0] / "checkpoint.pth.tar")
    assert "/seed7/" in guide
    _, todo = make_study("digits", "--methods", "distdiff", "--guide", "my.pth.tar")
    assert options_of(plain(todo, 1)[0])["--encoder_weight_path"] == ["my.pth.tar"]


def test_expansions_are_cut_into_a_part_per_process_but_not_smaller_than_a_batch(make_study):
    _, todo = make_study("digits", "--shots", "2", "--methods", "img2img", shards=3)
    splits = [options_of(command)["--split"] for command in plain(todo, 1)]
    assert splits == [["0"], ["1"], ["2"]]
    words = ("--shots", "1", "--num_images_per_prompt", "5", "--methods", "img2img")
    _, todo = make_study("digits", *words, shards=3)  # 50 images are one batch
    assert "--split" not in plain(todo, 1)[0] and len(todo[1].commands) == 1


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
    assert [s["--guidance_scale"] for s in sets] == [["2"], ["2"], ["4"]]
    assert all(s["--pretrained_model_name_or_path"] == [str(TINY_MODEL)] for s in sets)


def test_a_number_of_images_may_be_a_methods_own(make_study, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("method_options: {dreamda: {num_images_per_prompt: 20}}")
    _, todo = make_study("digits", "--config", str(mine), "--num_images_per_prompt", "3")
    numbers = [options_of(command)["--num_images_per_prompt"] for command in plain(todo, 1)]
    assert numbers == [["3"], ["3"], ["20"]]
    assert {c.title for c in todo[2].commands} >= {"img2img_3x", "dreamda_20x_amst"}


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
    assert ("dreamda", "amst", None) in kinds
    assert len(list((CONFIG_DIR / "studies").glob("*.yaml"))) == len(SCALES)


# What a stranger gets wrong -> what the one line says.
WRONG = {
    "--num_image_per_prompt 3": "unknown option --num_image_per_prompt; did you mean "
    "--num_images_per_prompt?",
    "--xyzzy": "unknown option --xyzzy; --help lists the options",
    "digits more": "'more' is one word too many; give one folder of photos",
    "--methods distdif": "command line: unknown method 'distdif'; did you mean 'distdiff'?",
    "--seeds 1 1": "seeds 1 1: one occurs twice",
    "--test_fraction 30": "test_fraction 30.0: give a share between 0 and 1",
    "": "which photos? give a folder that holds a folder of images per class, or 'digits'",
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
    "arms: [{}]": "no arm trains on the images of img2img, distdiff, dreamda; add one",
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


def test_two_arms_of_one_name_need_a_tag(make_study, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("arms: [{}, {method: each}, {method: each, weight_decay: 0.1}]")
    words = ("digits", "--methods", "img2img", "--config", str(mine))
    with pytest.raises(InputError, match=r"two arms are called img2img_10x; give one .* a tag"):
        make_study(*words)
    mine.write_text("arms: [{}, {method: each}, {method: each, weight_decay: 0.1, tag: decay}]")
    _, todo = make_study(*words)
    assert todo[2].commands[1].title == "img2img_10x_decay"


def test_photos_without_test_images_are_split_once_and_followed_without_an_option(photos_dir):
    config = settle(read_command_line([str(photos_dir)], ""), "small").config
    first, second = look_at(config), look_at(config)
    assert first.new_split and not second.new_split
    assert first.split == second.split == photos_dir / "split-photos-test-0.3-seed0.json"
    assert "--test_fraction" not in first.place
    assert (len(first.train), len(first.test)) == (7, 3)
    assert "some of each class were set apart" in first.describe()
    followed = load_dataset(str(photos_dir))
    assert [r.file_name for r in followed.records("test")] == [r.file_name for r in first.test]


def test_a_split_that_is_there_counts_whatever_its_share(photos_dir):
    load_dataset(str(photos_dir), test_fraction=0.5).records("test")
    photos = look_at(settle(read_command_line([str(photos_dir)], ""), "small").config)
    assert (len(photos.train), len(photos.test)) == (5, 5)
    assert photos.split.name == "split-photos-test-0.5-seed0.json" and not photos.new_split


def test_of_two_splits_one_must_be_named(photos_dir):
    for fraction in (0.3, 0.5):
        load_dataset(str(photos_dir), test_fraction=fraction).records("test")
    with pytest.raises(InputError, match=r"holds the splits .*0\.3.*0\.5.*remove all but one"):
        look_at(settle(read_command_line([str(photos_dir)], ""), "small").config)
    words = [str(photos_dir), "--test_fraction", "0.5"]
    photos = look_at(settle(read_command_line(words, ""), "small").config)
    assert photos.place[-2:] == ("--test_fraction", "0.5") and len(photos.test) == 5


def test_a_folder_that_cannot_be_written_has_its_share_in_every_command(photos_dir, monkeypatch):
    import errno

    from expansion import splits

    def refuse(path: Path, content: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(splits, "write_atomic", refuse)
    photos = look_at(settle(read_command_line([str(photos_dir)], ""), "small").config)
    assert photos.split is None and photos.place[-2:] == ("--test_fraction", "0.3")


def test_a_training_folder_alone_is_split_and_a_list_without_splits_too(tmp_path):
    folders(tmp_path / "set" / "train", {"ant": 4, "bee": 4})
    folders(tmp_path / "list", {"x": 8})
    files = sorted((tmp_path / "list" / "x").iterdir())
    rows = [{"file_name": f"x/{p.name}", "label": "ab"[i % 2]} for i, p in enumerate(files)]
    (tmp_path / "list" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for place in ("set", "list"):
        look_at(settle(read_command_line([str(tmp_path / place)], ""), "small").config)
        dataset = load_dataset(str(tmp_path / place))
        assert len(dataset.records("train")) == 6 and len(dataset.records("test")) == 2


@pytest.mark.parametrize(("tree", "told"), [
    ({"ant": 6, "bee": 1}, "class 'bee' has only 1 image, so none is left for training"),
    ({"ant": 6}, "only the class 'ant'"),
    ({"train/ant": 1, "train/bee": 1}, "class 'ant' has only 1 image"),
])  # fmt: skip
def test_photos_that_no_answer_can_be_had_from_are_refused_in_one_line(tmp_path, tree, told):
    for name, number in tree.items():
        (tmp_path / "set" / name).mkdir(parents=True)
        folders(tmp_path / "set", {name: number} if number else {})
    with pytest.raises(InputError) as error:
        look_at(settle(read_command_line([str(tmp_path / "set")], ""), "small").config)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_test_folder_without_images_is_as_none(tmp_path):
    folders(tmp_path / "set" / "train", {"ant": 4, "bee": 4})
    (tmp_path / "set" / "test" / "ant").mkdir(parents=True)
    photos = look_at(settle(read_command_line([str(tmp_path / "set")], ""), "small").config)
    assert photos.new_split and (len(photos.train), len(photos.test)) == (6, 2)


def test_an_unreadable_photo_is_left_out_with_a_word(photos_dir):
    (photos_dir / "ant" / "broken.jpg").write_bytes(b"no image")
    photos = look_at(settle(read_command_line([str(photos_dir)], ""), "small").config)
    assert photos.place[-2:] == ("--on_error", "skip")
    text = photos.describe()
    assert "1 image is left out: cannot read the image" in text and "ant/broken.jpg" in text
    assert "--on_error" not in text


def test_photos_that_are_trained_and_tested_on_are_told(tmp_path):
    for split in ("train", "test"):
        folders(tmp_path / "set" / split, {"ant": 3, "bee": 3})
    (first, *_) = (tmp_path / "set" / "train" / "ant").iterdir()
    shutil.copy(first, tmp_path / "set" / "test" / "ant" / "copy.jpg")
    photos = look_at(settle(read_command_line([str(tmp_path / "set")], ""), "small").config)
    assert "problem: 1 images are in train and in test" in photos.describe()


def network(words: str, side: int, machine: Machine):
    settings = settle(read_command_line(["digits", *words.split()], ""), choices.scale_of(side))
    return choose_network(settings, side, 100, machine)


@pytest.mark.parametrize(("words", "side", "machine", "expected", "why"), [
    ("", 28, CPU, {"arch": "resnet10_tiny", "image_size": 32, "pretrained": False}, "28 pixels"),
    ("", 64, GPU, {"arch": "resnet18_cifar", "image_size": 64}, "64 pixels"),
    ("", 500, Machine(["g"], WEIGHTS), {"arch": "resnet50", "pretrained": True, "lr": 0.01},
     "on this machine"),
    ("", 500, Machine([], WEIGHTS), {"arch": "resnet18", "pretrained": True}, "to be downloaded"),
    ("", 500, Machine(["g"], {"resnet18": "cached", "resnet50": "reachable"}),
     {"arch": "resnet18", "pretrained": True}, "on this machine"),
    ("", 500, GPU, {"arch": "resnet18", "pretrained": False}, "neither here nor"),
    ("", 500, CPU, {"arch": "resnet10_tiny", "image_size": 64}, "small enough for a CPU"),
    ("--no-pretrained", 500, Machine(["g"], WEIGHTS), {"arch": "resnet18"}, "as asked for"),
    ("-a resnet50", 500, GPU, {"arch": "resnet50", "pretrained": False, "lr_warmup": 0.1},
     "command line"),
    ("-a resnet50 --lr 0.3", 500, Machine([], WEIGHTS), {"pretrained": True, "lr": 0.3}, "weights"),
])  # fmt: skip
def test_the_classifier_suits_images_and_machine_and_says_why(words, side, machine, expected, why):
    found = network(words, side, machine)
    assert {key: found.options[key] for key in expected} == expected
    assert why in found.why and found.options["arch"] in found.why


def test_a_backbone_with_a_recipe_of_its_own_keeps_its_rate():
    assert "lr" not in network("-a convnext_tiny", 500, GPU).options


def test_pretrained_weights_that_cannot_be_had_are_refused():
    with pytest.raises(InputError, match="neither here nor to be downloaded"):
        network("--pretrained", 500, GPU)


def test_a_model_that_is_neither_here_nor_to_be_downloaded_is_told_with_the_way_out(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert not choices.is_on_disk("some/model") and not choices.can_be_downloaded("some/model")
    message = str(choices.missing_model("some/model"))
    for part in ("about 4 GB", "hf download some/model", "models--some--model", "--model FOLDER"):
        assert part in message
    assert choices.REHEARSAL_MODEL in message and (ROOT / choices.REHEARSAL_MODEL).is_dir()
    assert choices.is_on_disk(choices.REHEARSAL_MODEL)
    with pytest.raises(InputError, match="model folder /no/where does not exist"):
        choices.is_on_disk("/no/where")


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


def test_processes_are_one_per_gpu_or_few_on_a_cpu():
    assert jobs.on_cpu(2, True, {}) == [{"OMP_NUM_THREADS": "1"}] * 2
    assert jobs.on_cpu(16, True, {}) == [{"OMP_NUM_THREADS": "4"}] * 4
    assert jobs.on_cpu(16, False, {}) == [{"OMP_NUM_THREADS": "16"}]
    assert jobs.on_cpu(2, True, {"OMP_NUM_THREADS": "3"}) == [{"OMP_NUM_THREADS": "3"}] * 2
    gpus = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert jobs.on_gpus(["a", "a"], (), {}) == gpus
    seen = {"CUDA_VISIBLE_DEVICES": "5,3"}
    assert [g["CUDA_VISIBLE_DEVICES"] for g in jobs.on_gpus(["a", "a"], (), seen)] == ["5", "3"]
    assert [g["CUDA_VISIBLE_DEVICES"] for g in jobs.on_gpus(["a"], ("2",), {})] == ["2"]
    assert jobs.on_gpus([], (), {}) == []
    with pytest.raises(InputError, match="--devices 0 1: there is no such GPU here"):
        jobs.on_gpus([], ("0", "1"), {})


def test_time_and_disk_space_add_up():
    work = estimate.Work(rows=100, images=10, pixels=1e6, trained=1000, evaluated=100, runs=2)
    costs = estimate.Costs(row=0.1, image=1.0, trained=0.01, evaluated=0.001, run_bytes=1e9)
    found = estimate.estimate(work, costs, 2)
    assert found.generating == pytest.approx((10 + 10) / 2)
    assert found.training == pytest.approx((10 + 0.1) / 2)
    assert found.gigabytes == pytest.approx(2 + 1.7e-3)
    assert work.plus(work, 0.5).trained == 1500


def test_operations_are_counted_without_weights():
    facts = estimate.count(str(TINY_MODEL), 32, "resnet10_tiny", 32, 10)
    assert 5e7 < facts["unet"] < 2e8 and 2e6 < facts["classifier"] < 2e7
    assert facts["rate"] > 1e8
    costs = estimate.costs_of({**facts, "rate": 1e9})
    assert costs.row == facts["unet"] / (1e9 * estimate.EFFICIENCY)


@pytest.mark.parametrize(("seconds", "text"), [
    (1, "about a minute"), (100, "about 2 minutes"), (4000, "about 67 minutes"),
    (1e5, "about 28 hours"), (3e5, "about 3 days"),
])  # fmt: skip
def test_durations_read_like_speech(seconds, text):
    assert estimate.duration(seconds) == text


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
