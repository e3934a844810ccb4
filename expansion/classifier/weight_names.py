"""Other programs' names of a network's weights as torchvision's and transformers'.

timm's ResNet, ResNeXt and Wide ResNet bear torchvision's names; its MobileNetV2, Swin V2 and vision
transformers are the same networks under others. OpenCLIP's image towers are CLIP's of transformers.
Names that nothing here knows are left as they are, so that they are seen to be left over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]

# What timm calls the networks whose weights are understood, where torchvision says otherwise.
TIMM_ARCHS = {
    "mobilenetv2_100": "mobilenet_v2",
    "swinv2_tiny_window8_256": "swin_v2_t",
    "swinv2_small_window8_256": "swin_v2_s",
    "swinv2_base_window8_256": "swin_v2_b",
    "vit_base_patch16_224": "vit_b_16",
    "vit_base_patch32_224": "vit_b_32",
    "vit_large_patch16_224": "vit_l_16",
    "vit_large_patch32_224": "vit_l_32",
}

MOBILENET_BLOCKS = (1, 2, 3, 4, 3, 3, 1)  # in each stage of MobileNetV2
VIT = (
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^norm\.", "encoder.ln."),
    (r"^head\.", "heads.head."),
    (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
)
SWIN_V2 = (
    (r"^patch_embed\.proj\.", "features.0.0."),
    (r"^patch_embed\.norm\.", "features.0.2."),
    (r"^head\.fc\.", "head."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
)
OPEN_CLIP = (
    (r"^class_embedding$", "embeddings.class_embedding"),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^conv1\.", "embeddings.patch_embedding."),
    (r"^ln_pre\.", "pre_layrnorm."),
    (r"^ln_post\.", "post_layernorm."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


def torchvision_state(state: Mapping[str, Tensor]) -> State:
    """A state dict with torchvision's names, from one with these or with timm's."""
    for mark, convert in TIMM:
        if mark in state:
            return convert(dict(state))
    # torchvision's own files of DenseNet say norm.1 where the network says norm1.
    dense = r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)"
    return {re.sub(dense, r"\1\2", key): value for key, value in state.items()}


def renamed(state: State, rules: tuple[tuple[str, str], ...]) -> State:
    """`state` with every rule (pattern, replacement) applied to every name in turn."""
    result = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        result[key] = value
    return result


def _mobilenet_v2(state: State) -> State:
    rules = [
        (r"^conv_stem\.", "features.0.0."),
        (r"^bn1\.", "features.0.1."),
        (r"^conv_head\.", "features.18.0."),
        (r"^bn2\.", "features.18.1."),
        (r"^classifier\.", "classifier.1."),
    ]
    first = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1", "bn2": "2"}
    others = {
        "conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1", "conv_pwl": "2", "bn3": "3",
    }  # fmt: skip
    number = 0
    for stage, count in enumerate(MOBILENET_BLOCKS):
        for block in range(count):
            number += 1
            for name, place in (others if stage else first).items():
                ours = f"features.{number}.conv.{place}."
                rules.append((rf"^blocks\.{stage}\.{block}\.{name}\.", ours))
    return renamed(state, tuple(rules))


def _vision_transformer(state: State) -> State:
    return renamed(state, VIT)


def _swin_v2(state: State) -> State:
    # timm puts the reduction before a stage, up to version 0.6 after it.
    after = any(key.startswith("layers.0.downsample.") for key in state)
    moved = {}
    for key, value in renamed(state, SWIN_V2).items():
        found = re.match(r"layers\.(\d+)\.(downsample|blocks)\.(.*)", key)
        if found:
            stage, kind, rest = int(found[1]), found[2], found[3]
            place = 2 * stage + 1 if kind == "blocks" else 2 * (stage + after)
            key = f"features.{place}.{rest}"
        moved[key] = value
    for key in [key for key in moved if key.endswith(".attn.q_bias")]:
        stem = key.removesuffix("q_bias")
        q_bias, v_bias = moved.pop(key), moved.pop(f"{stem}v_bias", None)
        if v_bias is not None:  # the keys have no bias
            moved[f"{stem}qkv.bias"] = torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])
    return moved


# A name that only this network of timm's has -> what renames its weights.
TIMM: tuple[tuple[str, Callable[[State], State]], ...] = (
    ("conv_stem.weight", _mobilenet_v2),
    ("cls_token", _vision_transformer),
    ("layers.0.blocks.0.attn.logit_scale", _swin_v2),
)


def clip_tower_state(state: Mapping[str, Tensor], scale: Tensor, shift: Tensor) -> State:
    """A state dict of `CLIPVisionModelWithProjection`, and its head's `fc` if there is one.

    From transformers' names, of an image tower or a whole CLIP, or from OpenCLIP's and OpenAI's
    whole CLIP. One of these with `fc` is a guide of the DistDiff repository, which was trained on
    ImageNet's normalisation x; the tower here sees x scale + shift, so its first layer becomes
    that of the inverse: w / scale, and the positions less what the shift adds.

    Args:
        scale: (3, 1, 1), as `shift`; from ImageNet's normalisation to CLIP's.
    """
    wanted = ("vision_model.", "visual_projection.", "fc.")
    if "visual.conv1.weight" not in state:
        is_clip = any(key.startswith("text_model.") for key in state)
        return {k: v for k, v in state.items() if not is_clip or k.startswith(wanted)}
    visual = {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}
    head = {key: value for key, value in state.items() if key.startswith("fc.")}
    if head and "positional_embedding" in visual:
        weight = visual["conv1.weight"].float() / scale
        added = (weight * shift).sum(dim=(1, 2, 3))
        positions = visual["positional_embedding"].float().clone()
        positions[1:] -= added
        visual |= {"conv1.weight": weight, "positional_embedding": positions}
    projection = visual.pop("proj", None)
    tower = {}
    for key, value in renamed(visual, OPEN_CLIP).items():
        found = re.match(r"(encoder\.layers\.\d+)\.attn\.in_proj_(weight|bias)$", key)
        if found:
            for name, part in zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True):
                tower[f"vision_model.{found[1]}.self_attn.{name}.{found[2]}"] = part
        else:
            tower[f"vision_model.{key}"] = value
    if projection is not None:
        tower["visual_projection.weight"] = projection.T
    return {**tower, **head}
