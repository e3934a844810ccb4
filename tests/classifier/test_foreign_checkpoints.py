"""Classifiers that other programs saved: wrapped, renamed, in other orders, or refused."""

from __future__ import annotations

import argparse
import io
import logging
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer
from torchvision.models.swin_transformer import SwinTransformerBlockV2 as SwinBlock
from torchvision.models.vision_transformer import VisionTransformer

from expansion.classifier.backbones import Classifier, classifier_state, load_classifier
from expansion.classifier.classifier_files import fill
from expansion.classifier.clip_backbone import TOWERS, Tower
from expansion.classifier.weight_names import torchvision_state
from expansion.common.errors import InputError
from tests.conftest import ROOT

FOREIGN = np.load(ROOT / "tests" / "parity" / "foreign_classifiers.npz", allow_pickle=False)
CLASSES = ("ant", "bee", "cat", "dog", "eel")


def foreign_state(name: str) -> dict[str, Tensor]:
    """The weights of a network of tests/parity/foreign_classifiers.npz."""
    state = {}
    for i, (key, text) in enumerate(
        zip(FOREIGN[f"{name}_names"], FOREIGN[f"{name}_shapes"], strict=True)
    ):
        shape = tuple(int(part) for part in str(text).split(",") if part)
        random, key = np.random.default_rng(i), str(key)
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
            continue
        if key.endswith("running_var"):
            value = random.uniform(0.5, 1.5, shape)
        elif key.endswith("logit_scale"):
            value = 1 + random.uniform(0, 1, shape)
        elif len(shape) == 1 and key.endswith("weight"):
            value = 1 + 0.1 * random.standard_normal(shape)
        else:
            fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 10
            value = random.standard_normal(shape) * (2 / fan_in) ** 0.5
        state[key] = torch.from_numpy(np.asarray(value, dtype=np.float32))
    return state


def pixels(size: int) -> Tensor:
    random = np.random.default_rng(99)
    return torch.from_numpy(random.standard_normal((2, 3, size, size)).astype(np.float32))


def assert_logits(network: torch.nn.Module, name: str, size: int) -> None:
    with torch.no_grad():
        logits = network(pixels(size))
    expected = torch.from_numpy(FOREIGN[f"{name}_logits"])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def saved(folder: Path, content: object, name: str = "guide.pth.tar") -> Path:
    path = folder / name
    torch.save(content, path)
    return path


def tiny(**changes) -> dict:
    """A checkpoint of this project's, with five classes."""
    torch.manual_seed(0)
    state = classifier_state(Classifier("resnet10_tiny", 5, 32))
    return {**state, "class_names": list(CLASSES), **changes}


def plain_resnet() -> torchvision.models.ResNet:
    torch.manual_seed(1)
    return torchvision.models.resnet18(num_classes=5).eval()


@pytest.mark.parametrize("saved_by", ["timm", "the DistDiff repository"])
def test_timm_s_mobilenet_gives_timm_s_logits(tmp_path, saved_by):
    state = foreign_state("mobilenetv2_100")
    if saved_by == "timm":
        content, arch = {"arch": "mobilenetv2_100.ra_in1k", "state_dict": state}, None
    else:  # DataParallel around timm's network; top-1 accuracies as floats; no arch
        state = {f"module.{key}": value for key, value in state.items()}
        content = {"epoch": 93, "state_dict": state, "acc": 61.5, "best_acc": np.float64(62.25)}
        arch = "mobilenetv2"
    guide = load_classifier(saved(tmp_path, content), arch=arch, class_names=CLASSES)
    assert_logits(guide, "mobilenetv2_100", 64)


def test_timm_s_vision_transformer_gives_timm_s_logits():
    sizes = dict(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=64)
    network = VisionTransformer(**sizes, num_classes=5).eval()
    fill(network, torchvision_state(foreign_state("vit")), "file", "vit")
    assert_logits(network, "vit", 32)


