"""FID's Inception: its pooling by hand, and pytorch-fid's numbers where that is installed."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from expansion.common.errors import InputError
from expansion.measures.features.inception import FidInception, inception_input, load_fid_inception
from expansion.measures.frechet import frechet_distance


def sensible(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Random weights under which features neither vanish nor explode, by the file's names."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue  # the published file has none either
        if tensor.ndim > 1:
            size = (2 / tensor[0].numel()) ** 0.5
            state[name] = size * torch.randn(tensor.shape, generator=generator)
        elif name.endswith(("running_var", "bn.weight")):
            state[name] = 0.5 + torch.rand(tensor.shape, generator=generator)
        else:
            state[name] = 0.1 * torch.randn(tensor.shape, generator=generator)
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights in the layout of pt_inception-2015-12-05-6726825d.pth."""
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(sensible(FidInception().network), path)
    return path


@pytest.fixture(scope="module")
def inception(weights):
    return load_fid_inception(weights)


def pictures(count: int, side: int = 40) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (side, side + 8, 3), dtype=np.uint8))
        for _ in range(count)
    ]


def test_averages_leave_the_padding_out_and_the_last_block_takes_the_maximum(inception):
    seen = {}
    blocks = {"Mixed_5b": 192, "Mixed_6b": 768, "Mixed_7b": 1280, "Mixed_7c": 2048}
    for name, channels in blocks.items():
        block = getattr(inception.network, name)
        hook = block.branch_pool.register_forward_hook(
            lambda module, inputs, output: seen.update(found=inputs[0])
        )
        x = torch.randn(1, channels, 9, 9)
        block(x)
        hook.remove()
        corner = x[:, :, :2, :2]
        mean, most = corner.mean(dim=(2, 3)), corner.amax(dim=(2, 3))
        expected = most if name == "Mixed_7c" else mean
        torch.testing.assert_close(seen["found"][:, :, 0, 0], expected)


def test_features_are_2048_numbers_of_an_image_of_any_size(inception):
    with torch.no_grad():
        found = inception(torch.stack([inception_input(p) for p in pictures(2)]))
    assert found.shape == (2, 2048) and found.isfinite().all()


def test_images_are_resized_without_smoothing():
    image = pictures(1, 600)[0]
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    expected = F.interpolate(pixels, size=(299, 299), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(inception_input(image), expected)


def test_features_and_distance_are_those_of_pytorch_fid(weights, inception, monkeypatch):
    theirs = pytest.importorskip("pytorch_fid.inception")
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    state = torch.load(weights, weights_only=True)
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: state)
    network = theirs.InceptionV3([theirs.InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
    images = torch.stack([F.interpolate(inception_input(p)[None], 75)[0] for p in pictures(24)])
    with torch.no_grad():
        expected = network(images)[0][:, :, 0, 0]
        resized = F.interpolate(images, size=(299, 299), mode="bilinear", align_corners=False)
        found = inception(resized)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # All 2,048 numbers agree as well, but scipy's square root then takes a minute.
    expected, found = expected[:, :256], found[:, :256]
    x, y = expected[:12].numpy(), expected[12:].numpy()
    moments = [s for part in (x, y) for s in (part.mean(axis=0), np.cov(part, rowvar=False))]
    distance = fid_score.calculate_frechet_distance(*moments)
    assert frechet_distance(found[:12].numpy(), found[12:].numpy()) == pytest.approx(
        distance, abs=1e-3
    )


def test_a_file_that_is_a_pickle_is_refused_in_a_line(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"weight": [1.0]}))
    for name in ("whole.pth", "bare.pth"):
        with pytest.raises(InputError) as refusal:
            load_fid_inception(tmp_path / name)
        assert "\n" not in str(refusal.value)


def test_a_file_that_is_missing_or_of_another_network_is_refused_in_a_line(tmp_path, weights):
    with pytest.raises(InputError, match="does not exist; give pt_inception"):
        load_fid_inception(tmp_path / "none.pth")
    state = torch.load(weights, weights_only=True)
    del state["Mixed_7c.branch_pool.conv.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(InputError, match="lacks Mixed_7c"):
        load_fid_inception(tmp_path / "part.pth")
