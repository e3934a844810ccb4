"""The rules of the command line that all commands share: errors, help, files, what wins."""

from __future__ import annotations

import functools
import os
import re

import pytest

import expand
import parse_logs
import train_expand
import train_original
from baselines.diffusion_inversion import __main__ as diffusion_inversion
from baselines.textual_inversion import __main__ as textual_inversion
from distdiff import prototype_plot
from dreamda.finetune import __main__ as finetune
from dreamda.prompts import __main__ as prompts
from expansion.advise.config import AdviseConfig
from expansion.benchmarks import gpu_report
from expansion.benchmarks import sampling as benchmark
from expansion.benchmarks import training as benchmark_training
from expansion.classifier.recipe import Recipe
from expansion.common import option_parser
from expansion.common.config import CONFIG_DIR, compose, import_object, load_yaml
from expansion.common.errors import InputError
from expansion.common.option_parser import OptionParser
from expansion.data import __main__ as check
from expansion.export import __main__ as export
from expansion.generation.config import ExpandConfig
from expansion.measures import bias
from expansion.measures import command as evaluate
from expansion.metrics import coverage
from expansion.predict import __main__ as predict
from expansion.report import paired, recognised
from expansion.reproduce import __main__ as reproduce
from expansion.selection import command as select
from expansion.study import config as study
from expansion.training.options import TrainConfig, parse_training
from tests.conftest import ROOT


def advise(words):
    return study.read_command_line(words, "", AdviseConfig)


PLOT = "--encoder_weight_path guide --exp set"
FINETUNE = "--output_dir o --pretrained_model_name_or_path m"
# Command -> what reads its words, words that it accepts, and one of its options.
COMMANDS = {
    "expand.py": (expand.parse, "", "--strength"),
    "train_original.py": (train_original.main, "", "--epochs"),
    "train_expand.py": (train_expand.main, "", "--labels"),
    "dreamda.finetune": (finetune.parse, FINETUNE, "--max_train_steps"),
    "dreamda.prompts": (prompts.parse, "", "--num_prompts"),
    "textual_inversion": (textual_inversion.parse, "--output_dir o", "--templates"),
    "diffusion_inversion": (diffusion_inversion.parse, "--output_dir o", "--visits_per_image"),
    "study": (lambda words: study.read_command_line(words, ""), "digits", "--seeds"),
    "advise": (advise, "digits", "--minutes"),
    "benchmark": (benchmark.parse, "", "--rounds"),
    "benchmark_training": (benchmark_training.parse_options, "", "--rounds"),
    "predict": (predict.parse, "run photo", "--batch_size"),
    "export": (export.parse, "set --merge folder", "--on_incomplete"),
    "check": (check.main, "check digits", "--data_dir"),
    "parse_logs.py": (parse_logs.parse, ".", "--metric"),
    "coverage": (coverage.main, "", "--num_tables"),
    "evaluate": (evaluate.parse, "--exp a --seed 1", "--cross_fit"),
    "filter": (select.parse, "--exp a --seed 1", "--top"),
    "measures.bias": (bias.parse, "", "--num_draws"),
    "prototype_plot": (prototype_plot.parse, PLOT, "--max_variants"),
    "paired": (paired.parse, "set set", "--variants"),
    "recognised": (recognised.main, "run set", "--device"),
    "reproduce": (reproduce.parse, "list", "--scale"),
    "gpu_report": (gpu_report.main, "folder", "--output"),
}
TWO_LAYERS = (
    *("expand.py", "train_original.py", "train_expand.py", "dreamda.finetune", "study"),
    *("advise", "textual_inversion", "diffusion_inversion"),
)


def trained(config_class, choose, words):
    return parse_training(words, "", ("dataset", "arch", "pretrained", "gpu"), config_class, choose)


# Command with a schema -> what reads its words into configs, and a number among its settings.
SETTINGS = {
    "expand.py": (expand.parse, "num_images_per_prompt"),
    "train_original.py": (
        functools.partial(trained, TrainConfig, lambda known: train_original.SUPERVISED),
        "subset_seed",
    ),
    "train_expand.py": (
        functools.partial(trained, train_expand.TrainExpandConfig, train_expand._learning),
        "subset_seed",
    ),
    "dreamda.finetune": (finetune.parse, "max_train_steps"),
    "dreamda.prompts": (lambda words: [prompts.parse(words)], "num_prompts"),
    "textual_inversion": (textual_inversion.parse, "max_train_steps"),
    "diffusion_inversion": (diffusion_inversion.parse, "visits_per_image"),
    "study": (
        lambda words: [study.settle(study.read_command_line(words, ""), "tiny").config],
        "subset_seed",
    ),
    "advise": (
        lambda words: [study.settle(advise(words), "tiny", study=AdviseConfig).config],
        "subset_seed",
    ),
    "benchmark": (lambda words: [benchmark.parse(words)], "rounds"),
    "prototype_plot": (lambda words: [prototype_plot.parse(words)], "max_variants"),
}