@pytest.mark.parametrize("version", ["1.0", "0.6"])
def test_timm_s_swin_transformer_gives_timm_s_logits(version):
    network = SwinTransformer(
        [4, 4],
        8,
        [1, 2],
        [2, 4],
        [8, 8],
        num_classes=5,
        block=SwinBlock,
        downsample_layer=PatchMergingV2,
    ).eval()
    state = foreign_state("swin_v2")
    if version == "0.6":  # which reduces at a stage's end, keeps masks and has no head.fc
        state = {
            key.replace("layers.1.downsample", "layers.0.downsample").replace(
                "head.fc", "head"
            ): value
            for key, value in state.items()
        }
        state["layers.0.blocks.0.attn_mask"] = torch.zeros(4, 64, 64)
    fill(network, torchvision_state(state), "file", "swin_v2_t")
    assert_logits(network, "swin_v2", 64)


@pytest.fixture
def clip_tiny(monkeypatch) -> None:
    fields = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "hidden_act": "gelu",
    }
    fields |= {"num_attention_heads": 2, "projection_dim": 8, "image_size": 16, "patch_size": 8}
    monkeypatch.setitem(TOWERS, "clip_tiny", Tower("nobody/no-such-clip", fields))


def test_a_clip_guide_of_the_distdiff_repository_gives_open_clip_s_logits(clip_tiny, tmp_path):
    """It was trained on ImageNet's normalisation, as `pixels` are; the rest of CLIP goes."""
    path = saved(tmp_path, {"state_dict": foreign_state("open_clip")})
    assert_logits(load_classifier(path, arch="clip_tiny", num_classes=5), "open_clip", 16)
    tower = Classifier("clip_tiny", 3, 16, pretrained=True, weights=str(path)).eval()
    with torch.no_grad():
        features = load_classifier(path, arch="clip_tiny").features(pixels(16))
        torch.testing.assert_close(tower.features(pixels(16)), features)


def test_a_whole_clip_in_one_file_gives_its_image_tower(clip_tiny, tmp_path):
    """OpenCLIP's without `fc` sees CLIP's own normalisation; transformers' has a text model."""
    theirs = {k: v for k, v in foreign_state("open_clip").items() if not k.startswith("fc.")}
    wrapped = Classifier("clip_tiny", 2, 16, True, str(saved(tmp_path, theirs, "open.pt")))
    names = {k: v.clone().contiguous() for k, v in wrapped.body.tower.state_dict().items()}
    save_file({**names, "text_model.x.weight": torch.ones(2)}, tmp_path / "whole.safetensors")
    other = Classifier("clip_tiny", 2, 16, True, str(tmp_path / "whole.safetensors"))
    with torch.no_grad():
        first, second = (c.eval().features(pixels(16)) for c in (wrapped, other))
    assert torch.equal(first, second)
    assert torch.equal(
        names["vision_model.embeddings.patch_embedding.weight"], theirs["visual.conv1.weight"]
    )


WRAPPED = [
    ("module.", "state_dict"),
    ("_orig_mod.", "model"),
    ("model.", "state_dict"),
    ("backbone.", "model_state"),
    ("net.", "net"),
    ("module._orig_mod.model.", "ema"),
    ("model.model.backbone.", "model_state_dict"),
    ("_orig_mod.module.", "state_dict"),
    ("", "model_ema"),
    ("", None),
]


@pytest.mark.slow
@pytest.mark.parametrize("prefix, key", WRAPPED, ids=str)
@pytest.mark.parametrize("as_weights", [False, True])
def test_prefixes_and_places_of_other_programs_are_taken_off(tmp_path, prefix, key, as_weights):
    network = plain_resnet()
    state = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    path = saved(tmp_path, state if key is None else {key: state, "epoch": 3})
    if as_weights:
        found = Classifier("resnet18", 7, 32, pretrained=True, weights=str(path)).eval()
        network.fc = torch.nn.Identity()
        torch.testing.assert_close(found.features(pixels(32)), network(pixels(32)))
    else:
        found = load_classifier(path, arch="resnet18", num_classes=5)
        torch.testing.assert_close(found(pixels(32)), network(pixels(32)))


