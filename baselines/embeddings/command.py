"""What the commands of textual inversion and Diffusion Inversion do; loads torch only to train."""

from __future__ import annotations

import json
import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from baselines.embeddings.config import ROWS_PER_VISIT, EmbeddingTrainingConfig
from baselines.embeddings.sets import IDENTITY_FILE, UNFINISHED, EmbeddingSet
from expansion.common.config import Layers, Source
from expansion.common.devices import keep_freed_memory, usable_device
from expansion.common.files import (
    check_claim,
    check_outside,
    check_writable,
    claim_folder,
    noticing_removal,
    remove_partial_files,
    write_atomic,
)
from expansion.common.hub import check_revision
from expansion.common.option_parser import OptionParser
from expansion.common.progress import SteadyBar
from expansion.common.sharding import Shard, resolve_shard, take_shard
from expansion.data.datasets import (
    check_classes,
    choose_subset,
    dataset_of,
    load_dataset,
    write_subset,
)
from expansion.diffusion.families import require_one_text_encoder
from expansion.diffusion.model_files import (
    check_model_folder,
    check_resolution,
    folder_family,
    locate_model,
    model_fingerprint,
    require_undistilled,
)
from expansion.images.content import content_summary, readable_records
from expansion.images.records import ImageRecord

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from torch import Tensor

logger = logging.getLogger(__name__)

REMEDY = "give another --output_dir, or remove the folder"
COMMON = frozenset(  # what --help shows
    "dataset pretrained_model_name_or_path output_dir resolution random_flip max_train_steps "
    "visits_per_image train_batch_size learning_rate shots split total_split seed".split()
)


class ClassTrainer(Protocol):
    """Trains the embeddings of a class: tensors by name, what the file says beside, seconds."""

    def train(
        self,
        class_name: str,
        records: Sequence[ImageRecord],
        state_dir: Path,
        after_step: Callable[[int, float], None],
    ) -> tuple[dict[str, Tensor], dict[str, str], float]: ...


# Makes what trains a class, of the checkpoint, the settings and the classes' folders.
MakeTrainer = Callable[["StableDiffusionPipeline", Any, Mapping[str, str]], ClassTrainer]


@dataclass(frozen=True)
class Command:
    """A command that trains embeddings.

    Attributes:
        config_class: Its settings.
        make_trainer: Makes what trains a class; called once there is something to train.
        description: What it is, for --help.
    """

    config_class: type[EmbeddingTrainingConfig]
    make_trainer: MakeTrainer
    description: str

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """Train as the command line says; `arguments` defaults to the process's own."""
        run(self.parse(arguments)[0], self.make_trainer)

    def parse(self, arguments: Sequence[str] | None) -> tuple[EmbeddingTrainingConfig]:
        """Command line over YAML over the dataset's file over defaults."""
        parser = OptionParser(
            prog=self.config_class.command, description=self.description, common=COMMON
        )
        given = parser.read(arguments, {"training": self.config_class})
        return tuple(with_dataset(given).compose(self.config_class))


@dataclass(frozen=True)
class Work:
    """The work of a command.

    Attributes:
        made: The folder of embeddings, whose files exist for finished classes.
        identity: All that decides the embeddings.
        records: Class name -> its training images, of all classes.
        mine: Names of the classes of this shard.
        shard: Which shard that is.
        model: The checkpoint: hub id or path.
    """

    made: EmbeddingSet
    identity: Mapping[str, Any]
    records: Mapping[str, Sequence[ImageRecord]]
    mine: Sequence[str]
    shard: Shard
    model: str

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those of the classes that are not finished."""
        return [name for name in names if not self.made.file_of(name).is_file()]


def run(config: EmbeddingTrainingConfig, make_trainer: MakeTrainer) -> None:
    """Train what is missing of this shard's classes; the same command goes on later.

    Args:
        config: Settings of the training.
        make_trainer: As in `Command`.

    Raises:
        InputError: Something is missing or wrong, or the folder belongs to other settings.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = usable_device(config.device)
    work = make_work(config)
    if work.shard.origin:
        logger.info(str(work.shard))
    todo = work.missing(work.mine)
    rows = {name: config.unet_rows(len(work.records[name])) for name in work.mine}
    logger.info(
        f"{work.shard}: {sum(rows.values())} U-Net rows for {len(work.mine)} classes, of which "
        f"{sum(rows[name] for name in todo)} for {len(todo)} are still to do (a visit of an image "
        f"is {ROWS_PER_VISIT}: forward, and backward through the activations)"
    )
    seconds = 0.0
    if todo:
        if device == "cpu":
            keep_freed_memory()
        check_writable(work.made.folder)
        claim_folder(work.made.folder, IDENTITY_FILE, work.identity, REMEDY)
        everything = [record for name in work.records for record in work.records[name]]
        write_subset(everything, config.shots, config.subset_seed, config.subset_file)
        with noticing_removal(work.made.folder):
            seconds = _train(config, work, todo, make_trainer, device)
    # What this process did, and how far all are.
    logger.info(
        f"{work.shard}: {sum(rows[name] for name in todo)} U-Net rows in {seconds:.1f} s, "
        f"{len(todo)} classes trained, {len(work.mine) - len(todo)} already there"
    )
    left = work.missing(list(work.records))
    logger.info(
        f"{work.made.folder}: {len(work.records) - len(left)} of {len(work.records)} classes"
    )
    if not left:
        remove_partial_files(work.made.folder)
        with suppress(OSError):
            (work.made.folder / UNFINISHED).rmdir()


