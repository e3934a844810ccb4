"""The plan of a run: which images to make of what, and where. Making it loads no weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from expansion.common.config import load_yaml
from expansion.common.errors import require
from expansion.common.files import check_outside
from expansion.common.hub import check_revision
from expansion.common.sharding import Shard, make_units, resolve_shard, take_shard
from expansion.data.datasets import (
    ImageDataset,
    check_classes,
    choose_subset,
    load_dataset,
)
from expansion.data.naming import image_stems, ordered_folders
from expansion.data.prompts import (
    Prompts,
    PromptScope,
    read_prompts,
    template_prompts,
)
from expansion.data.splits import fold_of, share_of_each_class
from expansion.diffusion.lora import check_lora
from expansion.diffusion.model_files import (
    check_model_folder,
    check_resolution,
    locate_model,
    model_resolution,
    settled,
    takes_guidance,
)
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.generation.batch_size import remembered_batch_size
from expansion.generation.config import ExpandConfig
from expansion.images.content import content_summary, readable_records
from expansion.images.records import ImageRecord
from expansion.images.variants import Variant, group_by, variant_name
from expansion.store.expanded_set import Sources
from expansion.store.places import expansion_folder
from expansion.store.tars import TarLayout, tar_prefix

IDENTITY_FILE = "expansion.yaml"
RUN_OPTIONS = "options.yaml"  # beside the checkpoint of a classifier: what it learnt from


@dataclass(frozen=True)
class Plan:
    """A run with all its work laid out, before anything heavy is loaded.

    Attributes:
        config: Settings that all methods share.
        method_config: Settings of the method.
        dataset: The dataset of the real images.
        records: The real images that the method sees.
        expanded: Those of them that variants are made of.
        chosen: The records, and those of the part that a fold leaves out.
        sources: All training images by file name, also those that are not expanded now.
        num_skipped: Number of real images that cannot be read and were left out.
        prompts: The prompts of the variants.
        variants: The images to make, of all shards, in order.
        folders: Class name -> folder of its images.
        exp: Name of the expanded set.
        output_dir: Folder of the expanded set.
        model: The checkpoint: hub id or path.
        batch_size: Number of images of a unit; None as long as it must be measured.
        shard: The part of the work that this process does.
    """

    config: ExpandConfig
    method_config: SamplerConfig
    dataset: ImageDataset
    records: list[ImageRecord]
    expanded: list[ImageRecord]
    chosen: list[ImageRecord]
    sources: Sources
    num_skipped: int
    prompts: Prompts
    variants: list[Variant]
    folders: dict[str, str]
    exp: str
    output_dir: Path
    model: str
    batch_size: int | None
    shard: Shard

    def with_batch_size(self, batch_size: int) -> Plan:
        """The same plan, cut into units of `batch_size` images."""
        return dataclasses.replace(self, batch_size=batch_size)

    @property
    def unet_rows_per_image(self) -> float:
        """Rows that go through the U-Net for each generated image, beside training."""
        config = self.method_config
        if takes_guidance(self.model):  # as an input, so that no row is added for it
            config = dataclasses.replace(config, guidance_scale=1.0)
        return config.unet_rows_per_image(self.config.num_images_per_prompt)

    @property
    def shard_units(self) -> list[list[Variant]]:
        """The variants of this shard, cut into batches; the batch size must be known."""
        group_of = group_by(self.method_config.variants_per_group)
        units = make_units(self.variants, self.batch_size, group_of)
        return take_shard(units, *self.shard[:2])

    @cached_property
    def shard_variants(self) -> list[Variant]:
        """The variants of this shard; those of all shards as long as the batch size is unknown."""
        if self.batch_size is None:
            return self.variants
        return [variant for unit in self.shard_units for variant in unit]

    @cached_property
    def tars(self) -> TarLayout | None:
        """Which image goes into which tar; None if images are files."""
        if self.config.output_format == "images":
            return None
        return TarLayout(tar_prefix(self.exp), self.variants, self.config.images_per_tar)


def make_plan(config: ExpandConfig, method_config: SamplerConfig) -> Plan:
    """Look up and check everything that can be checked before weights load.

    Args:
        config: Settings that all methods share.
        method_config: Settings of the method.

    Raises:
        InputError: Something is missing or wrong; the message says what to do.
    """
    # The shard, the checkpoint and the files that the method needs.
    shard = resolve_shard(config.split, config.total_split)
    model, method_config = _on_checkpoint(config, method_config)
    method_config.check_run()
    for name, path in method_config.input_files().items():
        require(
            Path(path).is_file(),
            f"{name} {path} does not exist; train the classifier first with train_original.py",
        )
    # The real images: all, then those that are chosen and can be read.
    dataset = load_dataset(config.dataset, config.data_dir, config.test_fraction)
    everything = dataset.records("train")
    chosen = choose_subset(everything, config.shots, config.subset_seed, config.subset_file)
    chosen, problems = readable_records(chosen, config.on_error)
    records, held_out = fold_of(chosen, config.fold, config.subset_seed)
    check_classes(dataset, records)
    expanded = share_of_each_class(records, config.expand_fraction, config.subset_seed)
    if held_out:
        _check_guides(method_config, held_out, config.fold)
    # Where the images go, and what they are to show.
    folders = ordered_folders(dataset.class_names)
    output_dir = output_folder(config, dataset.name)
    check_outside(output_dir, {"the dataset": dataset.root, "the model": model})
    check_outside(output_dir, method_config.input_folders())
    _check_folders(output_dir, folders.values())
    method_config.check_images(records, dataset.class_names, model, config.revision)
    prompts = _prompts(config, method_config, dataset, everything, expanded)
    stems = image_stems(everything, folders)
    return Plan(
        config=config,
        method_config=method_config,
        dataset=dataset,
        records=records,
        expanded=expanded,
        chosen=chosen,
        sources={record.file_name: record for record in (*everything, *records)},
        num_skipped=len(problems),
        prompts=prompts,
        variants=_variants(expanded, stems, prompts, config.num_images_per_prompt),
        folders=folders,
        exp=exp_name(config),
        output_dir=output_dir,
        model=model,
        batch_size=_batch_size(config, output_dir),
        shard=shard,
    )


def _on_checkpoint(config: ExpandConfig, method_config: SamplerConfig) -> tuple[str, SamplerConfig]:
    """The checkpoint, and the method's settings as they count for it.

    Raises:
        InputError: The checkpoint, the adapter or a setting does not fit.
    """
    model = locate_model(config.pretrained_model_name_or_path)
    check_revision(model, config.revision, "--revision")
    check_model_folder(model, config.single_file_config, method_config.needs_image_unet)
    method_config = settled(model, method_config)
    check_resolution(config.single_file_config or model, config.resolution)
    if config.lora is not None:
        check_lora(config.lora, model)
    return model, method_config


def _check_guides(
    method_config: SamplerConfig, held_out: Sequence[ImageRecord], fold: str | None
) -> None:
    """Raise InputError for a classifier that may have learnt from the part that is tested on."""
    for name, path in method_config.input_files().items():
        options = Path(path).parent / RUN_OPTIONS
        tested_on = load_yaml(options).values.get("test_images") if options.is_file() else None
        require(
            tested_on in (None, content_summary(held_out)),
            f"{name} {path} was not tested on the part that --fold {fold} holds out, and may have "
            f"learnt from it; give one that was trained with --fold {fold}",
        )


def _variants(
    records: Iterable[ImageRecord], stems: Mapping[str, str], prompts: Prompts, number: int
) -> list[Variant]:
    """`number` variants of every real image, in the order of the images."""
    return [
        Variant(
            source=record,
            number=k,
            file_name=variant_name(stems[record.file_name], k),
            prompt=prompts.prompt_of(record.file_name, record.label, k),
        )
        for record in records
        for k in range(number)
    ]


def _batch_size(config: ExpandConfig, output_dir: Path) -> int | None:
    """The batch size that is given, or that an earlier command measured; None: measure it."""
    if config.batch_size != "auto":
        return int(config.batch_size)
    # In a folder without a set, a measured size was for other settings.
    begun = (output_dir / IDENTITY_FILE).is_file()
    return remembered_batch_size(output_dir) if begun else None


def exp_name(config: ExpandConfig) -> str:
    """The name of the expanded set: as given, or after method and variants per real image."""
    factor = config.num_images_per_prompt * config.expand_fraction
    return config.exp or f"{config.method}_{factor:.10g}x"


def output_folder(config: ExpandConfig, dataset_title: str) -> Path:
    """The folder of the expanded set.

    Args:
        config: Gives the folder, or the parts of the default one.
        dataset_title: What folders of results call the dataset, unless `config.name` does.
    """
    if config.output_dir:
        return Path(config.output_dir)
    return expansion_folder(config.data_dir, config.name or dataset_title, exp_name(config))


def _check_folders(output_dir: Path, folders: Iterable[str]) -> None:
    """Raise InputError for folders that are files, or links that lead out of `output_dir`.

    Args:
        output_dir: Folder of the expanded set; hidden links in it are refused as well.
        folders: Names of the classes' folders in it.
    """
    hidden = (path for path in output_dir.glob(".*") if path.is_symlink())
    for path in (*hidden, *(output_dir / folder for folder in folders)):
        require(
            not path.is_symlink(),
            f"{path} is a symbolic link, so files would be written outside {output_dir}; "
            "remove it, or link the whole folder",
        )
        require(path.is_dir() or not path.exists(), f"{path} is no folder; remove it")


def _prompts(
    config: ExpandConfig,
    method_config: SamplerConfig,
    dataset: ImageDataset,
    everything: list[ImageRecord],
    records: list[ImageRecord],
) -> Prompts:
    """The prompts: from a file or template if one is given, else the method's or dataset's own."""
    prompt_names = method_config.prompt_names(dataset.class_names, dataset.prompt_names)
    if config.prompts_file is None and config.prompt_template is None:
        names = zip(dataset.class_names, prompt_names, strict=True)
        own = [method_config.class_prompts(*each) for each in names]
        if all(own):
            return Prompts(own, per="variant", seed=config.seed)
    if config.prompts_file is None:
        template = config.prompt_template or dataset.config.prompt_template
        prompts = template_prompts(template, prompt_names)
    else:
        prompts = _prompts_of_file(config, dataset, prompt_names, everything, records)
    if config.prompts_file is not None or config.prompt_template is not None:
        used = {
            (text, prompt_names[record.label])
            for record in records
            for text in prompts.candidates(record.file_name, record.label)
        }
        method_config.check_prompts(used)
    return prompts


def _prompts_of_file(
    config: ExpandConfig,
    dataset: ImageDataset,
    prompt_names: Sequence[str],
    everything: list[ImageRecord],
    records: list[ImageRecord],
) -> Prompts:
    """The prompts of the file that the settings name."""
    scope = PromptScope(
        class_names=dataset.class_names,
        prompt_names=prompt_names,
        labels={record.file_name: record.label for record in everything},
        wanted=[record.file_name for record in records],
    )
    return read_prompts(config.prompts_file, scope, config.prompt_per, config.seed)


def own_resolution(plan: Plan) -> int:
    """Side in pixels that the plan's checkpoint was trained for."""
    return model_resolution(plan.config.single_file_config or plan.model)
