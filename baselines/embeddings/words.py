"""New words of a text encoder."""

from __future__ import annotations

from collections.abc import Mapping

from diffusers import StableDiffusionPipeline
from tokenizers import AddedToken
from torch import Tensor

from expansion.common.errors import require, shown
from expansion.diffusion.families import family_of, require_one_text_encoder


def add_words(pipeline: StableDiffusionPipeline, words: Mapping[str, Tensor]) -> list[int]:
    """Give a pipeline new words; returns their token numbers.

    Args:
        pipeline: Its tokenizer and text encoder are changed in place; all they had stays, except
            that an added word gets its new embedding.
        words: Word -> its embedding, (D,).

    Raises:
        InputError: The tokenizer's own vocabulary has one of the words.
    """
    require_one_text_encoder(family_of(pipeline), "a learnt word")
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    added = set(tokenizer.get_added_vocab()) - set(tokenizer.all_special_tokens)
    there = sorted((set(words) & set(tokenizer.get_vocab())) - added)
    require(
        not there,
        f"the checkpoint's tokenizer has the word {shown(there)} already; rename the class",
    )
    # As they are typed: a tokenizer may ignore case and join blanks, which would mix classes up.
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    size = max(len(tokenizer), encoder.get_input_embeddings().num_embeddings)
    encoder.resize_token_embeddings(size, mean_resizing=False)
    matrix = encoder.get_input_embeddings().weight.requires_grad_(False)
    ids = tokenizer.convert_tokens_to_ids(list(words))
    for number, row in zip(ids, words.values(), strict=True):
        matrix[number] = row.to(matrix)
    return ids
