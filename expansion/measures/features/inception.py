"""The Inception network of FID, of 2015, built from torchvision's by its differences.

The weights are those that the field's programs read: the plain state dict
`pt_inception-2015-12-05-6726825d.pth`, which the authors of pytorch-fid ported from TensorFlow's
graph. That graph pools otherwise than torchvision's network: averages leave the padding out, and
the last block takes the maximum.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from expansion.classifier.classifier_files import fill, read_network
from expansion.common.errors import InputError
from expansion.images.tensors import to_unit_tensor

NUM_CLASSES = 1008  # of the graph, of which 1,000 mean something
SIDE = 299  # pixels
AVERAGING = ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e",
             "Mixed_7b")  # fmt: skip
REMEDY = (
    "give pt_inception-2015-12-05-6726825d.pth, the state dict that pytorch-fid reads, from its "
    "releases"
)


class FidInception(nn.Module):
    """Pooled features (B, 2048) of images (B, 3, 299, 299) in [0, 1]; in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torchvision.models.inception_v3(
            weights=None, aux_logits=False, num_classes=NUM_CLASSES, init_weights=False
        ).eval()
        average = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
        for name in AVERAGING:
            _pool_by(getattr(self.network, name), average)
        _pool_by(self.network.Mixed_7c, partial(F.max_pool2d, kernel_size=3, stride=1, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.network(2 * images - 1)


def load_fid_inception(path: str | Path) -> FidInception:
    """The network with the weights of a file.

    Raises:
        InputError: There is none, it holds more than weights, or they are another network's.
    """
    if not Path(path).is_file():
        raise InputError(f"the file of Inception's weights {path} does not exist; {REMEDY}")
    inception = FidInception()
    fill(inception.network, read_network(path, REMEDY).state, path, "FID's Inception")
    inception.network.fc = nn.Identity()  # its answer is the pooled features
    return inception.eval().requires_grad_(False)


def inception_input(image: Image.Image) -> Tensor:
    """(3, 299, 299) in [0, 1]: bilinear without smoothing, as FID's graph resizes."""
    pixels = to_unit_tensor(image)[None]
    return F.interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0]


def _pool_by(block: nn.Module, pool: Callable[[Tensor], Tensor]) -> None:
    """Let the pooling branch of a block see `pool` of the block's input."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[:] = inputs

    def replace(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (pool(seen.pop()),)

    block.register_forward_pre_hook(keep)
    block.branch_pool.register_forward_pre_hook(replace)