def test_a_compiled_part_within_a_network_is_found(tmp_path):
    content = tiny()
    content["state_dict"] = {
        key.replace("body.", "body._orig_mod."): value
        for key, value in content["state_dict"].items()
    }
    found = load_classifier(saved(tmp_path, content))
    assert torch.equal(found.head.bias, content["state_dict"]["head.bias"])


@pytest.mark.slow
@pytest.mark.parametrize("head", ["head", "classifier", "linear.out"])
def test_a_model_s_own_head_beside_a_backbone_is_its_head(tmp_path, head):
    network = plain_resnet()
    state = {
        f"{head}.{key.removeprefix('fc.')}" if key.startswith("fc.") else f"backbone.{key}": value
        for key, value in network.state_dict().items()
    }
    path = saved(tmp_path, {"state_dict": state})
    found = load_classifier(path, arch="resnet18", num_classes=5)
    torch.testing.assert_close(found(pixels(32)), network(pixels(32)))
    started = Classifier("resnet18", 7, 32, pretrained=True, weights=str(path))
    assert torch.equal(started.body.conv1.weight, network.conv1.weight)


@pytest.mark.slow
def test_counters_and_averages_beside_the_weights_are_not_mistaken_for_them(tmp_path, caplog):
    """Of averaging (`n_averaged`) and profilers; a second, averaged network is named."""
    network = plain_resnet()
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    state |= {"n_averaged": torch.tensor(3), "module.layer1.total_ops": torch.zeros(1)}
    average = {key: value + 1 for key, value in network.state_dict().items()}
    path = saved(tmp_path, {"state_dict": state, "state_dict_ema": average})
    with caplog.at_level(logging.WARNING):
        found = load_classifier(path, arch="resnet18")
    torch.testing.assert_close(found(pixels(32)), network(pixels(32)))
    assert "state_dict is read; state_dict_ema, which lies beside it, is not" in caplog.text


def test_weights_without_batch_counters_as_old_pytorch_wrote_them_load(tmp_path):
    network = plain_resnet()
    state = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    found = load_classifier(saved(tmp_path, state), arch="resnet18")
    torch.testing.assert_close(found(pixels(32)), network(pixels(32)))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_safetensors_file_is_known_by_its_content(tmp_path, suffix):
    network = plain_resnet()
    path = tmp_path / f"model.{suffix}"
    save_file({key: value.clone() for key, value in network.state_dict().items()}, path)
    found = load_classifier(path, arch="resnet18", num_classes=5)
    torch.testing.assert_close(found(pixels(32)), network(pixels(32)))
    started = Classifier("resnet18", 7, 32, pretrained=True, weights=str(path))
    assert torch.equal(started.body.conv1.weight, network.conv1.weight)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=f"model.{suffix} is a damaged safetensors file"):
        load_classifier(path, arch="resnet18")


def numpy_values() -> dict:
    values = {kind: np.dtype(kind).type(1) for kind in "?bhilBHILefdFD"}
    return {**values, "name": np.str_("ant"), "when": np.datetime64("2024-01-01")}


@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_scalars_beside_the_weights_are_read(tmp_path, zipped):
    content = tiny(acc=np.float32(81.5), history=[{"loss": np.float64(0.5)}], more=numpy_values())
    path = tmp_path / "guide.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert load_classifier(path, class_names=CLASSES).num_classes == 5


