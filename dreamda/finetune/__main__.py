"""Fine-tune a Stable Diffusion checkpoint on a dataset, or train a small one from scratch.

    python -m dreamda.finetune -d digits --pretrained_model_name_or_path assets/tiny-sd-digits \\
        --output_dir checkpoint/tiny-sd-digits-p2 --max_train_steps 200
    python -m dreamda.finetune --from_scratch --config configs/dreamda/tiny-sd-digits.yaml

The result is a diffusers folder. The same command goes on after an interruption.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import logging
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from dreamda.finetune.config import FinetuneConfig, FromScratchConfig
from dreamda.finetune.report import SAMPLING_STEPS, TrainingLog, loss_chart, readme, sample_grid
from expansion.common.config import Source, deciding
from expansion.common.devices import in_main_process, make_accelerator
from expansion.common.errors import require, run_command
from expansion.common.files import check_outside, claim_folder, write_atomic
from expansion.common.option_parser import OptionParser
from expansion.data.datasets import ImageDataset, dataset_of, few_shot, load_dataset
from expansion.data.prompts import class_prompt
from expansion.diffusion.families import family_of, require_one_text_encoder
from expansion.diffusion.model_files import (
    check_model_folder,
    check_model_steps,
    folder_family,
    locate_model,
    model_fingerprint,
    require_undistilled,
)
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.images.content import content_summary, readable_records
from expansion.images.records import ImageRecord
from expansion.pictures.figures import save_figure
from expansion.training.run_lock import only_training

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dreamda.finetune.trainer import DiffusionTrainer
    from expansion.diffusion.families import Pipeline

logger = logging.getLogger(__name__)

COMMON = frozenset(  # what --help shows
    "dataset pretrained_model_name_or_path from_scratch output_dir resolution max_train_steps "
    "train_batch_size learning_rate lora_rank gradient_accumulation_steps mixed_precision "
    "seed".split()
)
BAR_FORMAT = "{desc}: {n_fmt}/{total_fmt} |{bar}| {elapsed}<{remaining}, {rate_inv_fmt}{postfix}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says; `arguments` defaults to the process's own."""
    config, scratch = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it tells of every file it saves
    dataset = load_dataset(config.dataset, config.data_dir, config.test_fraction)
    if not config.captions:
        config = dataclasses.replace(config, captions=(dataset.config.prompt_template,))
    output_dir = Path(config.output_dir)
    check_outside(
        output_dir,
        {"the dataset": dataset.root, "the model": config.pretrained_model_name_or_path},
    )
    _check(config, output_dir)
    # The images; one that cannot be read is found now, not in the middle of the training.
    records = few_shot(dataset.records(config.dataset_split), config.shots, config.subset_seed)
    records, _ = readable_records(records, config.on_error)
    require(bool(records), f"{dataset.root}: no image of its {config.dataset_split} split is left")
    # Claim the folder, in which a run with other settings must not go on, and train.
    accelerator = _accelerator(config)
    identity = _identity(config, scratch, dataset, records)
    with ExitStack() as until_the_end:

        def claim() -> None:
            remedy = "give another --output_dir, or remove the folder"
            claim_folder(output_dir, "training.yaml", identity, remedy)
            until_the_end.enter_context(only_training(output_dir))

        in_main_process(accelerator, claim)
        train(config, scratch, dataset, records, accelerator)
    accelerator.end_training()


def _identity(
    config: FinetuneConfig,
    scratch: FromScratchConfig,
    dataset: ImageDataset,
    records: Sequence[ImageRecord],
) -> dict[str, Any]:
    """Everything that decides the trained checkpoint; a run with the same goes on in its folder."""
    identity = deciding(config) | (deciding(scratch) if config.from_scratch else {})
    if not config.from_scratch:
        model = locate_model(config.pretrained_model_name_or_path)
        identity["model"] = model_fingerprint(model)
    identity["classes"] = list(dataset.prompt_names)
    identity["training_images"] = content_summary(records)
    return identity


