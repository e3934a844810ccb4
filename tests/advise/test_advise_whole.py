"""The adviser from end to end, on a few photos and by the tiny diffusion model."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

import expand
from expansion.advise import __main__ as advise
from expansion.advise import running
from expansion.advise.efforts import Effort
from expansion.advise.outcome import _of_study
from expansion.common.config import import_object
from expansion.common.errors import InputError
from expansion.study import __main__ as study
from expansion.study import jobs, opening
from tests.conftest import TINY_MODEL
from tests.helpers.stand_ins import folders
from tests.study.conftest import HereAlone

QUICK = {
    "num_images_per_prompt": 2,
    "seeds": [1],
    "methods": ["weak", "img2img"],
    "method_options": {
        "img2img": {"strength": 0.1},
        "weak": {"method": "img2img", "strength": 0.05},
    },
    "arms": [{}, {"augment": "randaugment"}, {"method": "each"}],
    "train": {"max_train_steps": 2, "eval_steps": 20, "batch_size": 4, "workers": 0},
    "expand": {"batch_size": 8, "num_inference_steps": 40, "device": "cpu"},
}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working folder with photos whose test images nobody learns from, and one process."""
    folders(tmp_path / "photos" / "train", {"ant": 3, "bee": 3})
    folders(tmp_path / "photos" / "test", {"ant": 1, "bee": 1})
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(QUICK))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs, "num_cores", lambda: 1)
    return tmp_path


@pytest.fixture
def nothing_runs(place, monkeypatch):
    monkeypatch.setattr(opening, "Runner", HereAlone)


def run(*words: str, config: str = "quick.yaml") -> int:
    return advise.main(["photos", "--config", config, "--model", str(TINY_MODEL), *words])


def write(**changes) -> None:
    Path("quick.yaml").write_text(yaml.safe_dump({**QUICK, **changes}))


def commands(out: str) -> list[dict[str, list[str]]]:
    """Script and options of each command that was printed."""
    found = []
    for line in out.splitlines():
        if line.startswith("$ python") and "expansion." not in line:
            options: dict[str, list[str]] = {"script": [shlex.split(line)[2]]}
            for word in shlex.split(line)[3:]:
                if word.startswith("-"):
                    values = options.setdefault(word, [])
                else:
                    values.append(word)
            found.append(options)
    return found


@pytest.mark.slow
def test_the_adviser_answers_and_the_study_that_it_advises_has_the_pilots_images(
    place, monkeypatch, capsys
):
    # A small pilot; whatever it finds, the images are wanted.
    write(arms=[{}, {"method": "each"}])
    monkeypatch.setattr(advise, "efforts_for", lambda *_: [Effort(2, 2, 0.5, (1, 2))])
    answer = running.answer
    monkeypatch.setattr(
        running, "answer", lambda *args: dataclasses.replace(answer(*args), expand=True)
    )
    assert run("--minutes", "60") == 0
    out = capsys.readouterr().out
    folder = place / "advice" / "photos-rehearsal"
    record = json.loads((folder / "advice.json").read_text())
    page = (folder / "advice.html").read_text()
    advised = yaml.safe_load((folder / "advised.yaml").read_text())
    # What ran: each part is tested on by each arm, and both sets lie where the study has them.
    trained = list(folder.glob("pilot/part*of2/checkpoint/photos/*/seed*/results.yaml"))
    assert len(trained) == 3 * 2 + 2 * 2
    assert {path.name for path in (folder / "expanded").iterdir()} == {"img2img_2x", "weak_2x"}
    # What it says, in three places.
    assert [len(places) for places in record["rounds"]] == [3, 2]
    assert record["expand"] and record["best"] == record["advised"] and not record["cut_short"]
    assert record["command"] in out and record["effort"]["folds"] == 2
    best = record["best"]["method"]
    assert advised["methods"] == [best] and advised["arms"] == [{}, {"method": best}]
    assert advised["seeds"] == [1]
    assert "Is it worth making images?" in page and "REHEARSAL" in page
    # Again: nothing is made, and the answer is the same.
    before = {
        path: path.stat().st_mtime_ns
        for kind in ("expanded/*/*/*.png", "pilot/**/results.yaml", "pilot/**/*.pth.tar")
        for path in folder.glob(kind)
    }
    assert len(before) > 20
    assert run("--minutes", "1e-9") == 0  # however little time: what was trained is read
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert json.loads((folder / "advice.json").read_text()) == record
    # The advised command counts the pilot's images as done.
    capsys.readouterr()
    words = shlex.split(record["command"])
    assert words[:3] == ["python", "-m", "expansion.study"]
    monkeypatch.setattr(opening, "Runner", HereAlone)
    assert study.main([*words[3:], "--dry_run"]) == 0
    out = capsys.readouterr().out
    (time,) = [line for line in out.splitlines() if line.startswith("time: ")]
    assert " images" not in time and "trainings" in time
    # And its expansion finds them all, made with the same settings.
    (line,) = [line for line in out.splitlines() if line.startswith("$ python expand.py")]
    assert expand.main(shlex.split(line)[3:]) == 0
    assert f"advice/photos-rehearsal/expanded/{best}_2x" in line
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_dry_run_prints_the_first_round_and_makes_nothing(nothing_runs, place, capsys):
    assert run("--minutes", "60", "--dry_run") == 0
    out = capsys.readouterr().out
    scripts = [c["script"][0] for c in commands(out)]
    assert scripts == ["train_original.py"] * 6 + ["expand.py"] * 2 + ["train_expand.py"] * 6
    assert "rounds: 2 arms 1 x, then 1 arms 2 x, then 1 arms 4 x" in out
    assert not (place / "advice").exists()