def test_numpy_scalars_of_numpy_1_are_read(tmp_path):
    """Its pickles name the module numpy.core, where NumPy 2 has numpy._core."""
    path = tmp_path / "guide.pth"
    torch.save(tiny(acc=np.float64(81.5)), path)
    old_name, new_name = b"numpy.core.multiarray", b"numpy._core.multiarray"
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w") as new:
        contents = {item: old.read(item) for item in old.infolist()}
        assert any(new_name in content for content in contents.values())
        for item, content in contents.items():
            new.writestr(item.filename, content.replace(new_name, old_name))
    assert load_classifier(path, class_names=CLASSES).num_classes == 5


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("value", ["object array", "code", "code in a scalar"])
def test_what_could_run_code_stays_refused(tmp_path, value):
    mark = tmp_path / "was_here"
    extra = {
        "object array": lambda: np.array([Touch(mark)], dtype=object),
        "code": lambda: Touch(mark),
        "code in a scalar": lambda: CodeInScalar(mark),
    }[value]()
    with pytest.raises(InputError, match="guide.pth.tar"):
        load_classifier(saved(tmp_path, tiny(extra=extra)))
    assert not mark.exists()


class CodeInScalar:
    """A NumPy scalar of kind object around something that runs code."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return np.float64(0).__reduce__()[0], (np.dtype(object), Touch(self.path))


@pytest.mark.slow
def test_what_blocks_a_file_is_named_with_a_way_out(tmp_path):
    content = {"state_dict": plain_resnet().state_dict(), "args": argparse.Namespace(lr=0.1)}
    message = r"guide.pth.tar also holds a argparse.Namespace.*torch.save\(model.state_dict\(\)"
    with pytest.raises(InputError, match=message) as error:
        load_classifier(saved(tmp_path, content), arch="resnet18")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=message):
        Classifier("resnet18", 5, 32, True, str(tmp_path / "guide.pth.tar"))
    (tmp_path / "guide.pth.tar").write_bytes(pickle.dumps(plain_resnet(), protocol=2))
    with pytest.raises(InputError, match="guide.pth.tar also holds a torchvision"):
        load_classifier(tmp_path / "guide.pth.tar", arch="resnet18")


def without(state: dict, *keys: str) -> dict:
    return {key: value for key, value in state.items() if key not in keys}


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: without(s, "layer1.0.conv1.weight"), r"lacks body.layer1.0.conv1.weight;"),
        (lambda s: {**s, "se.weight": torch.ones(2)}, r"has further body.se.weight;"),
        (lambda s: {**s, "fc.weight": torch.ones(5, 9)}, r"head.weight of shape \(5, 9\)"),
        (lambda s: {**s, "conv1.weight": s["conv1.weight"] * torch.nan}, "not finite"),
        (lambda s: {**s, "model.conv1.weight": s["conv1.weight"]}, "two networks, as conv1.weight"),
        (
            lambda s: {**s, "conv1.weight": 3},
            "conv1.weight does not fit, it is no tensor of numbers but 3",
        ),
        (lambda s: without(s, "fc.weight", "fc.bias"), "lacks fc.bias"),
        (lambda s: {f"student.{k}": v for k, v in s.items()}, "lacks fc.bias"),
    ],
)
def test_weights_that_do_not_fit_are_named_in_one_line(tmp_path, change, message):
    path = saved(tmp_path, {"state_dict": change(plain_resnet().state_dict())})
    with pytest.raises(InputError, match=message) as error:
        load_classifier(path, arch="resnet18")
    assert "\n" not in str(error.value) and "guide.pth.tar" in str(error.value)


def test_a_network_of_timm_s_that_is_another_one_is_refused(tmp_path):
    """EfficientNet has MobileNetV2's names and more; torchvision's has other names."""
    state = foreign_state("mobilenetv2_100") | {"blocks.1.0.se.conv_reduce.weight": torch.ones(1)}
    path = saved(tmp_path, {"arch": "efficientnet_b0", "state_dict": state})
    with pytest.raises(InputError, match="does not fit a efficientnet_b0: it lacks"):
        load_classifier(path)
    with pytest.raises(InputError, match="holds a efficientnet_b0, not a mobilenetv2"):
        load_classifier(path, arch="mobilenetv2")
