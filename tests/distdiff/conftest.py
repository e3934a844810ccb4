"""An untrained guide."""

from __future__ import annotations

import pytest
import torch

from expansion.classifier.backbones import Classifier


@pytest.fixture(scope="module")
def guide() -> Classifier:
    torch.manual_seed(3)
    return Classifier("resnet10_tiny", 10, 32).eval().requires_grad_(False)
