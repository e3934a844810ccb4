"""--zero_shot_head: before it learns, a classifier decides as transformers' zero-shot CLIP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

import train_original
from expansion.classifier.backbones import Classifier, load_classifier
from expansion.classifier.clip_backbone import TOWERS, Tower, normalization_change
from expansion.classifier.recipe import Recipe
from expansion.classifier.text_head import start_from_text
from expansion.classifier.transforms import eval_transform, network_input
from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from expansion.metrics.predictions import Predictions
from tests.helpers.noise_runs import CLASSES

NAMES = [name.replace("_", " ") for name in CLASSES]
TEMPLATE = "a photo of a {}."


@pytest.fixture(autouse=True)
def tiny_tower(monkeypatch) -> None:
    """The shape of the tiny CLIP under a name of its own."""
    fields = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    fields |= {"num_attention_heads": 2, "projection_dim": 8, "image_size": 16, "patch_size": 8}
    monkeypatch.setitem(TOWERS, "clip_tiny", Tower("nobody/no-such-clip", fields))


@torch.no_grad()
def zero_shot(folder: Path, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """transformers' logits (B, N) of images normalised as ImageNet's, and |f| / exp(tau) (B, 1)."""
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    texts = [TEMPLATE.format(name) for name in NAMES]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    scale, shift = normalization_change()
    pixel_values = pixels * scale + shift
    logits = model(**tokens, pixel_values=pixel_values).logits_per_image
    features = model.get_image_features(pixel_values).pooler_output
    return logits, features.norm(dim=1, keepdim=True) / model.logit_scale.exp()


def test_logits_before_training_are_those_of_zero_shot_clip(clip_dir):
    torch.manual_seed(0)
    pixels = torch.randn(5, 3, 16, 16)
    classifier = Classifier("clip_tiny", 3, 16, True, str(clip_dir)).eval()
    random = classifier(pixels)
    start_from_text(classifier, str(clip_dir), NAMES, TEMPLATE)
    logits, length = zero_shot(clip_dir, pixels)
    torch.testing.assert_close(classifier(pixels), logits * length, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(random, logits * length, atol=0.1)
    assert (
        classifier.head.weight.norm(dim=1).allclose(torch.ones(3))
        and classifier.head.bias.eq(0).all()
    )
    assert classifier.head.weight.requires_grad


def line(dataset: Path, checkpoints: Path, *options: object) -> list[str]:
    fixed = f"-d {dataset} --checkpoint_dir {checkpoints} -a clip_tiny --pretrained --seeds 1"
    fixed += " --image_size 16 --resize_size 18 --workers 0 --budget steps --max_train_steps 1"
    fixed += " --optimizer adamw --weight_decay 0 --lr 1e-12"
    return [*fixed.split(), *map(str, options)]


def test_a_run_that_learns_nothing_predicts_as_zero_shot_clip(clip_dir, dataset, tmp_path):
    weights = ("--weights", clip_dir)
    train_original.main(line(dataset, tmp_path, *weights, "--zero_shot_head"))
    (run,) = tmp_path.glob("*/*/seed1")
    found = Predictions.load(run / "predictions.npz")
    records = load_dataset(str(dataset)).records("test")
    transform = eval_transform(Recipe(image_size=16, resize_size=18))
    pixels = torch.stack([transform(Image.open(record.path)) for record in records])
    logits, length = zero_shot(clip_dir, network_input(pixels))
    assert list(found.file_names) == [record.file_name for record in records]
    expected = (logits * length).softmax(dim=1).numpy()
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
    # It is an ordinary classifier afterwards, and another run than that with a random head.
    guide = load_classifier(run / "checkpoint.pth.tar", class_names=CLASSES)
    assert guide.head.in_features == 8
    with pytest.raises(InputError, match="zero_shot_head"):
        train_original.main(line(dataset, tmp_path, *weights))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("-a resnet10_tiny --no-pretrained", "a resnet10_tiny has no text features; give -a clip_"),
        ("--no-pretrained", "zero_shot_head needs the pretrained CLIP; add --pretrained"),
        ("--weights FILE", "is a single file, without tokenizer; give the folder or hub id"),
        ("--weights EMPTY", "cannot load the CLIP model .*it lacks"),
    ],
)
def test_a_network_without_texts_is_refused_before_it_loads(
    clip_dir,
    dataset,
    tmp_path,
    options,
    message,
):
    (tmp_path / "empty").mkdir()
    options = options.replace("FILE", str(clip_dir / "model.safetensors"))
    options = options.replace("EMPTY", str(tmp_path / "empty"))
    with pytest.raises(InputError, match=message):
        train_original.main(
            line(dataset, tmp_path, *options.split(), "--zero_shot_head", "--dry_run")
        )