def printed(command, words, capsys) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        command(words)
    return caught.value.code, *capsys.readouterr()


def refused(name, word, capsys) -> str:
    """What a command says to a further word; it says it in one line, with status 2."""
    command, words, _ = COMMANDS[name]
    status, out, err = printed(command, [*words.split(), word], capsys)
    assert status == 2 and not out and err.startswith("error: ") and len(err.splitlines()) == 1
    return err.removeprefix("error: ").strip()


def test_every_command_takes_the_parser_with_the_common_rules():
    """A new command belongs into COMMANDS, and with a schema into SETTINGS."""
    files = [*ROOT.glob("*.py")]
    for package in ("expansion", "dreamda", "distdiff", "baselines"):
        files += (ROOT / package).rglob("*.py")
    files.remove(ROOT / "expansion" / "common" / "option_parser.py")
    texts = [path.read_text() for path in files]
    assert not [text for text in texts if re.search(r"\bArgumentParser\(", text)]
    parsers = [text for text in texts if re.search(r"\bOptionParser\(", text)]
    # Trainings of classifiers share one, of embeddings too, and study and adviser.
    assert len(parsers) == len(COMMANDS) - 3


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_or_a_shortened_one_is_refused_with_the_one_that_was_meant(name, capsys):
    option = COMMANDS[name][2]
    assert refused(name, "--xyzzy", capsys) == "unknown option --xyzzy; --help lists the options"
    for wrong in (option[:-1], f"{option}z=1"):
        assert refused(name, wrong, capsys) == f"unknown option {wrong}; did you mean {option}?"


@pytest.mark.parametrize(
    "name",
    [name for name in COMMANDS if name not in ("predict", "paired", "recognised", "reproduce")],
)
def test_a_word_too_many_is_named(name, capsys):
    taken = {"train_original.py": 5, "train_expand.py": 6}
    command, words, _ = COMMANDS[name]
    words = [*words.split(), *["more"] * taken.get(name, 0), "last"]
    status, _, err = printed(command, words, capsys)
    assert status == 2 and err == "error: 'last' is one word too many; --help lists the options\n"


@pytest.mark.parametrize("name", SETTINGS)
def test_an_unknown_key_of_a_file_is_named_with_the_one_that_was_meant(name, tmp_path):
    key = SETTINGS[name][1]
    (tmp_path / "mine.yaml").write_text(f"{key}z: 3\n")
    words = [*COMMANDS[name][1].split(), "--config", str(tmp_path / "mine.yaml")]
    with pytest.raises(
        InputError, match=rf"mine\.yaml: unknown key '{key}z'; did you mean '{key}'"
    ):
        COMMANDS[name][0](words)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_command_line_wins_over_files_and_the_later_file_over_the_earlier(name, tmp_path):
    parse, key = SETTINGS[name]
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(f"{key}: 33\n")
    two.write_text(f"{key}: 44\n")

    def value(*more) -> int:
        return getattr(parse([*COMMANDS[name][1].split(), *map(str, more)])[0], key)

    assert value() not in (33, 44, 55)
    assert (value("--config", one, two), value("--config", two, one)) == (44, 33)
    assert value("--config", one, "--config", two) == 44
    assert value(f"--{key}=55", "--config", one, two) == 55
    one.write_text("data_dir: elsewhere\n")  # of two --config both count
    words = ["--config", str(one), "--config", str(two)]
    config = parse([*COMMANDS[name][1].split(), *words])[0]
    assert (config.data_dir, getattr(config, key)) == ("elsewhere", 44)


@pytest.mark.parametrize("name", ["expand.py", "train_original.py", "train_expand.py", "study"])
def test_a_dry_run_may_be_asked_for_by_a_file_too(name, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("dry_run: true\n")
    parse, words = SETTINGS[name][0], [*COMMANDS[name][1].split(), "--config", str(path)]

    def asked(*more) -> bool:
        configs = parse([*words, *more])
        return next(c.dry_run for c in configs if hasattr(c, "dry_run"))

    assert asked() is True and asked("--no-dry_run") is False


@pytest.mark.parametrize("name", TWO_LAYERS)
def test_help_shows_the_common_options_and_says_how_to_see_the_rest(name, capsys):
    command = COMMANDS[name][0]
    status, short, _ = printed(command, ["--help"], capsys)
    _, long, _ = printed(command, ["--help", "all"], capsys)
    assert status == 0 and len(short.splitlines()) < len(long.splitlines())
    options = {line.split("--")[1].split()[0] for line in short.splitlines() if "  --" in line}
    assert 5 < len(options) < 35
    assert "more options: --help all" in short and "more options" not in long
    again = printed(command, ["--help", "all"], capsys)[1]
    assert again == long  # showing less has left no trace


def test_a_wrong_value_ends_in_one_line(capsys):
    status, _, err = printed(expand.parse, ["--strength", "much"], capsys)
    assert status == 2 and "--strength" in err and "much" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "option"), [("expand.py", "--method"), ("train_expand.py", "--labels")]
)
def test_an_option_that_decides_which_others_there_are_is_refused_like_any_other(
    name, option, capsys
):
    err = refused(name, option, capsys)
    assert err == f"argument {option}: expected one argument; --help lists the options"


