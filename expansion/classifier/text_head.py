"""A head that starts from CLIP's text features, so that a classifier is zero-shot CLIP at first.

Symbols: N classes, D features, f features of an image, not of unit length, t_c unit-length features
of the text about class c. The logits are f . t_c, those of zero-shot CLIP times |f| / exp(tau) of
each image: its ranking and its decisions. So does the released DistDiff; its paper does not say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from expansion.classifier.backbones import Classifier
from expansion.classifier.clip import ClipClassifier
from expansion.classifier.clip_backbone import TOWERS
from expansion.classifier.clip_files import check_clip
from expansion.classifier.recipe import Recipe
from expansion.common.errors import require

OPTION = "--weights"  # names the model


def check_zero_shot_head(recipe: Recipe) -> None:
    """Raise InputError where the recipe's network has no text model; a hub id is not looked at."""
    require(
        recipe.arch in TOWERS,
        f"zero_shot_head: a {recipe.arch} has no text features; give -a {' or '.join(TOWERS)}, or "
        "leave it out",
    )
    require(recipe.pretrained, "zero_shot_head needs the pretrained CLIP; add --pretrained")
    if recipe.weights is not None:
        require(
            not Path(recipe.weights).is_file(),
            f"zero_shot_head: weights {recipe.weights} is a single file, without tokenizer; give "
            "the folder or hub id of a whole CLIP",
        )
        check_clip(recipe.weights, OPTION)


def start_from_text(
    classifier: Classifier, weights: str | None, prompt_names: Sequence[str], template: str
) -> None:
    """Set the head's weights (N, D) to t_c and its bias to 0.

    Args:
        classifier: With a pretrained tower of `weights`.
        weights: Hub id or folder; None: the usual one of the backbone.
        prompt_names: What texts call the classes, by label.
        template: Text with {} for the class.

    Raises:
        InputError: The whole CLIP cannot be loaded.
    """
    name = weights or TOWERS[classifier.arch].hub_id
    clip = ClipClassifier.load(name, prompt_names, [template], option=OPTION)
    with torch.no_grad():
        classifier.head.weight.copy_(clip.text_features)
        classifier.head.bias.zero_()
