"""Settings of DA-Fusion; imports no torch, so that options and plans are quick."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from baselines.embeddings.sets import NeedsEmbeddings
from expansion.common.config import option
from expansion.common.errors import InputError, require, shown
from expansion.data.prompts import class_prompt
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.images.content import content_summary
from expansion.images.records import ImageRecord


@dataclass(frozen=True, kw_only=True)
class DAFusionConfig(NeedsEmbeddings, SamplerConfig):
    """DA-Fusion (arXiv 2302.07944): img2img with a word that was learnt for each class.

    The prompt is "a photo of a <class folder>" unless a template or a file is given; in a template
    {} is that word. Departures from the released code: DDIM in place of the checkpoint's scheduler,
    and the variants keep the resolution of the set instead of the real image's.
    """

    embeddings: str | None = option(
        None, "folder of python -m baselines.textual_inversion, with a word for each class",
        decides=False,
    )  # fmt: skip
    strengths: tuple[float, ...] = option(
        (),
        "strengths of which each variant draws one, such as 0.25 0.5 0.75 1; default: --strength",
    )

    trained_by: ClassVar[str] = "textual_inversion"

    def __post_init__(self):
        super().__post_init__()
        require(
            not self.strengths or self.strength == SamplerConfig.strength,
            f"strength {self.strength} and strengths {' '.join(map(str, self.strengths))}: give "
            "only one of them",
        )
        for strength in self.strengths:
            require(0 < strength <= 1, f"strengths: {strength} is not above 0 and at most 1")
            require(
                self.steps_of(strength) > 0,
                f"strengths: {strength} of {self.num_inference_steps} steps leaves none to run; "
                "raise one",
            )

    @property
    def all_strengths(self) -> tuple[float, ...]:
        """What a variant draws its strength from, each with equal odds."""
        return self.strengths or (self.strength,)

    @property
    def executed_steps(self) -> int:
        """Steps of the largest strength."""
        return max(map(self.steps_of, self.all_strengths))

    def steps_of(self, strength: float) -> int:
        """Steps that a variant of that strength runs, as diffusers counts them."""
        return min(int(self.num_inference_steps * strength), self.num_inference_steps)

    def unet_rows_per_image(self, num_variants: int) -> float:
        steps = [self.steps_of(strength) for strength in self.all_strengths]
        return sum(self.rows_of_steps(n - 1, n) for n in steps) / len(steps)

    def prompt_names(self, class_names: Sequence[str], prompt_names: Sequence[str]) -> list[str]:
        return [self.trained.token_of(name) for name in class_names]

    def class_prompts(self, class_name: str, prompt_name: str) -> Sequence[str]:
        return (class_prompt("a photo of a {}", prompt_name),)

    def check_images(
        self,
        records: Sequence[ImageRecord],
        class_names: Sequence[str],
        model: str,
        revision: str | None,
    ) -> None:
        self.trained.check_fits(class_names, model, revision)
        found, wanted = self.trained.identity.get("training_images"), content_summary(records)
        require(
            found == wanted,
            f"--embeddings {self.embeddings}: its words were trained on other images ({found}) "
            f"than those that are expanded ({wanted}); give both commands the same --shots, "
            "--subset_seed and --subset_file",
        )
        wordless = [
            name
            for name in class_names
            if self.trained.tensors_of(name) != [self.trained.token_of(name)]
        ]
        require(
            not wordless,
            f"--embeddings {self.embeddings}: the files of {shown(wordless)} do not hold the one "
            "word of their class; remove them, and the command that trained them makes them again",
        )

    def check_prompts(self, given: Collection[tuple[str, str]]) -> None:
        without = sorted(pair for pair in given if pair[1] not in pair[0])
        if without:
            words = shown(sorted({word for _, word in given}))
            text, word = without[0]
            raise InputError(
                f"{len(without)} of {len(given)} prompts lack the word of their class, such as "
                f"{text!r} without {word}; write the words into them: {words}"
            )
