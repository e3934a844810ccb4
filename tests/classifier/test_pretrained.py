"""Pretrained weights: torchvision's by name or file, CLIP's image tower; recipes of backbones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
import torchvision
from PIL import Image
from torchvision.models.vision_transformer import VisionTransformer
from transformers import CLIPImageProcessor, CLIPModel, CLIPVisionModelWithProjection

import train_original
from expansion.classifier.backbones import Classifier, classifier_state, load_classifier
from expansion.classifier.clip_backbone import (
    CLIP_MEAN,
    CLIP_STD,
    TOWERS,
    Tower,
    build_tower,
    load_tower,
)
from expansion.classifier.transforms import normalize
from expansion.common.errors import InputError
from expansion.data import datasets
from expansion.images.tensors import to_unit_tensor
from tests.classifier.test_backbones import TINY_CLIP, Intruder


@pytest.fixture(autouse=True)
def clip_tiny(monkeypatch) -> None:
    """A CLIP of 16 pixels among the backbones, shaped as that of `clip_dir`."""
    monkeypatch.setitem(TOWERS, "clip_tiny", Tower("nobody/no-such-clip", TINY_CLIP))


def pretrained(arch: str, weights: object, image_size: int = 32) -> Classifier:
    return Classifier(arch, 5, image_size, pretrained=True, weights=str(weights)).eval()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    ("arch", "form"),
    [("resnet18", "plain"), ("densenet121", "wrapped"), ("mobilenet_v2", "of_this_project")],
)
def test_a_file_of_weights_gives_its_networks_features(arch, form, tmp_path):
    torch.manual_seed(1)
    if form == "of_this_project":
        network = Classifier(arch, 7, 32).eval()
        content, expected = classifier_state(network), network.features
    else:
        network = torchvision.models.get_model(arch, weights=None, num_classes=9).eval()
        state = network.state_dict()
        if arch == "densenet121":  # as torchvision's own files name its layers
            state = {
                k.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): v
                for k, v in state.items()
            }
        content = state
        if form == "wrapped":
            content = {"state_dict": {f"module.{k}": v for k, v in state.items()}}
        network.set_submodule("fc" if arch == "resnet18" else "classifier", torch.nn.Identity())
        expected = network
    torch.save(content, tmp_path / "weights.pth")
    pixels = torch.randn(2, 3, 32, 32)
    found = pretrained(arch, tmp_path / "weights.pth")
    torch.testing.assert_close(found.features(pixels), expected(pixels))
    assert found(pixels).shape == (2, 5)


@torch.no_grad()
def test_a_vision_transformers_positions_are_interpolated(tmp_path, monkeypatch):
    def small(name: str, weights: None, image_size: int = 16) -> VisionTransformer:
        return VisionTransformer(image_size, 8, 1, 2, 16, 32)

    monkeypatch.setattr(torchvision.models, "get_model", small)
    network = small("vit_b_16", None)
    torch.nn.init.normal_(network.encoder.pos_embedding)
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    same = pretrained("vit_b_16", tmp_path / "vit.pth", 16).body.encoder.pos_embedding
    assert torch.equal(same, network.encoder.pos_embedding)
    larger = pretrained("vit_b_16", tmp_path / "vit.pth", 32).body.encoder.pos_embedding
    assert larger.shape == (1, 17, 16) and torch.equal(larger[:, 0], same[:, 0])
    for ours, theirs in ((1, 1), (4, 2), (13, 3), (16, 4)):  # the corners of 4 x 4 and 2 x 2
        torch.testing.assert_close(larger[:, ours], same[:, theirs])


def test_weights_by_name_are_those_that_torchvision_has(monkeypatch):
    asked = []

    def offline(url: str, **options: object) -> None:
        asked.append((url, options))
        raise URLError("no route")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    for weights in (None, "IMAGENET1K_V2"):
        with pytest.raises(InputError, match="cannot download .* resnet50 .*--weights"):
            Classifier("resnet50", 5, 32, pretrained=True, weights=weights)
    known = torchvision.models.ResNet50_Weights
    assert [url for url, _ in asked] == [known.IMAGENET1K_V1.url, known.IMAGENET1K_V2.url]
    assert all(options["weights_only"] for _, options in asked)


@pytest.mark.parametrize(
    ("arch", "weights", "words"),
    [
        ("resnet18", "nowhere.pth", "nowhere.pth is neither a file nor .* known: IMAGENET1K_V1"),
        ("resnet18", "IMAGENET1K_V2", "neither a file nor a name that resnet18 has"),
        ("resnet10_tiny", "IMAGENET1K_V1", "no pretrained weights for resnet10_tiny"),
        ("vit_h_14", "IMAGENET1K_V1", "known: IMAGENET1K_SWAG_E2E_V1"),
        ("clip_vit_b32", "./nowhere", "cannot load the CLIP model ./nowhere.*--weights"),
    ],
)
def test_unknown_weights_are_refused_in_one_line(arch, weights, words):
    if arch == "vit_h_14":  # 600 M parameters
        from expansion.classifier.backbones import _download as build
    else:

        def build(arch: str, weights: str) -> Classifier:
            return Classifier(arch, 5, 32, pretrained=True, weights=weights)

    with pytest.raises(InputError, match=words) as error:
        build(arch, weights)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["of_another_network", "a_tensor", "text", "code"])
def test_a_file_that_does_not_fit_is_named_and_runs_nothing(kind, tmp_path):
    path, mark = tmp_path / "weights.pth", tmp_path / "was_here"
    if kind == "text":
        path.write_text("404: Not Found")
    else:
        content = {
            "of_another_network": torchvision.models.mobilenet_v2().state_dict(),
            "a_tensor": torch.zeros(3),
            "code": {"conv1.weight": Intruder(mark)},
        }
        torch.save(content[kind], path)
    with pytest.raises(InputError, match="weights.pth") as error:
        pretrained("resnet18", path)
    assert "\n" not in str(error.value) and not mark.exists()


def test_weights_without_pretrained_are_refused(tmp_path):
    with pytest.raises(InputError, match="weights IMAGENET1K_V1 count only with --pretrained"):
        train_original.main(["-d", "digits", "--weights", "IMAGENET1K_V1", "--dry_run"])


# CLIP's image tower.


@torch.no_grad()
def test_clip_features_are_those_of_transformers(clip_dir):
    noise = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray((255 * noise).byte().permute(1, 2, 0).numpy())
    classifier = pretrained("clip_tiny", clip_dir)
    found = classifier.features(normalize(to_unit_tensor(image))[None])
    processor = CLIPImageProcessor.from_pretrained(clip_dir)
    assert (tuple(processor.image_mean), tuple(processor.image_std)) == (CLIP_MEAN, CLIP_STD)
    values = processor(images=image, return_tensors="pt").pixel_values
    expected = CLIPModel.from_pretrained(clip_dir).get_image_features(values).pooler_output
    assert found.shape == (1, 8)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (found.norm(dim=1) - 1).abs().min() > 0.01  # as the tower gives them, not of unit length


@torch.no_grad()
def test_a_clip_of_other_image_sizes_interpolates_its_positions(clip_dir):
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    classifier = pretrained("clip_tiny", clip_dir)
    tower = CLIPVisionModelWithProjection.from_pretrained(clip_dir)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    imagenet = [
        torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    ]
    values = (pixels * imagenet[1] + imagenet[0] - mean) / std
    expected = tower(values, interpolate_pos_encoding=True).image_embeds
    torch.testing.assert_close(classifier.features(pixels), expected, atol=1e-5, rtol=1e-4)


def test_the_full_clip_is_openais_vit_b32():
    with torch.device("meta"):
        tower = build_tower("clip_vit_b32")
    config = tower.tower.config
    assert (config.hidden_size, config.num_hidden_layers, config.patch_size) == (768, 12, 32)
    assert (config.image_size, config.projection_dim, config.hidden_act) == (224, 512, "quick_gelu")
    assert sum(p.numel() for p in tower.parameters()) == 87_849_216  # 87.85 M, of openai's files


@pytest.mark.parametrize(
    ("change", "words"),
    [({"patch_size": 4}, "patch_size 8 instead of 4"), ({"hidden_act": "gelu"}, "hidden_act")],
)
def test_a_clip_of_another_shape_is_refused(change, words, clip_dir, monkeypatch):
    fields = {**TOWERS["clip_tiny"].fields, **change}
    monkeypatch.setitem(TOWERS, "clip_other", Tower("nobody/no-such-clip", fields))
    with pytest.raises(InputError, match=f"it is no clip_other, {words}"):
        load_tower("clip_other", str(clip_dir))


def test_a_clip_with_parts_missing_or_pickled_is_refused(clip_dir, tmp_path):
    model = CLIPModel.from_pretrained(clip_dir)
    state = {k: v for k, v in model.state_dict().items() if k != "visual_projection.weight"}
    for folder in ("lacking", "pickled"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_bytes((clip_dir / "config.json").read_bytes())
    model.save_pretrained(tmp_path / "lacking", state_dict=state)
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(InputError, match="it lacks visual_projection.weight"):
        load_tower("clip_tiny", str(tmp_path / "lacking"))
    with pytest.raises(InputError, match="cannot load the CLIP model"):
        load_tower("clip_tiny", str(tmp_path / "pickled"))


def test_a_clip_is_trained_from_a_folder_and_loads_as_a_guide(
    dataset,
    clip_dir,
    tmp_path,
):
    line = (
        f"-d {dataset} --checkpoint_dir {tmp_path} -a clip_tiny --pretrained --weights {clip_dir}"
    )
    line += " --image_size 16 --resize_size 16 --workers 0 --seeds 1 --lr 0.01 --batch_size 4"
    train_original.main([*line.split(), "--budget", "steps", "--max_train_steps", "2"])
    (path,) = tmp_path.rglob("model_best.pth.tar")
    assert path.parents[1].name == "clip_tiny_pretrained_lr0.01"
    guide = load_classifier(path, arch="clip_tiny", num_classes=3)
    before = pretrained("clip_tiny", clip_dir, 16).state_dict()
    changed = [
        k for k, v in guide.body.state_dict().items() if not torch.equal(v, before[f"body.{k}"])
    ]
    assert changed and guide.image_size == 16


# Recipes of backbones.


def chosen(monkeypatch, *arguments: str):
    found = []

    def stop(config, recipe):
        found.append(recipe)
        raise InputError("parsed")

    monkeypatch.setattr(train_original, "load_data", stop)
    with pytest.raises(InputError, match="parsed"):
        train_original.main(arguments)
    return found[0]


def test_a_backbones_recipe_comes_between_the_default_and_everything_else(
    monkeypatch, tmp_path: Path
):
    plain = chosen(monkeypatch, "-d", "caltech-101")
    assert (plain.optimizer, plain.lr, plain.weight_decay, plain.lr_warmup) == (
        "sgd",
        0.1,
        1e-4,
        0,
    )
    assert plain.label_smoothing == 0
    swin = chosen(monkeypatch, "-d", "caltech-101", "-a", "swin_v2_t")
    assert (swin.optimizer, swin.weight_decay) == ("adamw", 0.05) and swin.lr_warmup > 0
    assert (swin.batch_size, swin.epochs, swin.image_size) == (64, 100, 224)  # the default's
    (tmp_path / "my.yaml").write_text("arch: swin_v2_t\nweight_decay: 0.2\n")
    mine = chosen(monkeypatch, "-d", "caltech-101", "--config", str(tmp_path / "my.yaml"))
    assert (mine.optimizer, mine.lr, mine.weight_decay) == ("adamw", swin.lr, 0.2)
    sgd = "-d caltech-101 -a swin_v2_t --optimizer sgd --lr 0.05 --lr_warmup 0"
    assert chosen(monkeypatch, *sgd.split()).lr == 0.05
    values = SimpleNamespace(classifier={"arch": "swin_v2_t", "lr_warmup": 0.3})
    monkeypatch.setattr(datasets, "dataset_config", lambda name, data_dir: values)
    of_dataset = chosen(monkeypatch, "-d", "caltech-101")
    assert (of_dataset.optimizer, of_dataset.lr_warmup) == ("adamw", 0.3)


def test_the_papers_learning_rate_is_refused_where_it_would_diverge(monkeypatch):
    short = ("caltech-101", "swin_v2_t", "0.1", "False", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InputError, match="lr 0.1 is far too much for AdamW; give about 1e-3"):
        train_original.main(short)
