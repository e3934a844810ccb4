"""Settings of `python -m dreamda.prompts`; imports no torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass

from expansion.common.config import option
from expansion.common.errors import require, unknown_name
from expansion.data.datasets import DEFAULT_DATASET
from expansion.data.prompts import preset_names

LECF = "lecf"  # the preset that a model may make anew


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
    num_prompts: int = option(100, "prompts per class; default with --preset lecf and a model: 200")
    seed: int = option(42, "decides the combinations of words and the model's samples")
    preset: str | None = option(
        None,
        f"write a method's own prompts, from configs/prompts: {', '.join(preset_names())}; with "
        "lecf, --model may make others",
    )
    pattern: str = option(
        "",
        "prompt from word lists: {subject} is the dataset's own prompt, {class} the class's name; "
        "{scene} {viewpoint} {light} {medium} are drawn",
    )
    scenes: tuple[str, ...] = option((), "words for {scene}")
    viewpoints: tuple[str, ...] = option((), "words for {viewpoint}")
    lights: tuple[str, ...] = option((), "words for {light}")
    media: tuple[str, ...] = option((), "words for {medium}")
    model: str | None = option(
        None,
        "language model that writes the prompts, hub id or folder: a causal one, or with --preset "
        "lecf one that makes sentences of keywords; default: word lists",
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
        if self.preset is not None:
            self._check_preset(self.preset)

    def _check_preset(self, preset: str) -> None:
        """Raise InputError if there is no such preset, or for options that do not go with it."""
        known = preset_names()
        if preset not in known:
            raise unknown_name("preset", preset, known)
        others = ("pattern", "scenes", "viewpoints", "lights", "media", "request")
        given = [name for name in others if getattr(self, name)]
        require(
            not given, f"--preset {preset} has its own prompts; leave out --{', --'.join(given)}"
        )
        require(
            self.model is None or preset == LECF,
            f"--preset {preset} takes no --model; {LECF} alone does",
        )
