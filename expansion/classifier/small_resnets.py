"""ResNets for images of about 32 pixels, which torchvision has not."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet, resnet18


class TinyResNet(nn.Sequential):
    """ResNet-10 at a quarter of the usual width, for images of about 32 pixels on a CPU.

    3x3 stem of stride 2, then one basic block each of 16, 32, 64 and 128 channels (0.3 M
    parameters).
    """

    def __init__(self):
        layers = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
        layers.append(BasicBlock(16, 16))
        for inplanes, planes in ((16, 32), (32, 64), (64, 128)):
            shortcut = nn.Sequential(
                nn.Conv2d(inplanes, planes, 1, 2, bias=False), nn.BatchNorm2d(planes)
            )
            layers.append(BasicBlock(inplanes, planes, 2, shortcut))
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 1000))


def _resnet18_cifar() -> ResNet:
    """ResNet-18 with a 3x3 stem of stride 1 and no max-pooling, as is usual at 32 pixels."""
    network = resnet18()
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


OWN_BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "resnet10_tiny": TinyResNet,
    "resnet18_cifar": _resnet18_cifar,
}
