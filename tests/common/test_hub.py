"""Without a network the hub is asked once, for a moment, and one line says what to copy."""

from __future__ import annotations

import logging
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torchvision
from diffusers import StableDiffusionPipeline
from huggingface_hub import constants

from dreamda.prompts.config import PromptsConfig
from dreamda.prompts.language_model import load_keyword_model, load_model
from expansion.classifier.clip import ClipClassifier
from expansion.classifier.clip_backbone import load_tower
from expansion.common import hub
from expansion.common.errors import InputError
from expansion.diffusion.stable_diffusion import load_pipeline, load_tiny_decoder
from tests.conftest import TINY_MODEL
from tests.helpers.checkpoint_stand_ins import (
    as_variant,
    copy_model,
    save_single_file,
    single_file_state,
)


@pytest.fixture
def no_network(monkeypatch) -> None:
    """The hub's address leads to a port of this machine where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def server(monkeypatch) -> Iterator[list[int]]:
    """A hub that answers every question with the status in this list."""
    status = [200]

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:  # noqa: N802
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as listening:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listening.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield status
        listening.shutdown()
        thread.join()


def load_single_file(tmp_path) -> None:
    load_pipeline(str(save_single_file(tmp_path / "v1.safetensors", single_file_state())))


LOADS = {
    "model": (
        lambda tmp_path: load_pipeline("owner/no-such-model"),
        ("hf download owner/no-such-model", "assets/tiny-sd-digits", "GB"),
    ),
    "single file": (load_single_file, ("--single_file_config", "save_pretrained")),
    "CLIP labels": (
        lambda tmp_path: ClipClassifier.load("owner/no-such-clip", ["a"], ["a {}"]),
        ("owner/no-such-clip", "--clip_model", "GB"),
    ),
    "CLIP backbone": (lambda tmp_path: load_tower("clip_vit_b32", None), ("--weights", "GB")),
    "language model": (
        lambda tmp_path: load_model(PromptsConfig(model="owner/no-such-model")),
        ("owner/no-such-model", "--model"),
    ),
    "keyword model": (
        lambda tmp_path: load_keyword_model(
            PromptsConfig(preset="lecf", model="owner/no-such-model")
        ),
        ("owner/no-such-model", "--model", "encoder-decoder"),
    ),
    "tiny decoder": (
        lambda tmp_path: load_tiny_decoder("owner/taesd", load_pipeline(str(TINY_MODEL))),
        ("hf download owner/taesd", "--guidance_decoder FOLDER"),
    ),
}


@pytest.mark.parametrize("what", LOADS)
def test_without_a_network_one_line_says_at_once_what_to_copy(
    what, no_network, tmp_path, monkeypatch, caplog, capfd
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    load, words = LOADS[what]
    begun = time.monotonic()
    with caplog.at_level(logging.WARNING), pytest.raises(InputError) as error:
        load(tmp_path)
    assert time.monotonic() - begun < 10
    message = str(error.value)
    for word in ("cannot load", "not downloaded before", f"{constants.ENDPOINT} cannot be", *words):
        assert word in message
    assert "\n" not in message
    assert "Retrying" not in caplog.text and "Retrying" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_model_that_was_downloaded_before_needs_no_network(
    variant, no_network, tmp_path, monkeypatch
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789" * 4
    place = tmp_path / "models--owner--digits"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    folder = copy_model(place / "snapshots" / commit)
    if variant:
        as_variant(folder, "unet", variant)
    pipeline = load_pipeline("owner/digits")
    assert pipeline.unet.config.sample_size == 8
    shutil.rmtree(folder / "vae")
    with pytest.raises(InputError, match="lacks vae"):
        load_pipeline("owner/digits")


@pytest.mark.slow
@pytest.mark.parametrize("only_fp16", [True, False])
def test_a_hub_that_has_only_half_precision_gives_that(only_fp16, server, tmp_path, monkeypatch):
    folder, asked = copy_model(tmp_path / "model"), []

    def download(name: str, variant: str | None = None, **options: object) -> str:
        asked.append(variant)
        assert options["use_safetensors"] and not options["local_files_only"]
        if only_fp16 and variant is None:
            raise OSError("Could not find the necessary `safetensors` weights in {} (variant=None)")
        return str(folder)

    monkeypatch.setattr(StableDiffusionPipeline, "download", download)
    assert load_pipeline("owner/model").unet.config.sample_size == 8
    assert asked == ([None, "fp16"] if only_fp16 else [None])


def test_a_downloaded_model_is_checked_as_a_folder_is(no_network, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789" * 4
    place = tmp_path / "models--owner--inpainting"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    copy_model(place / "snapshots" / commit, unet={"in_channels": 9})
    with pytest.raises(InputError, match="inpainting.*9 channels"):
        load_pipeline("owner/inpainting")


@pytest.mark.parametrize(
    ("status", "usable"), [(200, True), (403, True), (404, True), (503, False)]
)
def test_a_hub_that_answers_is_used_whatever_it_says(status, usable, server):
    server[0] = status
    assert (hub.unreachable() is None) is usable
    assert hub.only_cached("owner/model") is not usable
    assert not hub.only_cached(str(TINY_MODEL))


def test_a_server_that_keeps_silent_is_given_up_soon(monkeypatch):
    monkeypatch.setattr(hub, "SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begun = time.monotonic()
        answer = hub.no_answer(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "cannot be reached" in answer and time.monotonic() - begun < 3


def test_vain_requests_are_forbidden_only_inside(no_network):
    with hub.no_vain_requests():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_torchvisions_weights_do_not_wait_for_a_silent_server(monkeypatch):
    from expansion.classifier.backbones import Classifier

    timeouts = []

    def silent(url: str, **_: object) -> None:
        timeouts.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", silent)
    with pytest.raises(InputError, match="cannot download .* resnet18 .timed out.*--weights"):
        Classifier("resnet18", 5, 32, pretrained=True)
    assert timeouts == [10.0] and socket.getdefaulttimeout() is None