def test_a_guided_method_has_a_guide_and_a_set_for_each_part(nothing_runs, place, capsys):
    write(methods=["distdiff"], method_options={"distdiff": {"strength": 0.9}})
    assert run("--minutes", "600", "--dry_run") == 0
    ran = commands(capsys.readouterr().out)
    made = [c for c in ran if c["script"] == ["expand.py"]]
    assert [c["--fold"] for c in made] == [["1/3"], ["2/3"], ["3/3"]]
    for number, command in enumerate(made, 1):
        pilot = f"advice/photos-rehearsal/pilot/part{number}of3"
        assert command["--output_dir"] == [f"{pilot}/expanded/distdiff_2x"]
        assert command["--encoder_weight_path"][0].startswith(f"{pilot}/checkpoint/photos/")
    trained = [c for c in ran if c["script"] == ["train_expand.py"]]
    assert [c["--expanded_dir"] for c in trained] == [c["--output_dir"] for c in made]


def test_a_set_in_groups_that_the_study_could_not_go_on_with_is_the_pilots_own(
    nothing_runs, place, capsys, monkeypatch
):
    write(num_images_per_prompt=4)
    monkeypatch.setattr(advise, "efforts_for", lambda *_: [Effort(3, 3, 0.5, (1,))])
    sizes = {"group": 1}
    config_class = import_object(expand.SAMPLERS["img2img"][0])
    monkeypatch.setattr(config_class, "variants_per_group", property(lambda _: sizes["group"]))

    def place_of_set() -> str:
        assert run("--minutes", "60", "--methods", "img2img", "--dry_run") == 0
        (made,) = [c for c in commands(capsys.readouterr().out) if c["script"] == ["expand.py"]]
        return made["--output_dir"][0]

    assert place_of_set() == "advice/photos-rehearsal/expanded/img2img_4x"
    sizes["group"] = 2
    assert place_of_set() == "advice/photos-rehearsal/pilot/expanded/img2img_4x"


def test_too_little_time_is_told_with_the_time_that_is_needed(nothing_runs):
    with pytest.raises(InputError, match=r"--minutes 0.001: the smallest pilot .* give --minutes"):
        run("--minutes", "0.001")


@pytest.mark.parametrize("text", [
    "", "folds: 0\nvariants: 2\nsteps: 0.5\nrepeats: [1]", "folds: 2\nvariants: 2\nsteps: 0.5",
    "folds: 2\nvariants: 2\nsteps: 0.5\nrepeats: [1]\nfoo: 3",
])  # fmt: skip
def test_a_damaged_size_of_a_begun_pilot_is_refused(nothing_runs, place, text):
    (place / "out").mkdir()
    (place / "out" / "effort.yaml").write_text(text)
    with pytest.raises(InputError, match="effort.yaml is not as the adviser wrote it"):
        run("--output_dir", "out")


def test_a_class_with_one_image_is_named_and_copies_of_an_image_are_one(nothing_runs, place):
    for path in sorted((place / "photos" / "train" / "bee").iterdir())[1:]:
        path.unlink()
    with pytest.raises(InputError, match="class 'bee' has a single training image, and cross"):
        run()
    only = next((place / "photos" / "train" / "bee").iterdir())
    shutil.copy(only, only.with_name("copy.jpg"))
    with pytest.raises(InputError, match="class 'bee' has a single training image"):
        run()


def test_photos_of_which_one_is_broken_are_advised_upon_without_it(
    nothing_runs, place, capsys, monkeypatch
):
    (place / "photos" / "train" / "ant" / "broken.jpg").write_bytes(b"no image")
    assert run("--minutes", "60", "--dry_run") == 0
    ran = commands(capsys.readouterr().out)
    assert all(c["--on_error"] == ["skip"] for c in ran) and len(ran) == 14
    place_of = ("-d", "photos", "--shots", "3", "--on_error", "skip", "--test_fraction", "0.3")
    kept = list(_of_study(place_of[2:]))
    assert kept == ["--shots", "3", "--test_fraction", "0.3"]  # a study has no such option


def test_two_arms_of_one_folder_are_refused_before_anything_runs(nothing_runs, monkeypatch):
    write(arms=[{}, {"method": "each"}, {"method": "each", "weight_decay": 0.1}])
    with pytest.raises(InputError, match="two arms are called weak_2x; give one of them a tag"):
        run()
    # These two would differ in the study alone.
    few = [{"method": "each", "max_variants": number} for number in (3, 4)]
    write(arms=[{}, *few], num_images_per_prompt=5)
    monkeypatch.setattr(advise, "efforts_for", lambda *_: [Effort(2, 2, 0.5, (1,))])
    with pytest.raises(
        InputError, match="two arms are called weak_2x_first2 part 1; give one of them"
    ):
        run("--minutes", "60")


def test_a_method_with_a_training_of_its_own_is_refused(nothing_runs):
    write(methods=["da_fusion"], method_options={"da_fusion": {"embeddings": "words"}})
    with pytest.raises(InputError, match="da_fusion needs a training of its own on the real imag"):
        run()


def test_an_advice_goes_on_with_the_classifier_that_it_was_begun_with(place):
    folder = place / "advice" / "photos-rehearsal"
    folder.mkdir(parents=True)
    (folder / "advice.yaml").write_text("settings: {arch: resnet18, lr: 0.3}\n")
    (folder / "study.yaml").write_text("settings: {arch: resnet34, lr: 0.4}\n")
    kept = opening.plan.begun_with(folder, advise.AdviseConfig)
    assert kept.values == {"arch": "resnet18", "lr": 0.3}
