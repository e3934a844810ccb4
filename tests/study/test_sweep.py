"""Sweeps: every combination of options as sets and arms of a study."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

import parse_logs
from expansion.common.config import CONFIG_DIR, load_yaml
from expansion.common.errors import InputError
from expansion.study import plan
from expansion.study.config import Arm, read_command_line, settle
from expansion.study.sweep import NAMED_BY_SCRIPT, read_words, swept
from tests.helpers.run_folders import row_of
from tests.study.conftest import options_of

FILE = """
methods: [img2img, distdiff]
arms:
  - {}
  - {augment: randaugment}
  - {method: distdiff, labels: amst}
  - {method: each}
"""


@pytest.fixture
def study_file(tmp_path) -> list[str]:
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    return ["digits", "--config", str(path)]


def settings_of(words):
    return settle(read_command_line(words, ""), "tiny")


def test_a_method_has_a_set_for_every_combination_and_one_that_knows_no_option_its_own(study_file):
    settings = settings_of([*study_file, "--sweep", "rho=1,2.5", "K=1,3"])
    pairs = list(itertools.product((1, 2.5), (1, 3)))
    names = [f"distdiff_rho{rho}_K{K}" for rho, K in pairs]
    assert settings.config.methods == ("img2img", *names)
    for name, (rho, K) in zip(names, pairs, strict=True):
        own = settings.method_options[name]
        assert (own["rho"], own["K"], settings.samplers[name]) == (rho, K, "distdiff")
    amst = [Arm(name, "amst", {}) for name in names]
    plain_ones = [Arm(name, "seed", {}) for name in ("img2img", *names)]
    real = [Arm(None, "seed", {}), Arm(None, "seed", {"augment": "randaugment"})]
    assert list(settings.arms) == [*real, *amst, *plain_ones]


def test_each_combination_is_an_expansion_and_a_training_and_the_guide_is_trained_once(
    make_study, study_file
):
    _, todo = make_study(*study_file, "--sweep", "rho=1,10")
    sets = {c.title: options_of(c.plain) for c in todo[1].commands}
    assert list(sets) == ["img2img_10x", "distdiff_rho1_10x", "distdiff_rho10_10x"]
    assert [made.get("--rho") for made in sets.values()] == [None, ["1"], ["10"]]
    guides = {made["--encoder_weight_path"][0] for name, made in sets.items() if "rho" in name}
    assert guides == {str(todo[0].commands[0].folders[0] / "checkpoint.pth.tar")}
    assert [c.title for c in todo[0].commands] == ["Original", "randaugment"]
    assert {c.title for c in todo[2].commands} == {
        "img2img_10x", "distdiff_rho1_10x", "distdiff_rho10_10x", "distdiff_rho1_10x_amst",
        "distdiff_rho10_10x_amst",
    }  # fmt: skip


def test_an_option_of_the_trainings_multiplies_the_arms_that_know_it(make_study, study_file):
    _, todo = make_study(*study_file, "--sweep", "tau=0.01,0.1", "real_share=0.25,0.5")
    assert [c.title for c in todo[1].commands] == ["img2img_10x", "distdiff_10x"]
    trained = {c.title: options_of(c.plain) for c in todo[2].commands}
    shares = ("0.25", "0.5")
    assert set(trained) == {
        *(f"{name}_10x_real{share}" for name in ("img2img", "distdiff") for share in shares),
        *(f"distdiff_10x_real{s}_amst_tau{t}" for s in shares for t in ("0.01", "0.1")),
    }
    both = trained["distdiff_10x_real0.5_amst_tau0.1"]
    assert (both["--tau"], both["--real_share"]) == (["0.1"], ["0.5"])
    assert [c.title for c in todo[0].commands] == ["Original", "randaugment"]


def test_the_first_variants_of_one_set_make_the_curve(make_study, study_file):
    words = ("--num_images_per_prompt", "20", "--methods", "img2img")
    _, todo = make_study(*study_file, *words, "--sweep", "max_variants=1,5,20")
    assert [c.title for c in todo[1].commands] == ["img2img_20x"]
    titles = [c.title for c in todo[2].commands]
    assert titles == [f"img2img_20x_first{number}" for number in (1, 5, 20)]
    seen = [c.work.trained for c in todo[2].commands]
    assert seen[0] <= seen[1] <= seen[2]
    with pytest.raises(InputError, match="img2img_20x_first21: max_variants 21 of a set of 20"):
        make_study(*study_file, *words, "--sweep", "max_variants=21")


def test_the_real_images_alone_stay_and_have_a_copy_for_each_recipe(study_file):
    arms = settings_of([*study_file, "--methods", "img2img", "--sweep", "weight_decay=0,1e-3"]).arms
    real = [arm for arm in arms if arm.method is None and "augment" not in arm.options]
    assert [arm.options for arm in real] == [
        {},
        {"weight_decay": 0, "tag": "weight_decay0"},
        {"weight_decay": 0.001, "tag": "weight_decay0.001"},
    ]


def test_arms_that_a_sweep_makes_alike_are_one(study_file):
    words = ["--methods", "img2img", "--sweep", "augment=default,randaugment"]
    arms = settings_of([*study_file, *words]).arms
    both = [{}, {"augment": "randaugment"}]
    assert [arm.options for arm in arms if arm.method is None] == both
    assert [arm.options for arm in arms if arm.method is not None] == both


def test_labels_are_swept_with_the_options_that_they_alone_know(study_file):
    words = ["--methods", "img2img", "--sweep", "tau=0.01,0.1", "labels=seed,amst,soft"]
    made = [arm for arm in settings_of([*study_file, *words]).arms if arm.method]
    assert [(arm.labels, arm.options.get("tau")) for arm in made] == [
        ("seed", None), ("amst", 0.01), ("amst", 0.1), ("soft", None),
    ]  # fmt: skip


def test_a_prefix_tells_options_of_one_name_apart(study_file):
    study_file += ["--methods", "gif"]
    Path(study_file[2]).write_text("arms: [{}, {method: each}]")
    settings = settings_of([*study_file, "--sweep", "expand.rotation=0,15", "train.rotation=0,5"])
    assert settings.config.methods == ("gif_rotation0", "gif_rotation15")
    tags = [arm.options.get("tag") for arm in settings.arms if arm.method == "gif_rotation15"]
    assert tags == ["rotation0", "rotation5"]
    with pytest.raises(InputError, match=r"rotation is an option of the images and one of the tra"):
        settings_of([*study_file, "--sweep", "rotation=0,15"])


def test_a_study_file_may_hold_a_sweep_and_the_command_line_wins(study_file):
    path = Path(study_file[2])
    path.write_text(f"{FILE}sweep: {{rho: [1, 10], K: [2]}}\n")
    assert settings_of(study_file).config.methods == (
        "img2img", "distdiff_rho1_K2", "distdiff_rho10_K2",
    )  # fmt: skip
    typed = settings_of([*study_file, "--sweep", "K=4"])
    assert typed.config.methods == ("img2img", "distdiff_K4")


def test_a_sweep_leaves_settings_without_one_as_they_are(study_file):
    settings = settings_of(study_file)
    assert swept(settings) is settings and not settings.by_sweep and not settings.columns


def test_a_sweep_joins_the_folder_of_the_study_without_it(make_study, study_file):
    """Folders of swept sets and runs tell their options; what the study is begun with is equal."""
    base, _ = make_study(*study_file)
    more, _ = make_study(*study_file, "--sweep", "rho=1,10", "real_share=0.5")
    assert plan._named(base.settings) == plan._named(more.settings)


def test_what_differs_gets_a_column(make_study, study_file):
    words = ("rho=1,10", "K=3", "tau=0.01,0.1", "real_share=0.25,0.5", "weight_decay=0,0.1")
    _, todo = make_study(*study_file, "--sweep", *words)
    columns = ["expanded_set.rho", "learning.tau", "real_share", "weight_decay"]
    for command in todo[3].commands[-2:]:
        words = list(command.arguments)
        start = words.index("--columns") + 1
        assert words[start : start + 4] == columns
        assert words[start + 4 : start + 5] in ([], ["--format"])


def test_the_table_shows_the_columns(write_arm, tmp_path, capsys):
    write_arm("Original", [70.0])
    for rho in (1.0, 10.0):
        write_arm(f"distdiff_rho{rho:g}_5x", [80.0], expanded_set={"rho": rho}, real_share=0.5)
    parse_logs.main([str(tmp_path), "--table", "--columns", "expanded_set.rho", "real_share"])
    lines = capsys.readouterr().out.splitlines()
    assert row_of(lines, "arm").startswith("arm images steps rho real_share last-epoch")
    assert row_of(lines, "distdiff_rho10_5x").split()[5:7] == ["10", "0.5"]
    assert row_of(lines, "Original").split()[5:7] == ["-", "-"]


def test_no_network_has_a_default_of_its_own_of_what_its_name_leaves_out():
    """Else an arm with the script's default would be trained as the network's file says."""
    networks = [p for p in (CONFIG_DIR / "classifiers").glob("*.yaml") if p.stem != "dreamda_timm"]
    assert networks
    for path in networks:
        assert not NAMED_BY_SCRIPT & load_yaml(path).values.keys(), path


def test_values_are_read_as_in_yaml_and_numbers_as_numbers():
    assert read_words(["a=1,2.5,1e-4", "b=true,x"]) == {"a": [1, 2.5, 1e-4], "b": [True, "x"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("roh=1,10", "no method and no arm of the study has the option 'roh'; did you mean 'rho'?"),
        ("noise_scale=1", "has the option 'noise_scale'; dreamda has it"),
        ("min_labeled=0.1", "has the option 'min_labeled'; labels soft has it"),
        ("rho", "sweep: 'rho' has no values; give --sweep OPTION=VALUE,VALUE"),
        ("rho=", "rho: a value is missing"),
        ("rho=1 rho=2", "sweep: rho is given twice"),
        ("rho=1,1.0", "rho: 1.0 and an earlier value would both be called rho1"),
        ("rho=much", "distdiff_rhomuch: rho: expected float, got 'much'"),
        ("K=0", "distdiff_K0: "),
        (f"prompt_template={'very' * 20}{{}}", "is too long for the name of a folder; make a set"),
        ("rho=[1,2]", "sweep: cannot read 'rho=[1,2]'; give --sweep OPTION=VALUE,VALUE"),
        ("rho=1,,2", "rho: a value is missing"),
        ("tau=x", "sweep: tau: expected float, got 'x'"),
        ("arch=resnet50", "sweep: leave out 'arch'; give it to the study itself"),
        ("expand.split=1", "sweep: leave out 'split'; the study sets it"),
        ("labels=amts", "labels: unknown labels 'amts'; did you mean 'amst'?"),
        ("guidance_step=1,20", "distdiff_guidance_step1: guidance_period 2 reaches beyond"),
        ("only_generated=true", "only_generated does not go with --labels amst"),
        ("num_images_per_prompt=1,5", "sweep max_variants, which takes the first images of one"),
    ],
)
def test_a_wrong_sweep_is_named_before_anything_runs(words, message, study_file):
    with pytest.raises(InputError) as error:
        settings_of([*study_file, "--sweep", *words.split()])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(("command line: sweep", "sweep"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sweep: {rho: 1}", "sweep: rho: give a list of values"),
        ("sweep: [rho]", "sweep: expected dict"),
        ("sweep: {1: [2]}", "has the option '1'"),
        ("method_options: {distdiff_rho1: {method: distdiff}}\nsweep: {rho: [1]}", "distdiff_rho1"),
    ],
)
def test_a_wrong_sweep_of_a_file_is_named(text, message, study_file):
    Path(study_file[2]).write_text(f"{FILE}{text}\n")
    with pytest.raises(InputError) as error:
        settings_of(study_file)
    assert message in str(error.value) and study_file[2] in str(error.value)