def test_what_decides_the_options_may_come_from_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("method: dreamda\ndata_dir: elsewhere\nlocation: decoder\n")
    config, method_config, _ = expand.parse(["--config", str(path), "--noise_scale", "2"])
    assert (config.method, config.data_dir) == ("dreamda", "elsewhere")
    assert (method_config.location, method_config.noise_scale) == ("decoder", 2.0)
    path.write_text("labels: amst\n")
    parse = SETTINGS["train_expand.py"][0]
    assert parse(["--config", str(path)])[2] is train_expand.OBJECTIVES["amst"]
    typed = parse(["--config", str(path), "--labels=soft"])[2]
    assert typed is train_expand.OBJECTIVES["soft"]


def test_a_named_dataset_is_looked_for_where_a_file_says_that_data_lie(tmp_path, make_folder):
    photos = make_folder("place/photos", {"train": {"ant": ["1.png"]}, "test": {"ant": ["1.png"]}})
    path = tmp_path / "mine.yaml"
    path.write_text(f"data_dir: {photos.parent}\ndataset: photos\n")
    assert expand.parse(["--method", "img2img", "--config", str(path)])[0].dataset == "photos"


def test_a_file_is_read_once_as_it_may_be_a_pipe(monkeypatch, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("method: img2img\n")
    reads = []
    monkeypatch.setattr(option_parser, "load_yaml", lambda p: reads.append(p) or load_yaml(p))
    assert expand.parse(["--config", str(path)])[0].method == "img2img"
    assert reads == [str(path)]


def test_the_papers_words_are_values_of_options_and_options_win(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    parse = SETTINGS["train_original.py"][0]
    config, recipe, *_ = parse(["digits", "resnet18", "True", ""])
    assert (config.dataset, recipe.arch, recipe.pretrained) == ("digits", "resnet18", True)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"  # an empty word chooses none
    config, recipe, *_ = parse(["digits", "resnet18", "False", "3", "--arch", "resnet34"])
    assert (recipe.arch, recipe.pretrained) == ("resnet34", False)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_a_command_without_further_words_takes_none(capsys):
    status, _, err = printed(lambda words: OptionParser().read(words, {}), ["a", "--b"], capsys)
    assert status == 2 and err.startswith("error: unknown option --b;")


# Files that commands read by themselves -> the classes whose values they change.
OWN_FILES = {
    **{
        f"{method}/default.yaml": [ExpandConfig, import_object(config)]
        for method, (config, _) in expand.SAMPLERS.items()
    },
    **{f"classifiers/{p.name}": [Recipe] for p in CONFIG_DIR.glob("classifiers/*.yaml")},
    **{f"studies/{scale}.yaml": [study.StudyConfig] for scale in study.SCALES},
    **{f"studies/{name}.yaml": [AdviseConfig] for name in AdviseConfig.files},
    **{f"dreamda/{name}.yaml": [prompts.PromptsConfig] for name in ("prompts", "lecf")},
}


@pytest.mark.parametrize("name", [name for name in OWN_FILES if (CONFIG_DIR / name).is_file()])
def test_a_file_that_a_command_reads_by_itself_restates_no_default(name):
    source, classes = load_yaml(CONFIG_DIR / name), OWN_FILES[name]
    configs = compose(classes, [source])
    restated = [
        key
        for key in source.values
        for config in configs
        if hasattr(config, key) and getattr(config, key) == getattr(type(config), key)
    ]
    assert not restated and source.values


def test_an_option_that_is_gone_says_what_replaces_it():
    with pytest.raises(InputError, match="--join is gone: leave it out, or divide the work by"):
        expand.parse(["--method", "img2img", "--join"])


def test_of_two_adapters_none_is_lost_in_silence(capsys):
    with pytest.raises(SystemExit):
        expand.parse(["-d", "digits", "--method", "img2img", "--lora", "a", "--lora=b"])
    assert capsys.readouterr().err.startswith("error: --lora is given more than once, and one is")
