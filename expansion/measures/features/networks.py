"""Networks whose features a set is measured by: a run's classifier, Inception, CLIP, DINOv2.

Loading never runs code from a file. A network is known by what it contains: the hash of its weights
and how it looks at images, wherever it came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from expansion.classifier.backbones import load_classifier
from expansion.classifier.transforms import eval_transform, network_input
from expansion.common.config import config_hash, load_yaml
from expansion.common.errors import InputError, require, unknown_name
from expansion.data.datasets import ImageDataset
from expansion.predict.finished_runs import OPTIONS, find_runs

CLIP_MODEL = "openai/clip-vit-large-patch14-336"  # CMMD's
DINO_MODEL = "facebook/dinov2-base"

Embedded = tuple[Tensor, Tensor | None]  # features (B, D), logits (B, N) if it has any


@dataclass(frozen=True)
class Network:
    """What turns images into features.

    Attributes:
        kind: Key of `NETWORKS`.
        title: For people: where it came from.
        identity: Decides the features; equal networks have equal ones.
        prepare: From an RGB image to what `embed` takes a batch of, on the CPU.
        embed: From a batch on the device to features, and logits by the dataset's classes.
    """

    kind: str
    title: str
    identity: str
    prepare: Callable[[Image.Image], Tensor]
    embed: Callable[[Tensor], Embedded]
    device: str


def load_network(kind: str, place: str | None, dataset: ImageDataset, device: str) -> Network:
    """A network of `NETWORKS`.

    Args:
        kind: Which.
        place: Run folder, file, hub id or folder; None: the usual one, if there is one.
        dataset: Its classes are those of the logits.
        device: Where it runs.

    Raises:
        InputError: No such kind, or it cannot be loaded.
    """
    if kind not in NETWORKS:
        raise unknown_name("features", kind, list(NETWORKS))
    return NETWORKS[kind](place, dataset, device)


def _run(place: str | None, dataset: ImageDataset, device: str) -> Network:
    """The classifier of a finished run on real images; of several seeds, the first one's."""
    require(place is not None, "--features run: give the folder of a finished run, as run:DIR")
    runs = find_runs(place)
    folder = runs.folders[0]
    generated = load_yaml(folder / OPTIONS).values.get("num_generated")
    require(
        generated == 0,
        f"{folder} learnt from generated images as well; give a run of train_original.py",
    )
    recipe = runs.view.recipe
    classifier = load_classifier(
        runs.checkpoints[0], arch=recipe.arch, class_names=dataset.class_names
    ).to(device)

    def embed(pixels: Tensor) -> Embedded:
        features = classifier.features(network_input(pixels))
        return features, classifier.head(features)

    sizes = (recipe.image_size, recipe.resize_size, dataset.class_names)
    return _network(
        "run", f"run {folder}", classifier, sizes, eval_transform(recipe), embed, device
    )


def _inception(place: str | None, dataset: ImageDataset, device: str) -> Network:
    from expansion.measures.features.inception import REMEDY, inception_input, load_fid_inception

    require(place is not None, f"--features inception: which file of weights? {REMEDY}")
    inception = load_fid_inception(place).to(device)

    def embed(images: Tensor) -> Embedded:
        return inception(images), None

    title = f"FID's Inception ({Path(place).name})"
    return _network("inception", title, inception, "bilinear", inception_input, embed, device)


def _clip(place: str | None, dataset: ImageDataset, device: str) -> Network:
    """CLIP's projected features, and its zero-shot logits by the dataset's prompt."""
    from expansion.classifier.clip import ClipClassifier

    name = place or CLIP_MODEL
    template = dataset.config.prompt_template
    try:
        clip = ClipClassifier.load(name, dataset.prompt_names, [template], device=device)
    except InputError as error:
        raise InputError(str(error).replace("by --clip_model", "as clip:FOLDER")) from error

    def prepare(image: Image.Image) -> Tensor:
        return clip.image_processor(images=image, return_tensors="pt").pixel_values[0]

    def embed(pixel_values: Tensor) -> Embedded:
        features = clip.model.get_image_features(pixel_values).pooler_output
        return features, clip.logits(nn.functional.normalize(features, dim=-1))

    facts = (clip.image_processor.to_dict(), dataset.prompt_names, template)
    return _network("clip", f"CLIP {name}", clip.model, facts, prepare, embed, device)


def _dinov2(place: str | None, dataset: ImageDataset, device: str) -> Network:
    """The normalised class token of DINOv2."""
    from transformers import BitImageProcessor, Dinov2Model

    from expansion.common.hub import hub_failure, only_cached
    from expansion.common.quiet import quiet_libraries

    name = place or DINO_MODEL
    source = {"local_files_only": only_cached(name)}
    try:
        with quiet_libraries():
            model, found = Dinov2Model.from_pretrained(
                name, **source, use_safetensors=True, output_loading_info=True
            )
            processor = BitImageProcessor.from_pretrained(name, **source)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        remedy = "download it once while connected: hf download {name}"
        raise hub_failure("DINOv2 model", name, error, remedy) from error
    lacking = min(found["missing_keys"], default="")
    require(not lacking, f"cannot load the DINOv2 model {name}: it lacks {lacking}")
    model = model.eval().requires_grad_(False).to(device)

    def prepare(image: Image.Image) -> Tensor:
        return processor(images=image, return_tensors="pt").pixel_values[0]

    def embed(pixel_values: Tensor) -> Embedded:
        return model(pixel_values).pooler_output, None

    facts = processor.to_dict()
    return _network("dinov2", f"DINOv2 {name}", model, facts, prepare, embed, device)


NETWORKS: dict[str, Callable[[str | None, ImageDataset, str], Network]] = {
    "run": _run,
    "inception": _inception,
    "clip": _clip,
    "dinov2": _dinov2,
}


def _network(
    kind: str,
    title: str,
    model: nn.Module,
    facts: Any,
    prepare: Callable[[Image.Image], Tensor],
    embed: Callable[[Tensor], Embedded],
    device: str,
) -> Network:
    identity = f"{kind}-{config_hash([_fingerprint(model), facts])}"
    return Network(kind, title, identity, prepare, embed, device)


def _fingerprint(model: nn.Module) -> str:
    """SHA-256 of all weights by their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        plain = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(plain.numpy().data)
    return digest.hexdigest()


@torch.inference_mode()
def embed_images(network: Network, prepared: Sequence[Tensor]) -> Embedded:
    """Features and logits on the CPU, float32, of what `network.prepare` made of images."""
    batch = torch.stack(list(prepared)).to(network.device)
    features, logits = network.embed(batch)
    return features.float().cpu(), None if logits is None else logits.float().cpu()
