"""`expand.py --until_kept N`: variants are made until a judge accepts N images of every class.

Rounds double the number of variants of each real image, so each round is a set that
`--num_images_per_prompt` alone would make: shards, stops and resumption work as ever, and what one
round made serves the next. The judge sees nothing but the images, so every process, however often
it is started, stops after the same round and writes the same selection.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from expansion.common.config import load_yaml
from expansion.common.devices import device_and_dtype
from expansion.common.errors import InputError, require, shown
from expansion.common.sharding import make_units
from expansion.data.prompts import class_prompt
from expansion.generation.config import ExpandConfig
from expansion.generation.plan import Plan, exp_name, make_plan
from expansion.generation.run import run
from expansion.images.records import ImageRecord
from expansion.images.variants import Variant
from expansion.predict.finished_runs import RESULTS, find_runs
from expansion.store.expanded_set import StoredSet
from expansion.store.places import generated_record
from expansion.store.selection import Selection, numbers_by_class

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from expansion.classifier.clip import ClipClassifier
    from expansion.diffusion.sampler import Sampler
    from expansion.diffusion.sampler_config import SamplerConfig

logger = logging.getLogger(__name__)

FILE_NAME = "selected.json"
BATCH = 256  # images that the judge sees at a time
BELOW = "own-class probability below the judge's limit"
ENOUGH = "its class has enough"
CLIP = "clip:"  # begins a judge that is a zero-shot CLIP: hub id or folder


class Judge(Protocol):
    """What says how probable the classes are for images; no image's answer depends on others."""

    @property
    def class_names(self) -> Sequence[str]:
        """The classes, by the columns of `probabilities`."""

    def probabilities(self, images: Sequence[Image.Image]) -> Tensor:
        """Probabilities (B, N) for B RGB images, on the CPU."""


@dataclass(frozen=True)
class ClipJudge:
    """A zero-shot CLIP, as LECF's filter has it."""

    clip: ClipClassifier
    class_names: Sequence[str]

    def probabilities(self, images: Sequence[Image.Image]) -> Tensor:
        """See `Judge`."""
        return self.clip.of_images(images)


def make_until_kept(
    config: ExpandConfig, method_config: SamplerConfig, sampler_class: type[Sampler]
) -> int:
    """Make rounds of variants until there are enough accepted ones, and write the selection.

    Args:
        config: `until_kept`, `judge` and the options beside them say when to stop.
        method_config: Settings of the method.
        sampler_class: The method.

    Returns:
        The exit status: 0, or 1 if images could not be made or other shards have to go on first.

    Raises:
        InputError: The judge does not fit, or the most variants do not bring enough.
    """
    config = dataclasses.replace(config, exp=exp_name(config))
    _check_groups(config, method_config)
    judge = None
    while True:
        # One round: a whole set of so many variants of each real image. Whether the judge fits is
        # known before the first.
        plan = make_plan(config, method_config)
        judge = judge or _load_judge(plan)
        status = run(plan, sampler_class)
        if status:
            return status
        stored = StoredSet(plan.output_dir, plan.sources)
        missing = stored.missing(plan.variants)
        if missing:
            logger.info(
                f"{len(missing)} images of other shards are missing; run this command again once "
                "they are made: a round is judged as a whole"
            )
            return 1

        # Enough accepted images of every class: the selection; else the next round.
        records = _records(plan, stored)
        accepted = _accepted(records, judge, plan)
        lacking = _lacking(plan, accepted)
        if not lacking:
            _select(plan, records, accepted).write(plan.output_dir / FILE_NAME)
            logger.info(
                f"written: {plan.output_dir / FILE_NAME}, {config.until_kept} of each class"
            )
            return 0
        count, most = config.num_images_per_prompt, config.most_variants
        require(
            count < most,
            f"{count} variants of each real image (most_variants) do not bring {config.until_kept} "
            f"accepted ones of {shown(f'{name} ({n})' for name, n in lacking.items())}; give more, "
            "or judge_at_least less",
        )
        logger.info(f"accepted so far: {shown(f'{name} {n}' for name, n in lacking.items())}")
        config = dataclasses.replace(config, num_images_per_prompt=min(2 * count, most))


def _check_groups(config: ExpandConfig, method_config: SamplerConfig) -> None:
    """Raise InputError unless rounds are made of whole groups of variants."""
    size = method_config.variants_per_group
    for name in ("num_images_per_prompt", "most_variants"):
        require(
            getattr(config, name) % size == 0,
            f"{name} {getattr(config, name)}: --until_kept makes more of the same set, and "
            f"{config.method} computes variants in groups of {size}; give a multiple",
        )


