"""Small stand-ins for what a reproduction needs from outside, so that it can be rehearsed.

    python -m expansion.reproduce.stand_ins clip FOLDER
    python -m expansion.reproduce.stand_ins image_unet FOLDER
    python -m expansion.reproduce.stand_ins unlabeled FOLDER 200

clip: a CLIP with random weights. image_unet: the embedded checkpoint with four more channels, whose
weights are zero, for the latents of an image, as InstructPix2Pix begins its training. unlabeled:
images of the embedded digits that are neither trained nor tested on.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from expansion.common.config import PROJECT_ROOT
from expansion.common.errors import InputError, require, run_command, unknown_name
from expansion.common.files import partial_path

CHECKPOINT = PROJECT_ROOT / "assets" / "tiny-sd-digit-styles"
SIDE = 32  # of the images of the checkpoint, pixels
SPECIAL = ("bos", "eos", "pad")  # tokens that a CLIP must know the numbers of
DATASET, SPLIT = "mnist-few-shot-val", "test"


def main(arguments: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] in (["-h"], ["--help"]):
        sys.stdout.write(f"{__doc__}")
        return
    require(len(words) in (2, 3), f"give KIND FOLDER [NUMBER]; kinds: {', '.join(KINDS)}")
    kind, folder, *number = words
    if kind not in KINDS:
        raise unknown_name("kind", kind, list(KINDS))
    if Path(folder).is_dir():
        return
    # Whole or not at all: a folder counts as finished.
    partial = partial_path(Path(folder))
    partial.mkdir(parents=True)
    try:
        KINDS[kind](partial, int(number[0]) if number else 100)
        partial.rename(folder)
    except OSError as error:
        if not Path(folder).is_dir():
            raise InputError(f"{folder} cannot be made: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def make_clip(folder: Path, _: int) -> None:
    """A tiny CLIP for images of 32 pixels with random weights, always the same."""
    import torch
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPTextConfig,
        CLIPTokenizer,
        CLIPVisionConfig,
    )

    tokenizer = CLIPTokenizer.from_pretrained(CHECKPOINT / "tokenizer")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in SPECIAL}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes["num_attention_heads"] = 2
    text = CLIPTextConfig(vocab_size=len(tokenizer), **ids, **sizes)
    vision = CLIPVisionConfig(image_size=SIDE, patch_size=SIDE // 4, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision))
    square = {"height": SIDE, "width": SIDE}
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square)
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)


def make_image_unet(folder: Path, _: int) -> None:
    """The embedded checkpoint with a U-Net of eight channels."""
    import torch
    from diffusers import UNet2DConditionModel

    shutil.copytree(CHECKPOINT, folder, dirs_exist_ok=True)
    plain = UNet2DConditionModel.from_pretrained(CHECKPOINT, subfolder="unet")
    channels = plain.config.in_channels
    wide = UNet2DConditionModel.from_config({**plain.config, "in_channels": 2 * channels})
    weights = plain.state_dict()
    first = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.cat([first, torch.zeros_like(first)], dim=1)
    wide.load_state_dict(weights)
    shutil.rmtree(folder / "unet")
    wide.save_pretrained(folder / "unet")


def make_unlabeled(folder: Path, number: int) -> None:
    """Images of the embedded digits, as many of each class."""
    from expansion.data.datasets import load_dataset

    records = load_dataset(DATASET).records(SPLIT)
    step = max(1, len(records) // number)
    for place, record in enumerate(records[::step][:number]):
        record.load().save(folder / f"{place:05d}.png")


KINDS: Mapping[str, Callable[[Path, int], None]] = {
    "clip": make_clip,
    "image_unet": make_image_unet,
    "unlabeled": make_unlabeled,
}

if __name__ == "__main__":
    run_command(main)
