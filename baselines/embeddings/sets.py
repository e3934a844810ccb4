"""Folders of trained embeddings: what is in them, and whether they fit a run. Imports no torch.

embeddings.yaml             all that decides the embeddings
<class folder>.safetensors  the embeddings of a class; it exists once the class is finished
<class folder>.json         what the class cost: unet_rows, seconds, ...
unfinished/<class folder>/  the state of a class in training
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from expansion.common.config import load_yaml
from expansion.common.errors import JSON_ERRORS, InputError, require, shown
from expansion.common.texts import parse_json, read_json
from expansion.data.naming import ordered_folders
from expansion.diffusion.model_files import model_fingerprint

IDENTITY_FILE = "embeddings.yaml"
UNFINISHED = "unfinished"


@dataclass(frozen=True)
class EmbeddingSet:
    """A folder of embeddings that `kind`, one of the trainings, has written.

    Args:
        folder: The folder.
        kind: "textual_inversion" or "diffusion_inversion".
        begun_with: Its identity, if that is known; default: its file says it.

    The methods raise InputError where the folder is not what it should be.
    """

    folder: Path
    kind: str
    begun_with: Mapping[str, Any] | None = None

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """All that decides the embeddings."""
        if self.begun_with is not None:
            return self.begun_with
        path = self.folder / IDENTITY_FILE
        require(
            path.is_file(),
            f"--embeddings {self.folder} has no {IDENTITY_FILE}; train them: "
            f"{self._command} --output_dir {self.folder}",
        )
        values = load_yaml(path).values
        names = values.get("classes")
        fits = isinstance(names, list) and names and all(isinstance(n, str) for n in names)
        require(bool(fits), f"{path} lists no classes; train the embeddings again")
        return values

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return tuple(self.identity["classes"])

    @cached_property
    def folders(self) -> dict[str, str]:
        """Class name -> name of its folder in an expanded set, and of its files here."""
        return ordered_folders(self.class_names)

    def file_of(self, class_name: str) -> Path:
        """The file with the embeddings of a class."""
        return self.folder / f"{self.folders[class_name]}.safetensors"

    def token_of(self, class_name: str) -> str:
        """The new word that stands for a class, which its tensor is named by."""
        return token(self.folders[class_name])

    def files(self) -> dict[str, str]:
        """Option -> file, as `SamplerConfig.input_files` gives them."""
        paths = map(self.file_of, self.class_names)
        return {f"embeddings/{path.name}": str(path) for path in paths}

    def check_finished(self) -> None:
        """The embeddings are of this kind, and each class has its own."""
        kind = self.identity.get("kind")
        require(
            kind == self.kind,
            f"--embeddings {self.folder} holds embeddings of {kind}; this method needs those of "
            f"{self._command}",
        )
        missing = [name for name in self.class_names if not self.file_of(name).is_file()]
        require(
            not missing,
            f"--embeddings {self.folder}: no embedding of {len(missing)} of "
            f"{len(self.class_names)} classes ({shown(missing)}); finish the training, its command "
            "goes on where it stopped",
        )

    def check_fits(self, class_names: Sequence[str], model: str, revision: str | None) -> None:
        """The embeddings belong to these classes, by label, and to this checkpoint.

        Args:
            class_names: By label.
            model: The checkpoint: hub id or path.
            revision: Branch, tag or commit of a hub id.
        """
        if self.class_names != tuple(class_names):
            there, here = set(self.class_names), set(class_names)
            which = "has the classes in another order"
            for verb, names in (("lacks", here - there), ("has", there - here)):
                which = f"{verb} {shown(sorted(names))}" if names else which
            raise InputError(
                f"--embeddings {self.folder} was trained on another dataset: it {which}; train "
                "embeddings on this one"
            )
        found, wanted = self.identity.get("model"), model_fingerprint(model, revision)
        require(
            found == wanted,
            f"--embeddings {self.folder} was trained with another checkpoint ({found}) than "
            f"{model} ({wanted}); give that one, or train embeddings with this one",
        )

    def tensors_of(self, class_name: str) -> Sequence[str]:
        """Names of the tensors in the file of a class."""
        return self._look(class_name)[0]

    def images_of(self, class_name: str) -> dict[str, tuple[int, str | None]]:
        """The real images that have an embedding in the file of a class, see `images_from_text`."""
        tensors, metadata = self._look(class_name)
        try:
            images = images_from_text(metadata)
        except (*JSON_ERRORS, AttributeError, TypeError) as error:
            raise self._damaged(class_name) from error
        if not images.keys() <= set(tensors):
            raise self._damaged(class_name)
        return images

    @cached_property
    def unet_rows(self) -> float:
        """U-Net rows, forward and backward, that all classes together cost."""
        reports = (self.file_of(name).with_suffix(".json") for name in self.class_names)
        found = [read_json(path, (dict,)).get("unet_rows", 0) for path in reports if path.is_file()]
        return float(sum(value for value in found if isinstance(value, int | float)))

    def _look(self, class_name: str) -> tuple[Sequence[str], Mapping[str, str]]:
        from safetensors import SafetensorError, safe_open

        path = self.file_of(class_name)
        try:
            with safe_open(path, framework="numpy") as file:
                return list(file.keys()), file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise self._damaged(class_name) from error

    def _damaged(self, class_name: str) -> InputError:
        return InputError(
            f"{self.file_of(class_name)} is damaged; remove it, and the command that trained it "
            "makes it again"
        )

    @property
    def _command(self) -> str:
        return f"python -m baselines.{self.kind}"


def token(folder: str) -> str:
    """The new word of the class whose images go into `folder`."""
    return f"<{folder}>"


def images_to_text(images: Mapping[str, tuple[int, str | None]]) -> dict[str, str]:
    """What a file of Diffusion Inversion says beside its tensors, see `images_from_text`."""
    return {"images": json.dumps({name: list(facts) for name, facts in images.items()})}


def images_from_text(metadata: Mapping[str, str]) -> dict[str, tuple[int, str | None]]:
    """File name of a real image -> number of its group, and SHA-256 of the image file.

    Empty for a file that another program has written.
    """
    facts = parse_json(metadata.get("images", "{}"))
    return {name: (int(group), sha) for name, (group, sha) in facts.items()}


class NeedsEmbeddings:
    """What the settings of a method that needs a folder of embeddings say of it.

    It stands before `SamplerConfig` among the bases of a config that has the option `embeddings`.
    """

    embeddings: str | None
    trained_by: ClassVar[str]  # as `EmbeddingSet.kind`
    is_trained_before: ClassVar[bool] = True

    @cached_property
    def trained(self) -> EmbeddingSet:
        """The folder with the embeddings."""
        return EmbeddingSet(Path(self.embeddings), self.trained_by)

    @property
    def training_rows(self) -> float:
        """See `SamplerConfig.training_rows`."""
        return self.trained.unet_rows if self.embeddings is not None else 0.0

    def check_run(self) -> None:
        """See `SamplerConfig.check_run`."""
        command = f"python -m baselines.{self.trained_by} --output_dir FOLDER"
        require(
            self.embeddings is not None,
            f"this method needs --embeddings, the folder of its training; train them: {command}",
        )
        self.trained.check_finished()

    def input_files(self) -> Mapping[str, str]:
        """See `SamplerConfig.input_files`."""
        return self.trained.files()
