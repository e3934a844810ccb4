"""Trains the word of a class: the one row of the text encoder's embedding matrix that is new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from baselines.embeddings.sets import token
from baselines.embeddings.training import AfterStep, EmbeddingTrainer, Task, Visit
from baselines.embeddings.words import add_words
from baselines.textual_inversion.config import TextualInversionConfig
from expansion.common.errors import require
from expansion.common.seeding import stable_seed
from expansion.data.prompts import class_prompt
from expansion.images.records import ImageRecord


class WordTrainer:
    """Trains the words of classes, one after the other.

    Args:
        pipeline: The checkpoint, float32; it gets the words, all at the start, and stays so.
        config: Settings of the training.
        folders: Class name -> its folder, which names its word.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        config: TextualInversionConfig,
        folders: Mapping[str, str],
    ):
        self.pipeline, self.config = pipeline, config
        self.start = embedding_of(pipeline, config.initializer_token)
        self.words = {name: token(folder) for name, folder in folders.items()}
        ids = add_words(pipeline, {word: self.start for word in self.words.values()})
        self.ids = dict(zip(self.words, ids, strict=True))
        self.trainer = EmbeddingTrainer(pipeline, config)

    def train(
        self,
        class_name: str,
        records: Sequence[ImageRecord],
        state_dir: Path,
        after_step: AfterStep,
    ) -> tuple[dict[str, Tensor], dict[str, str], float]:
        """Train the word of a class.

        Args:
            class_name: The class.
            records: Its training images.
            state_dir: Folder of the resumable state.
            after_step: As in `EmbeddingTrainer.train`.

        Returns:
            Word -> embedding (1, D), what the file says beside it, and the seconds.
        """
        word = self.words[class_name]
        captions = self._tokens(word)

        def embed(row: Tensor, visits: Sequence[Visit]) -> Tensor:
            chosen = [stable_seed("caption", visit.seed) % len(captions) for visit in visits]
            return self._encode(captions[chosen], self.ids[class_name], row)

        task = Task(
            class_name,
            records,
            self.start,
            self.config.visits(len(records)),
            self.config.train_batch_size,
            shuffled=True,
        )
        row, seconds = self.trainer.train(task, embed, state_dir / "0.safetensors", after_step)
        return {word: row[None]}, {}, seconds

    def _tokens(self, word: str) -> Tensor:
        """Token numbers of all captions with a word, (captions, L)."""
        tokenizer = self.pipeline.tokenizer
        return tokenizer(
            [class_prompt(caption, word) for caption in self.config.captions],
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids.to(self.pipeline.device)

    def _encode(self, input_ids: Tensor, number: int, row: Tensor) -> Tensor:
        """The text encoder's output (B, L, D), where token `number` has the embedding `row`."""

        def put_row(_, inputs: tuple[Tensor], embeddings: Tensor) -> Tensor:
            return torch.where((inputs[0] == number)[..., None], row, embeddings)

        encoder = self.pipeline.text_encoder
        hook = encoder.get_input_embeddings().register_forward_hook(put_row)
        try:
            return encoder(input_ids)[0]
        finally:
            hook.remove()


def embedding_of(pipeline: StableDiffusionPipeline, word: str) -> Tensor:
    """The embedding (D,) of a word that is one token.

    Raises:
        InputError: It is none, or several.
    """
    ids = pipeline.tokenizer(word, add_special_tokens=False).input_ids
    require(
        len(ids) == 1,
        f"initializer_token {word!r} is {len(ids)} tokens of the checkpoint; give a word that is "
        "one, such as the",
    )
    return pipeline.text_encoder.get_input_embeddings().weight[ids[0]].detach().float().clone()
