"""Settings of `python -m dreamda.prompts`; imports no torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass

from expansion.common.config import option
from expansion.common.errors import require
from expansion.data.datasets import DEFAULT_DATASET


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """Where prompts come from and how many; `configs/dreamda/prompts.yaml` has the word lists."""

    dataset: str = option(DEFAULT_DATASET, "dataset name or folder", flags=("-d",))
    data_dir: str = option("data", "where named datasets lie")
    test_fraction: float | None = option(
        None, "share of each class that is for testing, of a set that is not split"
    )
    output: str | None = option(None, "JSON file to write: {class: [prompts]}")
    overwrite: bool = option(False, "replace the output file if it exists")
    num_prompts: int = option(100, "prompts per class")
    seed: int = option(42, "decides the combinations of words and the model's samples")
    pattern: str = option(
        "",
        "prompt from word lists: {subject} is the dataset's own prompt; "
        "{scene} {viewpoint} {light} {medium} are drawn",
    )
    scenes: tuple[str, ...] = option((), "words for {scene}")
    viewpoints: tuple[str, ...] = option((), "words for {viewpoint}")
    lights: tuple[str, ...] = option((), "words for {light}")
    media: tuple[str, ...] = option((), "words for {medium}")
    model: str | None = option(
        None, "causal language model that writes the prompts: hub id or folder; default: word lists"
    )
    request: str = option("", "what the model is asked, with {class}, {num} and {min_words}")
    min_words: int = option(15, "words of the shortest prompt to take from a model")
    max_requests: int = option(8, "requests per class, until there are enough prompts")
    max_new_tokens: int = option(4096, "tokens of the longest answer")
    temperature: float = option(1.0, "of the model's sampling, above 0; more is more varied")
    top_p: float = option(0.95, "share of the likeliest tokens to sample from, 0 to 1")
    device: str = option("auto", "cuda, cpu, ...; auto: a GPU if there is one")
    dtype: str = option(
        "auto",
        "number format of the model; auto: bfloat16 on a GPU, else float32",
        choices=("auto", "float32", "float16", "bfloat16"),
    )

    def __post_init__(self):
        for name in ("num_prompts", "max_requests", "max_new_tokens", "temperature"):
            require(
                getattr(self, name) > 0, f"{name} {getattr(self, name)}: give a positive number"
            )
        require(self.min_words >= 0, f"min_words {self.min_words}: give a number from 0")
        require(0 < self.top_p <= 1, f"top_p {self.top_p}: give a number above 0, at most 1")
