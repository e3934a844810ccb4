"""CLIP: unit-length features of images, and their similarity to texts about classes.

Symbols: B images, N classes, D features, tau the model's logit scale. Loading never runs code from
a checkpoint: safetensors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from expansion.classifier.clip_files import cannot_load
from expansion.common.hub import check_revision, only_cached, why_not_loaded
from expansion.common.quiet import quiet_libraries
from expansion.data.batches import SeededImages
from expansion.data.prompts import class_prompt
from expansion.images.records import ImageRecord

NUM_BYTES = 256  # CLIP's vocabulary begins with the bytes
OPTION = "--clip_model"  # names the model of a zero-shot classifier


class ClipClassifier:
    """Zero-shot classifier; differentiable with respect to the images, its weights are frozen.

    Args:
        model: On the device that computes.
        tokenizer: Belongs to it, as does `image_processor`.
        prompt_names: What the texts call the classes, by label.
        templates: Texts with {} for the class; a class is the mean of its texts' features.

    Raises:
        InputError: A template without {}.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        image_processor: CLIPImageProcessor,
        prompt_names: Sequence[str],
        templates: Sequence[str],
    ):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.text_features = torch.stack(
            [self._class_features(name, templates) for name in prompt_names]
        )  # (N, D), unit length

    @classmethod
    def load(
        cls,
        name_or_path: str,
        prompt_names: Sequence[str],
        templates: Sequence[str],
        *,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        option: str = OPTION,
    ) -> ClipClassifier:
        """Load a CLIP of transformers' format.

        Args:
            name_or_path: Hub id or local folder.
            prompt_names: See the class; `templates` too.
            device: Where it computes.
            revision: Branch, tag or commit on the hub.
            option: What gives the model, for errors.

        Raises:
            InputError: The folder is incomplete, or the hub cannot be reached or lacks the id.
        """
        check_revision(name_or_path, revision, "--clip_revision")
        try:
            with quiet_libraries():
                source = {"revision": revision, "local_files_only": only_cached(name_or_path)}
                model, found = CLIPModel.from_pretrained(
                    name_or_path,
                    **source,
                    use_safetensors=True,
                    output_loading_info=True,
                    dtype=torch.float32,
                )
                tokenizer = CLIPTokenizer.from_pretrained(name_or_path, **source)
                processor = CLIPImageProcessor.from_pretrained(name_or_path, **source)
        except (OSError, ValueError, SafetensorError) as error:
            reason = why_not_loaded(name_or_path, error)
            raise cannot_load(name_or_path, reason, option) from error
        if found["missing_keys"]:
            reason = f"it lacks {min(found['missing_keys'])}"
            raise cannot_load(name_or_path, reason, option)
        if len(tokenizer) < NUM_BYTES:  # transformers makes an empty one where the file is missing
            reason = "it lacks its tokenizer's vocabulary"
            raise cannot_load(name_or_path, reason, option)
        return cls(model.to(device), tokenizer, processor, prompt_names, templates)

    def to(self, device: str | torch.device) -> ClipClassifier:
        """Move everything to the device that is to compute; returns the classifier."""
        self.model.to(device)
        self.text_features = self.text_features.to(device)
        return self

    def image_features(self, images: Tensor, **processing: Any) -> Tensor:
        """Unit-length features (B, D) of images (B, 3, H, W) in [0, 1], differentiable.

        They are resized on their own device, bicubic with antialiasing, and never rounded.

        Args:
            images: Any size and device; the model's device computes.
            processing: Settings of the image processor in place of the model's own, such as
                `do_normalize` or `image_mean`.
        """
        images = images.to(self.model.device)
        pixels = self.image_processor(
            images=images, do_rescale=False, return_tensors="pt", **processing
        )
        return self._encode(pixels.pixel_values)

    def logits(self, image_features: Tensor) -> Tensor:
        """exp(tau) cos(image, class): (B, N), from unit-length features (B, D)."""
        return self.model.logit_scale.exp() * image_features @ self.text_features.T

    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities (B, N) of images (B, 3, H, W) in [0, 1]."""
        return self.logits(self.image_features(images)).softmax(dim=1)

    @torch.inference_mode()
    def predict(
        self, records: Sequence[ImageRecord], *, batch_size: int = 64, workers: int = 0
    ) -> Tensor:
        """Class probabilities (M, N) of image files, on the CPU.

        They are resized as 8-bit images, as transformers does; `probabilities` does not round.

        Args:
            batch_size: Images that the model sees at a time.
            workers: Processes that load images.
        """
        starts = range(0, len(records), batch_size)
        batches = [[(i, 0) for i in range(s, min(s + batch_size, len(records)))] for s in starts]
        images = SeededImages(records, self._pixel_values)
        loader = DataLoader(images, batch_sampler=batches, num_workers=workers)
        return torch.cat([self._of_pixels(pixels) for pixels, _ in loader])

    @torch.inference_mode()
    def of_images(self, images: Sequence[Image.Image], *, batch_size: int = 64) -> Tensor:
        """Class probabilities (B, N) of 8-bit RGB images, on the CPU; see `predict`.

        Args:
            batch_size: Images that the model sees at a time.
        """
        starts = range(0, len(images), batch_size)
        parts = (map(self._pixel_values, images[s : s + batch_size]) for s in starts)
        return torch.cat([self._of_pixels(torch.stack(list(part))) for part in parts])

    def _of_pixels(self, pixel_values: Tensor) -> Tensor:
        return self.logits(self._encode(pixel_values.to(self.model.device))).softmax(dim=1).cpu()

    def _pixel_values(self, image: Image.Image) -> Tensor:
        return self.image_processor(images=image, return_tensors="pt").pixel_values[0]

    def _encode(self, pixel_values: Tensor) -> Tensor:
        return F.normalize(self.model.get_image_features(pixel_values).pooler_output, dim=-1)

    @torch.no_grad()
    def _class_features(self, prompt_name: str, templates: Sequence[str]) -> Tensor:
        """Unit-length mean (D,) of the unit-length features of a class's texts."""
        texts = [class_prompt(template, prompt_name) for template in templates]
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        found = self.model.get_text_features(**tokens.to(self.model.device)).pooler_output
        return F.normalize(F.normalize(found, dim=-1).mean(dim=0), dim=-1)
