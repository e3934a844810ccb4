"""What a study chooses by itself: network, model, processes; and how long it says it takes."""

from __future__ import annotations

import pytest

from expansion.common.errors import InputError
from expansion.study import choices, estimate, jobs
from expansion.study.choices import Machine, choose_network
from expansion.study.config import read_command_line, settle
from tests.conftest import ROOT, TINY_MODEL

CPU = Machine([])
GPU = Machine(["a GPU"])
WEIGHTS = {"resnet50": "cached", "resnet18": "reachable"}


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


@pytest.mark.slow
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


def test_options_of_a_method_that_is_not_used_need_not_suit_the_others(tmp_path):
    path = tmp_path / "study.yaml"
    file = "arms: [{}, {method: each}]\nexpand: {num_inference_steps: 5}\n"
    file += "method_options: {distdiff: {guidance_step: 6}}\n"
    path.write_text(file)
    words = ["mnist-few-shot", "--config", str(path), "--methods"]
    assert read_command_line([*words, "img2img"], "").peek("methods") == ["img2img"]
    with pytest.raises(InputError, match="^distdiff: guidance_step 6 lies before the first of"):
        read_command_line([*words, "img2img", "distdiff"], "")
    path.write_text(file.replace("guidance_step", "guidance_stop"))
    with pytest.raises(InputError, match="unknown key 'guidance_stop'"):
        read_command_line([*words, "img2img"], "")
