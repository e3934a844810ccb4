"""Networks that sets are measured by: CLIP and DINOv2 from local folders, without pickles."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from expansion.common.errors import InputError
from expansion.measures.features.networks import embed_images, load_network

pytestmark = pytest.mark.slow  # whole networks are built


@pytest.fixture(scope="module")
def dino_dir(tmp_path_factory) -> Path:
    """A random DINOv2 of 28 pixels."""
    folder = tmp_path_factory.mktemp("dinov2") / "tiny"
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(digits):
    return [record.load() for record in digits.records("train")[:3]]


def test_features_of_dinov2_are_those_of_transformers(dino_dir, digits, images):
    network = load_network("dinov2", str(dino_dir), digits, "cpu")
    found, logits = embed_images(network, [network.prepare(image) for image in images])
    model = Dinov2Model.from_pretrained(dino_dir).eval()
    pixels = BitImageProcessor.from_pretrained(dino_dir)(images=images, return_tensors="pt")
    with torch.no_grad():
        expected = model(**pixels).last_hidden_state[:, 0]
    assert logits is None
    torch.testing.assert_close(found, expected)


def test_clip_gives_features_and_zero_shot_classes(clip_dir, digits, images):  # noqa: F811
    network = load_network("clip", str(clip_dir), digits, "cpu")
    found, logits = embed_images(network, [network.prepare(image) for image in images])
    assert found.shape == (3, 8) and logits.shape == (3, 10)
    assert not torch.allclose(found.norm(dim=1), torch.ones(3))  # as they are, not of unit length


def test_a_network_is_known_by_its_weights_not_by_its_place(dino_dir, digits, tmp_path):
    (tmp_path / "copy").symlink_to(dino_dir)
    names = [
        load_network("dinov2", str(place), digits, "cpu").identity
        for place in (dino_dir, tmp_path / "copy")
    ]
    assert names[0] == names[1]
    other = tmp_path / "other"
    model = Dinov2Model.from_pretrained(dino_dir)
    model.layernorm.bias.data += 1e-3
    model.save_pretrained(other)
    BitImageProcessor.from_pretrained(dino_dir).save_pretrained(other)
    assert load_network("dinov2", str(other), digits, "cpu").identity != names[0]


def test_weights_that_are_a_pickle_are_not_read(dino_dir, digits, tmp_path):
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((dino_dir / name).read_text())
    torch.save(load_file(dino_dir / "model.safetensors"), tmp_path / "pytorch_model.bin")
    for kind in ("dinov2", "clip"):
        with pytest.raises(InputError, match="cannot load") as refusal:
            load_network(kind, str(tmp_path), digits, "cpu")
        assert "\n" not in str(refusal.value) and "--clip_model" not in str(refusal.value)
