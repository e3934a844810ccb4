"""CLIP as something to differentiate through: what it does to images of the decoder's size."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPModel

from expansion.classifier.clip import ClipClassifier

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture
def clip(clip_dir) -> ClipClassifier:
    return ClipClassifier.load(str(clip_dir), ["ant", "bee"], ["a photo of a {}."])


def random_images(height: int, width: int) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("size", [(64, 64), (40, 64), (16, 16), (8, 8)])
@pytest.mark.parametrize("mean, std", [(MEAN, STD), ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), (None, 1)])
def test_images_are_resized_as_pillow_does_it_cropped_and_normalised(clip, size, mean, std):
    images = random_images(*size)
    short = min(size)
    large = [side * 16 // short for side in size]
    resized = F.interpolate(images, large, mode="bicubic", antialias=True)
    left = (large[1] - 16) // 2
    cropped = resized[..., left : left + 16]
    given = {}
    if mean is None:
        given = {"do_normalize": False}
    else:
        shift, scale = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
        cropped = (cropped - shift) / scale
        given = {} if mean is MEAN else {"image_mean": mean, "image_std": std}
    expected = clip.model.get_image_features(cropped).pooler_output
    expected = expected / expected.norm(dim=1, keepdim=True)
    assert torch.allclose(clip.image_features(images, **given), expected, atol=1e-5)


def test_the_gradient_reaches_every_pixel_and_is_that_of_the_features(clip):
    images = random_images(32, 32).requires_grad_()
    weights = torch.randn(2, 8, generator=torch.Generator().manual_seed(4))
    (clip.image_features(images) * weights).sum().backward()
    assert (images.grad != 0).all()
    direction = images.grad / images.grad.norm()
    with torch.no_grad():
        ends = [
            (clip.image_features(images + s * direction) * weights).sum() for s in (-1e-1, 1e-1)
        ]
    slope = (ends[1] - ends[0]).item() / 0.2
    assert slope == pytest.approx(images.grad.norm().item(), rel=0.02)


def test_a_clip_that_was_saved_in_16_bits_computes_in_32(clip_dir, tmp_path):
    for file in clip_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    CLIPModel.from_pretrained(clip_dir).half().save_pretrained(tmp_path)
    clip = ClipClassifier.load(str(tmp_path), ["ant", "bee"], ["a photo of a {}."])
    assert clip.model.dtype == torch.float32 == clip.text_features.dtype
    assert clip.to("cpu").image_features(random_images(16, 16)).dtype == torch.float32
