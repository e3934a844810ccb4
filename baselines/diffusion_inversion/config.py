"""Settings of Diffusion Inversion, its training and its sampling; imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from baselines.embeddings.config import EmbeddingTrainingConfig
from baselines.embeddings.sets import NeedsEmbeddings
from baselines.text2img_config import Text2ImgConfig
from expansion.common.config import option
from expansion.common.errors import InputError, require, shown
from expansion.images.records import ImageRecord

KIND = "diffusion_inversion"


@dataclass(frozen=True, kw_only=True)
class InversionTrainingConfig(EmbeddingTrainingConfig):
    """Training of Diffusion Inversion with its released values (arXiv 2305.15316).

    Departures: groups hold images of one class, also where the released code mixes classes; a step
    has at most as many images as the group.
    """

    random_flip: bool = option(False, "mirror images at random")
    train_batch_size: int = option(50, "images per optimiser step, at most those of the group")
    learning_rate: float = option(3e-2, "learning rate of AdamW, constant")
    visits_per_image: int = option(
        3000, "how often the U-Net sees each image; decides the number of steps"
    )
    num_tokens: int = option(5, "tokens of an image's embedding")
    group_size: int = option(
        100, "images of a class that are trained together, and whose mean is the unconditional row"
    )

    kind: ClassVar[str] = KIND
    command: ClassVar[str] = "python -m baselines.diffusion_inversion"

    def __post_init__(self):
        super().__post_init__()
        for name in ("visits_per_image", "num_tokens", "group_size"):
            value = getattr(self, name)
            require(value > 0, f"{name} {value}: give a positive number")

    def visits(self, num_images: int) -> int:
        return self.visits_per_image * num_images


@dataclass(frozen=True, kw_only=True)
class DiffusionInversionConfig(NeedsEmbeddings, Text2ImgConfig):
    """Diffusion Inversion (arXiv 2305.15316) with its released values.

    c = (1 - a) e_i + a e_j + s N(0, I) takes the place of the text encoder's output; e_i and e_j
    are embeddings of the real image and of one of its class, a `interpolation`, s
    `embedding_noise`. Unconditional is the mean embedding of the image's group. Prompts are
    refused. Departure: the partner j is never of another class, which the released code falls back
    to in small groups.
    """

    num_inference_steps: int = option(100, "DDIM steps of the whole schedule")
    guidance_scale: float = option(2.0, "classifier-free guidance; 1 or less: off")
    eta: float = option(1.0, "fresh noise of every step: 0 is DDIM, 1 the full reverse process")
    interpolation: float = option(
        0.1, "a: weight, 0 to 1, of the embedding of another image of the class"
    )
    embedding_noise: float = option(0.1, "s: deviation of the noise on the embedding")
    embeddings: str | None = option(
        None,
        "folder of python -m baselines.diffusion_inversion, with an embedding for each real image",
        decides=False,
    )

    depends_on_dataset: ClassVar[bool] = True
    trained_by: ClassVar[str] = KIND

    def __post_init__(self):
        super().__post_init__()
        require(0 <= self.eta <= 1, f"eta {self.eta}: give 0 to 1")
        require(
            self.eta == 0 or self.resolved_solver == "ddim",
            f"eta {self.eta} is a setting of the solver ddim; give --eta 0 with {self.solver}",
        )
        a, s = self.interpolation, self.embedding_noise
        require(0 <= a <= 1, f"interpolation {a}: give 0 to 1")
        require(s >= 0, f"embedding_noise {s}: give 0 or a positive number")
        require(
            not self.negative_prompt,
            "negative_prompt: diffusion_inversion has embeddings in place of prompts; leave it out",
        )

    def check_images(
        self,
        records: Sequence[ImageRecord],
        class_names: Sequence[str],
        model: str,
        revision: str | None,
    ) -> None:
        self.trained.check_fits(class_names, model, revision)
        self.groups_of(records)

    def check_prompts(self, given: Collection[tuple[str, str]]) -> None:
        raise InputError(
            "prompt_template, prompts_file: diffusion_inversion has embeddings in place of "
            "prompts; leave them out"
        )

    def groups_of(self, records: Sequence[ImageRecord]) -> dict[str, tuple[str, int]]:
        """File name of each real image -> class and number of its group.

        Args:
            records: Real images of the dataset that the embeddings were trained on.

        Raises:
            InputError: An image has no embedding, or was another one when it was trained.
        """
        names = sorted({record.class_name for record in records})
        known = [name for name in names if name in self.trained.class_names]
        trained = {name: self.trained.images_of(name) for name in known}
        absent, changed, groups = [], [], {}
        for record in records:
            found = trained.get(record.class_name, {}).get(record.file_name)
            if found is None:
                absent.append(record.file_name)
            elif record.content is not None and record.content != found[1]:
                changed.append(record.file_name)
            else:
                groups[record.file_name] = (record.class_name, found[0])
        for fault, files in (("have no embedding", absent), ("have changed since", changed)):
            require(
                not files,
                f"--embeddings {self.embeddings}: {len(files)} of {len(records)} real images "
                f"{fault}: {shown(files)}; train on these images into another folder, or choose "
                "those that were trained on (--shots, --subset_file)",
            )
        return groups