def _records(plan: Plan, stored: StoredSet) -> dict[Variant, ImageRecord]:
    """The images of a whole set."""
    records = {}
    for variant in plan.variants:
        image = stored.find(variant)
        if image is None:
            raise InputError(f"{variant.file_name} has gone; run the same command again")
        source = variant.source
        records[variant] = generated_record(
            plan.output_dir, image.row, source.label, source.class_name
        )
    return records


def _load_judge(plan: Plan) -> Judge:
    """The judge; raises InputError if it learnt from generated images or lacks classes."""
    if plan.config.judge.startswith(CLIP):
        return _load_clip(plan)
    from expansion.predict.predictor import Predictor

    runs = find_runs(plan.config.judge)
    for folder in runs.folders:
        num_generated = load_yaml(folder / RESULTS).values.get("num_generated")
        require(
            not num_generated,
            f"{folder} learnt from {num_generated} generated images, so it cannot judge such; give "
            "a run of train_original.py",
        )
    device, _ = device_and_dtype(plan.config.device, "float32")
    judge = Predictor.load(runs, device)
    unknown = sorted(set(plan.dataset.class_names) - set(judge.class_names))
    require(
        not unknown,
        f"the classifier of {plan.config.judge} does not know {shown(unknown)}; give one that was "
        "trained on this dataset",
    )
    return judge


def _load_clip(plan: Plan) -> ClipJudge:
    """A CLIP that knows the classes by a text about each; raises InputError if it cannot be had."""
    config, dataset = plan.config, plan.dataset
    template = config.judge_template or dataset.config.prompt_template
    class_prompt(template, "")  # it is checked before anything heavy is loaded
    from expansion.classifier.clip import ClipClassifier

    device, _ = device_and_dtype(config.device, "float32")
    clip = ClipClassifier.load(
        config.judge.removeprefix(CLIP),
        dataset.prompt_names,
        [template],
        device=device,
        option="--judge clip:FOLDER",
    )
    return ClipJudge(clip, dataset.class_names)


def _accepted(records: dict[Variant, ImageRecord], judge: Judge, plan: Plan) -> dict[Variant, bool]:
    """Whether the judge gives an image's own class the probability that is asked for."""
    names, accepted = list(judge.class_names), {}
    for unit in make_units(list(records), BATCH):
        probabilities = judge.probabilities([records[variant].load() for variant in unit])
        for variant, row in zip(unit, probabilities.tolist(), strict=True):
            own = row[names.index(variant.source.class_name)]
            accepted[variant] = own >= plan.config.judge_at_least
    return accepted


def _lacking(plan: Plan, accepted: dict[Variant, bool]) -> dict[str, int]:
    """Classes with too few accepted images, and how many they have."""
    counts = dict.fromkeys(plan.dataset.class_names, 0)
    for variant, is_accepted in accepted.items():
        counts[variant.source.class_name] += is_accepted
    return {name: n for name, n in counts.items() if n < plan.config.until_kept}


def _select(
    plan: Plan, records: dict[Variant, ImageRecord], accepted: dict[Variant, bool]
) -> Selection:
    """As many of each class, the lowest variant numbers first so that all real images have some."""
    kept: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for name in plan.dataset.class_names:
        mine = [variant for variant in accepted if variant.source.class_name == name]
        mine.sort(key=lambda variant: (variant.number, variant.file_name))
        chosen = [variant for variant in mine if accepted[variant]][: plan.config.until_kept]
        kept |= {v.file_name: _sha256(records[v]) for v in chosen}
        others = [variant for variant in mine if variant.file_name not in kept]
        dropped |= {v.file_name: ENOUGH if accepted[v] else BELOW for v in others}
    config = plan.config
    names = ["until_kept", "judge", "judge_at_least", "most_variants"]
    names += ["judge_template"] * (config.judge_template is not None)
    figure = "clip_own_probability" if config.judge.startswith(CLIP) else "own_probability"
    rule = f"{figure} at least {config.judge_at_least:g}, {config.until_kept} of each class"
    return Selection(
        dataset=plan.dataset.name,
        set_name=plan.output_dir.resolve().name,
        rule=rule,
        settings={name: getattr(config, name) for name in names},
        classes=numbers_by_class(
            plan.dataset.class_names,
            {variant.file_name: variant.source.class_name for variant in accepted},
            dropped,
        ),
        kept=kept,
        dropped=dict(sorted(dropped.items())),
    )


def _sha256(record: ImageRecord) -> str:
    return hashlib.sha256(record.read_bytes()).hexdigest()