def parse(arguments: Sequence[str] | None) -> tuple[FinetuneConfig, FromScratchConfig]:
    """Command line over YAML over the dataset's word on mirroring over defaults."""
    parser = OptionParser(prog="python -m dreamda.finetune", description=__doc__, common=COMMON)
    classes = {
        "training": FinetuneConfig,
        "architecture and autoencoder (--from_scratch only)": FromScratchConfig,
    }
    given = parser.read(arguments, classes)
    if given.peek("random_flip") is None:
        name, dataset = dataset_of(given)
        given = given.over(Source({"random_flip": dataset.may_be_mirrored}, f"dataset {name}"))
    return tuple(given.compose(*classes.values()))


def _check(config: FinetuneConfig, output_dir: Path) -> None:
    """Raise InputError for what cannot work, before anything heavy is loaded."""
    require(
        not (output_dir / "model_index.json").exists(),
        f"{output_dir} already holds a checkpoint; remove it or choose another --output_dir",
    )
    require(
        not config.lora_rank or importlib.util.find_spec("peft") is not None,
        "--lora_rank needs the package peft: pip install peft",
    )
    if not config.from_scratch:
        model = locate_model(config.pretrained_model_name_or_path)
        check_model_folder(model)
        require_undistilled(model)
        if config.train_text_encoder and Path(model).is_dir():
            require_one_text_encoder(folder_family(Path(model)), "--train_text_encoder")
        # The sample grids start from pure noise.
        grids = SamplerConfig(num_inference_steps=SAMPLING_STEPS, strength=1.0)
        check_model_steps(model, grids)


def _accelerator(config: FinetuneConfig) -> Accelerator:
    """The device and the processes to train with.

    Raises:
        InputError: They cannot do what `config` asks for.
    """
    accelerator = make_accelerator(config.mixed_precision)
    share = config.train_batch_size // accelerator.num_processes
    require(
        config.gradient_accumulation_steps <= share,
        f"gradient_accumulation_steps {config.gradient_accumulation_steps}: a process has only "
        f"{share} images per step (train_batch_size {config.train_batch_size}, processes: "
        f"{accelerator.num_processes}); give fewer parts or a larger batch",
    )
    return accelerator


def train(
    config: FinetuneConfig,
    scratch: FromScratchConfig,
    dataset: ImageDataset,
    records: Sequence[ImageRecord],
    accelerator: Accelerator,
) -> None:
    """Train, and write the checkpoint with its README, sample grids and loss curve.

    Args:
        config: Settings of the training.
        scratch: Architecture of a new checkpoint; idle without `config.from_scratch`.
        dataset: Gives the class names, and its own name for the README.
        records: The training images.
        accelerator: Device, precision and processes.
    """
    from dreamda.finetune.trainer import DiffusionTrainer

    output_dir = Path(config.output_dir)
    # The main process downloads or builds the checkpoint; the others then load its files.
    begin = functools.partial(_beginning, config, scratch, dataset, records)
    loaded: list[Pipeline] = []
    in_main_process(accelerator, lambda: loaded.append(begin()))
    pipeline = loaded[0] if loaded else begin()
    # Train, with pictures before and after.
    trainer = DiffusionTrainer(pipeline, records, dataset.prompt_names, config, accelerator)
    if not config.from_scratch and not (output_dir / "samples_before.png").exists():
        _save_samples(trainer, dataset, "samples_before.png")
    log = _train_with_log(trainer, dataset)
    if log is not None:
        _save_weights(config, trainer, output_dir)
    _save_samples(trainer, dataset, "samples.png")
    if log is None:
        return
    # Describe the result, then remove what only a resumed run would need.
    save_figure(loss_chart(log.rows), output_dir / "loss.png")
    trained_on = f"{len(records)} images of the {config.dataset_split} split of {dataset.name}"
    command = shlex.join(["python", "-m", "dreamda.finetune", *sys.argv[1:]])
    write_atomic(output_dir / "README.md", readme(config, log, trained_on, command))
    for folder in ("training_state", "start"):
        shutil.rmtree(output_dir / folder, ignore_errors=True)
    logger.info("wrote %s after %.1f minutes", output_dir, log.seconds / 60)


