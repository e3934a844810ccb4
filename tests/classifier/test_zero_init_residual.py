"""--zero_init_residual: every residual block starts as the identity, as in both papers' codes."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torchvision.models.resnet import BasicBlock

import train_original
from expansion.classifier.backbones import OWN_BACKBONES, Classifier
from expansion.classifier.recipe import RESIDUAL, Recipe
from expansion.common.config import load_yaml
from expansion.common.errors import InputError


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_the_start_is_that_of_torchvision_s_own_argument(arch):
    """Weight for weight, and no other random number is drawn."""
    torch.manual_seed(3)
    theirs = torchvision.models.get_model(arch, weights=None, zero_init_residual=True).state_dict()
    torch.manual_seed(3)
    ours = Classifier(arch, 4, 32, zero_init_residual=True).body.state_dict()
    assert ours and all(torch.equal(value, theirs[key]) for key, value in ours.items())
    torch.manual_seed(3)
    default = Classifier(arch, 4, 32).body.state_dict()
    changed = {key for key in ours if not torch.equal(ours[key], default[key])}
    last = "bn2" if arch == "resnet18" else "bn3"
    assert changed and all(key.endswith(f"{last}.weight") for key in changed)


@pytest.mark.parametrize("arch", OWN_BACKBONES)
def test_the_project_s_own_backbones_start_as_the_identity_too(arch):
    classifier = Classifier(arch, 4, 32, zero_init_residual=True)
    blocks = [m for m in classifier.modules() if isinstance(m, BasicBlock)]
    assert blocks and not any(block.bn2.weight.any() for block in blocks)
    plain = [m for m in Classifier(arch, 4, 32).modules() if isinstance(m, BasicBlock)]
    assert all((block.bn2.weight == 1).all() for block in plain)
    x = torch.rand(2, blocks[0].conv1.in_channels, 8, 8)
    assert torch.equal(blocks[0].train()(x), x)  # positive, so that the last ReLU does nothing


def test_the_option_is_for_every_backbone_that_has_such_blocks():
    """torchvision builds them in one module, under names that begin alike."""
    factories = vars(torchvision.models.resnet)
    known = torchvision.models.list_models(torchvision.models)
    with_blocks = {name for name in known if name in factories}
    assert with_blocks == {name for name in known if name.startswith(RESIDUAL)} and with_blocks
    assert all(arch.startswith(RESIDUAL) for arch in OWN_BACKBONES)


@pytest.mark.parametrize("arch", ["mobilenetv2", "swin_v2_t", "clip_vit_b32", "vgg11_bn"])
def test_another_architecture_is_refused_in_one_line(arch, tmp_path, digits_dir):
    line = f"-d digits --data_dir {digits_dir} --checkpoint_dir {tmp_path} -a {arch} --lr 0.001"
    with pytest.raises(InputError, match=f"zero_init_residual: a {arch} has no residual") as error:
        train_original.main([*line.split(), "--zero_init_residual", "--dry_run"])
    assert "\n" not in str(error.value)


def test_pretrained_weights_leave_it_nothing_to_do():
    with pytest.raises(InputError, match="zero_init_residual.*pretrained weights replace it"):
        Recipe(pretrained=True, zero_init_residual=True)


@pytest.mark.slow
def test_a_run_begins_so_and_says_so(tmp_path, digits_dir):
    line = f"-d digits --data_dir {digits_dir} --shots 1 --seeds 1 --budget steps --lr 1e-12 "
    line += "--max_train_steps 1 --weight_decay 0"
    ends = {}
    for flag in ("--zero_init_residual", "--no-zero_init_residual"):
        folder = tmp_path / flag
        train_original.main([*line.split(), "--checkpoint_dir", str(folder), flag])
        (results,) = folder.rglob("results.yaml")
        state = torch.load(results.parent / "checkpoint.pth.tar", weights_only=True)["state_dict"]
        said = load_yaml(results).values["zero_init_residual"]
        ends[said] = state["body.3.bn2.weight"].abs().max().item()
    assert ends == {True: pytest.approx(0, abs=1e-6), False: pytest.approx(1)}
