"""Language models from a folder or the hub: safetensors alone, and none of a checkpoint's code."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dreamda.prompts.config import PromptsConfig
from expansion.common.devices import usable_device
from expansion.common.errors import InputError, require
from expansion.common.hub import only_cached, why_not_loaded

ROWS = 50  # sentences that are sampled at a time

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model that is called as `Ask`: equal seeds give equal answers."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: PromptsConfig

    def __call__(self, request: str, seed: int) -> str:
        inputs = self._inputs(request).to(self.model.device)
        length = inputs["input_ids"].shape[1]
        limit = self._limit(length)
        with _drawing_by(seed):
            output = self.model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=True,
                temperature=self.config.temperature,
                top_p=self.config.top_p,
                max_new_tokens=limit,
                pad_token_id=self._pad_token_id(),
            )
        tokens = output[0, length:]
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        # An answer that reached the limit ends somewhere within a line, which is left out.
        return text if len(tokens) < limit else text.rpartition("\n")[0]

    def _inputs(self, request: str):
        """Token ids (1, L) and attention mask of the request, in the chat's form if it has one."""
        if not self.tokenizer.chat_template:
            return self.tokenizer(request, return_tensors="pt")
        messages = [{"role": "user", "content": request}]
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )

    def _limit(self, length: int) -> int:
        """The most tokens that an answer to a request of `length` tokens may have."""
        text_config = self.model.config.get_text_config()
        window = getattr(text_config, "max_position_embeddings", None) or math.inf
        require(
            length < window,
            f"the request has {length} tokens, the model {self.config.model} reads {window}; "
            "give a shorter --request",
        )
        return int(min(self.config.max_new_tokens, window - length))

    def _pad_token_id(self) -> int | None:
        if self.tokenizer.pad_token_id is None:
            return self.tokenizer.eos_token_id
        return self.tokenizer.pad_token_id


@dataclass(frozen=True)
class KeywordModel:
    """An encoder-decoder that is called as `Sample`: equal seeds give equal sentences."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: PromptsConfig

    def __call__(self, keyword: str, number: int, seed: int) -> list[str]:
        inputs = self.tokenizer(keyword, return_tensors="pt").to(self.model.device)
        sentences: list[str] = []
        with _drawing_by(seed):
            while len(sentences) < number:
                output = self.model.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    do_sample=True,
                    num_return_sequences=min(ROWS, number - len(sentences)),
                    temperature=self.config.temperature,
                    top_p=self.config.top_p,
                    max_new_tokens=self.config.max_new_tokens,
                )
                sentences += [self._sentence(tokens) for tokens in output]
        return sentences

    def _sentence(self, tokens: torch.Tensor) -> str:
        """The text of a row of tokens (L,); nothing if it has no end."""
        if self.tokenizer.eos_token_id not in tokens.tolist():
            return ""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


def load_model(config: PromptsConfig) -> LanguageModel:
    """The causal language model `config.model`, which is asked for lists of scenes.

    Raises:
        InputError: There is no such model, it cannot be loaded, or it is of the other kind.
    """
    return LanguageModel(*_load(config, makes_sentences=False), config)


def load_keyword_model(config: PromptsConfig) -> KeywordModel:
    """The encoder-decoder `config.model`, which makes sentences of keywords.

    Raises:
        InputError: There is no such model, it cannot be loaded, or it is of the other kind.
    """
    return KeywordModel(*_load(config, makes_sentences=True), config)


@contextmanager
def _drawing_by(seed: int) -> Iterator[None]:
    """Inside, all that is drawn follows from the seed; the global generators do not notice."""
    gpus = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=gpus), torch.inference_mode():
        torch.manual_seed(seed)
        yield


def _load(
    config: PromptsConfig, makes_sentences: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer; the model's config says which of the two kinds it is."""
    # Where it is, and where it runs.
    name = str(config.model)
    is_path = Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1
    require(
        not is_path or Path(name).is_dir(),
        f"model folder {name} does not exist; give a folder or a hub id such as owner/name",
    )
    device = usable_device(config.device)
    automatic = "bfloat16" if device.startswith("cuda") else "float32"
    dtype = getattr(torch, automatic if config.dtype == "auto" else config.dtype)

    # Its config decides whether it fits, before any weights load.
    kind = "an encoder-decoder" if makes_sentences else "a causal language model"
    source = {"trust_remote_code": False, "local_files_only": only_cached(name)}
    facts = _loaded(name, kind, lambda: AutoConfig.from_pretrained(name, **source))
    advice = (
        "is no encoder-decoder, so it makes no sentences of keywords; leave out --preset lecf to "
        "ask it for scenes"
        if makes_sentences
        else "is an encoder-decoder, which makes sentences of keywords; give --preset lecf with it"
    )
    require(bool(facts.is_encoder_decoder) == makes_sentences, f"the model {name} {advice}")

    # Tokenizer and weights.
    auto: Any = AutoModelForSeq2SeqLM if makes_sentences else AutoModelForCausalLM
    tokenizer = _loaded(name, kind, lambda: AutoTokenizer.from_pretrained(name, **source))
    model = _loaded(
        name,
        kind,
        lambda: auto.from_pretrained(name, dtype=dtype, use_safetensors=True, **source),
    )
    return model.to(device).eval(), tokenizer


def _loaded(name: str, kind: str, load: Callable[[], Loaded]) -> Loaded:
    """What `load` returns; InputError where it fails."""
    try:
        return load()
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = why_not_loaded(name, error).rstrip(".")
        raise InputError(
            f"cannot load the language model {name}: {reason}; give --model the folder or "
            f"hub id of {kind} with safetensors weights"
        ) from error
