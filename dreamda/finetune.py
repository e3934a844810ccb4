"""Fine-tune a Stable Diffusion checkpoint on a dataset, or train a small one from scratch.

    python -m dreamda.finetune -d digits --pretrained_model_name_or_path assets/tiny-sd-digits \\
        --output_dir checkpoint/tiny-sd-digits-p2 --max_train_steps 200
    python -m dreamda.finetune --from_scratch --config configs/dreamda/tiny-sd-digits.yaml

The result is a diffusers folder. The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from dreamda.config import FinetuneConfig, FromScratchConfig
from expansion.checkpoints import check_model_folder, locate_model
from expansion.config import add_options, command_line_source, compose, load_yaml, require
from expansion.errors import run_command
from expansion.image_datasets import ImageDataset, load_dataset
from expansion.prompts import class_prompt
from expansion.runs import claim_folder

logger = logging.getLogger(__name__)

NOT_DECISIVE = ("output_dir", "data_dir", "checkpointing_steps", "dataloader_num_workers")


def main(arguments: Sequence[str] | None = None) -> None:
    config, scratch = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    dataset = load_dataset(config.dataset, config.data_dir)
    if not config.captions:
        config = dataclasses.replace(config, captions=(dataset.config.prompt_template,))
    output_dir = Path(config.output_dir)
    require(
        not (output_dir / "model_index.json").exists(),
        f"{output_dir} already holds a checkpoint; remove it or choose another --output_dir",
    )
    if not config.from_scratch:
        check_model_folder(locate_model(config.pretrained_model_name_or_path))
    settings = dataclasses.asdict(config) | (
        dataclasses.asdict(scratch) if config.from_scratch else {}
    )
    identity = {key: value for key, value in settings.items() if key not in NOT_DECISIVE}
    claim_folder(
        output_dir, "training.yaml", identity, "give another --output_dir, or remove the folder"
    )
    train(config, scratch, dataset, output_dir)


def parse(arguments: Sequence[str] | None) -> tuple[FinetuneConfig, FromScratchConfig]:
    """Command line over YAML over defaults."""
    parser = argparse.ArgumentParser(
        prog="python -m dreamda.finetune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", nargs="*", default=[], help="YAML files; later ones win")
    add_options(parser, FinetuneConfig, "training")
    add_options(parser, FromScratchConfig, "architecture and autoencoder (--from_scratch only)")
    given = parser.parse_args(arguments)
    sources = [load_yaml(path) for path in given.config]
    sources.append(command_line_source(given, ignore=("config",)))
    return tuple(compose([FinetuneConfig, FromScratchConfig], sources))


def train(
    config: FinetuneConfig, scratch: FromScratchConfig, dataset: ImageDataset, output_dir: Path
) -> None:
    """Train and write the checkpoint with its README, sample grid and loss curve."""
    from accelerate import Accelerator

    from dreamda.diffusion_training import DiffusionTrainer
    from expansion.stable_diffusion import load_pipeline, save_pipeline

    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    records = dataset.records(config.dataset_split)
    state_dir = output_dir / "training_state"
    begun = time.monotonic()
    if config.from_scratch:
        pipeline = _start_from_scratch(config, scratch, dataset, output_dir)
    else:
        pipeline = load_pipeline(locate_model(config.pretrained_model_name_or_path))
    trainer = DiffusionTrainer(pipeline, records, dataset.prompt_names, config, accelerator)
    losses: list[tuple[float, float]] = []
    with tqdm(total=config.max_train_steps, desc="U-Net", unit="step") as bar:

        def progress(step: int, loss: float) -> None:
            losses.append((step, loss))
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{loss:.4f}")

        trainer.train(state_dir, progress)
    if not accelerator.is_main_process:
        return
    save_pipeline(pipeline, output_dir, config.save_dtype)
    minutes = (time.monotonic() - begun) / 60
    _write_report(config, dataset, pipeline, output_dir, losses, minutes)
    shutil.rmtree(state_dir, ignore_errors=True)
    shutil.rmtree(output_dir / "start", ignore_errors=True)
    logger.info("wrote %s after %.1f minutes", output_dir, minutes)


def _start_from_scratch(
    config: FinetuneConfig, scratch: FromScratchConfig, dataset: ImageDataset, output_dir: Path
):
    """The pipeline with a trained autoencoder; kept in `<output_dir>/start` until training ends."""
    from dreamda.diffusion_training import training_transform
    from dreamda.from_scratch import build_pipeline, train_autoencoder
    from expansion.stable_diffusion import load_pipeline, save_pipeline

    start_dir = output_dir / "start"
    if (start_dir / "model_index.json").is_file():
        return load_pipeline(str(start_dir))
    captions = [class_prompt(c, name) for c in config.captions for name in dataset.prompt_names]
    pipeline = build_pipeline(scratch, config.resolution, captions, config.seed)
    records = dataset.records(config.dataset_split)
    transform = training_transform(config, config.resolution)
    with tqdm(total=scratch.vae_train_steps, desc="autoencoder", unit="step") as bar:

        def progress(step: int, loss: float) -> None:
            bar.update()
            bar.set_postfix(loss=f"{loss:.4f}")

        train_autoencoder(pipeline.vae, records, transform, scratch, config.seed, progress)
    save_pipeline(pipeline, start_dir, "float32")
    return pipeline


def _write_report(
    config: FinetuneConfig,
    dataset: ImageDataset,
    pipeline,
    output_dir: Path,
    losses: list[tuple[float, float]],
    minutes: float,
) -> None:
    """README.md, samples.png and loss.png beside the weights."""
    from expansion.figures import contact_sheet, line_chart, save_figure

    num_images = len(dataset.records(config.dataset_split))
    start = (
        "from scratch" if config.from_scratch else f"from {config.pretrained_model_name_or_path}"
    )
    command = shlex.join(["python", "-m", "dreamda.finetune", *sys.argv[1:]])
    (output_dir / "README.md").write_text(
        f"# {output_dir.name}\n\n"
        f"A Stable Diffusion checkpoint in diffusers layout, trained {start} on the "
        f"{num_images} images of the {config.dataset_split} split of {dataset.name}: "
        f"{config.max_train_steps} steps, batch {config.train_batch_size}, seed {config.seed}, "
        f"{minutes:.0f} minutes. All settings are in `training.yaml`.\n\n    {command}\n\n"
        f"![samples](samples.png)\n\nSix samples per class, guidance scale "
        f"{config.sample_guidance_scale:g}.\n"
    )
    smooth = [
        (losses[i][0], sum(loss for _, loss in losses[i : i + 25]) / len(losses[i : i + 25]))
        for i in range(0, len(losses), 25)
    ]
    save_figure(line_chart({"loss": smooth}, "training loss", "step"), output_dir / "loss.png")
    rows = [
        (name, _samples(pipeline, class_prompt(config.captions[0], name), config))
        for name in dataset.prompt_names[:20]
    ]
    save_figure(contact_sheet(rows), output_dir / "samples.png")


def _samples(pipeline, prompt: str, config: FinetuneConfig, number: int = 6):
    import torch

    from expansion.stable_diffusion import ddim_scheduler

    pipeline.scheduler = ddim_scheduler(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(config.seed)
    return pipeline(
        prompt,
        num_images_per_prompt=number,
        num_inference_steps=30,
        guidance_scale=config.sample_guidance_scale,
        generator=generator,
    ).images


if __name__ == "__main__":
    run_command(main)