def make_work(config: EmbeddingTrainingConfig) -> Work:
    """Look up and check everything that can be checked before weights load."""
    # The shard, the checkpoint and the images.
    shard = resolve_shard(config.split, config.total_split)
    model = locate_model(config.pretrained_model_name_or_path)
    check_revision(model, config.revision, "--revision")
    check_model_folder(model)
    require_undistilled(model)
    if Path(model).is_dir():
        require_one_text_encoder(folder_family(Path(model)), "a trained embedding")
    check_resolution(model, config.resolution)
    dataset = load_dataset(config.dataset, config.data_dir, config.test_fraction)
    records = choose_subset(
        dataset.records("train"), config.shots, config.subset_seed, config.subset_file
    )
    records, _ = readable_records(records, config.on_error)
    check_classes(dataset, records)
    # The folder, which must have been begun with the same, if at all.
    output_dir = Path(config.output_dir)
    check_outside(output_dir, {"the dataset": dataset.root, "the model": model})
    identity = {
        "kind": config.kind,
        "settings": config.settings(),
        "model": model_fingerprint(model, config.revision),
        "classes": list(dataset.class_names),
        "training_images": content_summary(records),
    }
    check_claim(output_dir, IDENTITY_FILE, identity, REMEDY)
    made = EmbeddingSet(output_dir, config.kind, identity)
    # The classes.
    by_class: dict[str, list[ImageRecord]] = defaultdict(list)
    for record in records:
        by_class[record.class_name].append(record)
    mine = take_shard(dataset.class_names, *shard[:2])
    ordered = {name: by_class[name] for name in dataset.class_names}
    return Work(made, identity, ordered, mine, shard, model)


def _train(
    config: EmbeddingTrainingConfig,
    work: Work,
    todo: Sequence[str],
    make_trainer: MakeTrainer,
    device: str,
) -> float:
    """Train the classes `todo` and write their files; returns the seconds of their training."""
    from safetensors.torch import save

    from expansion.diffusion.stable_diffusion import load_pipeline

    pipeline = load_pipeline(work.model, "float32", device, config.revision)
    trainer = make_trainer(pipeline, config, work.made.folders)
    total = 0.0
    for name in todo:
        records, path = work.records[name], work.made.file_of(name)
        state_dir = path.parent / UNFINISHED / path.stem
        with SteadyBar(desc=name, unit="step", disable=None) as bar:

            def after_step(step: int, loss: float, bar: SteadyBar = bar) -> None:
                if bar.n == 0:
                    bar.initial = bar.n = step - 1
                bar.update(step - bar.n)
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

            tensors, facts, seconds = trainer.train(name, records, state_dir, after_step)
        total += seconds
        # The file of embeddings comes last: it says that the class is finished.
        cost = {
            "class": name,
            "images": len(records),
            "visits": config.visits(len(records)),
            "unet_rows": config.unet_rows(len(records)),
            "seconds": round(seconds, 2),
        }
        write_atomic(path.with_suffix(".json"), json.dumps(cost, ensure_ascii=False) + "\n")
        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        write_atomic(path, save(contiguous, facts or None))
        shutil.rmtree(state_dir, ignore_errors=True)
    return total


def with_dataset(given: Layers) -> Layers:
    """The settings of a command over what the dataset's file says: its checkpoint, no mirroring."""
    name, dataset = dataset_of(given)
    expand = dataset.expand or {}
    model = "pretrained_model_name_or_path"
    own = {model: expand[model]} if model in expand else {}
    if not dataset.may_be_mirrored:
        own["random_flip"] = False
    return given.over(Source(own, f"dataset {name}"))