def _train_with_log(trainer: DiffusionTrainer, dataset: ImageDataset) -> TrainingLog | None:
    """Train from where an earlier run stopped; returns the log in the main process, else None."""
    config, main_process = trainer.config, trainer.accelerator.is_main_process
    state_dir = Path(config.output_dir) / "training_state"
    first = trainer.resume(state_dir)
    log = (
        TrainingLog(Path(config.output_dir) / "training_log.jsonl", first) if main_process else None
    )
    with tqdm(
        desc="U-Net",
        total=config.max_train_steps,
        initial=first,
        unit="step",
        bar_format=BAR_FORMAT,
        disable=not main_process,
    ) as bar:

        def after_step(step: int, loss: float, learning_rate: float) -> None:
            if log is not None:
                log.add(step, loss, learning_rate)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()
            last = step == config.max_train_steps  # samples.png shows it
            if config.validation_steps and step % config.validation_steps == 0 and not last:
                _save_samples(trainer, dataset, f"samples_step{step}.png")

        trainer.train(state_dir, first, after_step)
    return log


def _save_samples(trainer: DiffusionTrainer, dataset: ImageDataset, file_name: str) -> None:
    """Write a sample grid in the main process while the others wait."""
    if trainer.accelerator.is_main_process:
        with trainer.sampling():
            grid = sample_grid(
                trainer.pipeline, dataset.prompt_names, trainer.config, trainer.resolution
            )
        save_figure(grid, Path(trainer.config.output_dir) / file_name)
    trainer.accelerator.wait_for_everyone()


def _beginning(
    config: FinetuneConfig,
    scratch: FromScratchConfig,
    dataset: ImageDataset,
    records: Sequence[ImageRecord],
) -> Pipeline:
    """The checkpoint that the training starts from: a new one, or the one that `config` names."""
    from expansion.diffusion.stable_diffusion import load_pipeline

    if config.from_scratch:
        return _new_checkpoint(config, scratch, dataset, records)
    return load_pipeline(locate_model(config.pretrained_model_name_or_path))


def _new_checkpoint(
    config: FinetuneConfig,
    scratch: FromScratchConfig,
    dataset: ImageDataset,
    records: Sequence[ImageRecord],
) -> Pipeline:
    """A new pipeline with a trained autoencoder, kept in `<output_dir>/start` until the end."""
    from dreamda.finetune.from_scratch import build_pipeline, train_autoencoder
    from dreamda.finetune.inputs import training_images
    from expansion.diffusion.stable_diffusion import load_pipeline, save_pipeline

    start_dir = Path(config.output_dir) / "start"
    if (start_dir / "model_index.json").is_file():
        return load_pipeline(str(start_dir))
    captions = [class_prompt(c, name) for c in config.captions for name in dataset.prompt_names]
    pipeline = build_pipeline(scratch, config.resolution, captions, config.seed)
    images = training_images(records, config, config.resolution)
    with tqdm(total=scratch.vae_train_steps, desc="autoencoder", unit="step") as bar:

        def progress(step: int, loss: float) -> None:
            bar.update()
            bar.set_postfix(loss=f"{loss:.4f}")

        train_autoencoder(pipeline.vae, images, scratch, config.seed, progress)
    save_pipeline(pipeline, start_dir, "float32")
    return pipeline


def _save_weights(config: FinetuneConfig, trainer: DiffusionTrainer, output_dir: Path) -> None:
    """Save the trained checkpoint; adapters also by themselves, before the U-Net absorbs them.

    Raises:
        InputError: A weight is too large for the number format that `config` asks for.
    """
    import torch

    from dreamda.finetune.lora import fuse_lora, save_lora
    from expansion.diffusion.stable_diffusion import DTYPES, save_pipeline

    pipeline = trainer.pipeline
    if config.lora_rank:
        save_lora(pipeline.unet, output_dir, config.save_dtype)
        fuse_lora(pipeline.unet)
    for name in family_of(pipeline).networks:
        network = getattr(pipeline, name)
        largest = torch.finfo(DTYPES[config.save_dtype]).max
        require(
            all(p.abs().amax() <= largest for p in network.parameters() if p.numel()),
            f"a weight is too large for {config.save_dtype}; give --save_dtype float32 and another "
            "--output_dir",
        )
    save_pipeline(pipeline, output_dir, config.save_dtype)


if __name__ == "__main__":
    run_command(main)
