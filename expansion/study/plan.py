"""Settings and identity of a study, when its images and its machine are known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import expand
from expansion.classifier.recipe import Recipe
from expansion.common.config import CONFIG_DIR, Layers, Source, load_yaml, without_retired
from expansion.data.datasets import ImageDataset
from expansion.diffusion.model_files import locate_model, model_fingerprint, model_resolution
from expansion.images.content import content_summary
from expansion.study.choices import REHEARSAL_MODEL, Network, is_same_model, scale_of
from expansion.study.config import NESTED, settle
from expansion.study.photos import Photos
from expansion.study.settings import Settings, StudyConfig
from expansion.study.steps import Study

REMEDY = "give another --output_dir, or remove the folder"
# Settings that a begun study keeps, unless the command line says otherwise.
KEPT = ("scale", "num_images_per_prompt", "model", "arch", "pretrained", "lr", *NESTED)
OF_NETWORK = ("arch", "pretrained", "lr")  # options of the study itself, not of `train`
MODEL_OPTION = "pretrained_model_name_or_path"
# Settings of a rehearsal, which shows all steps within minutes whatever the photos are.
REHEARSAL = {
    "num_images_per_prompt": 2,
    "arch": "resnet10_tiny",
    "train": {"image_size": 32, "resize_size": 36, "max_train_steps": 100},
}


def begun_with(output_dir: Path, study: type[StudyConfig] = StudyConfig) -> Source | None:
    """The settings that the study in a folder was begun with; None without a study.

    Args:
        output_dir: The folder.
        study: The class of the settings.
    """
    path = output_dir / study.identity_file
    if not path.is_file():
        return None
    kept = load_yaml(path).values.get("settings")
    return Source(dict(kept) if isinstance(kept, dict) else {}, str(path))


def decide(
    asked: Layers, photos: Photos, begun: Source | None, study: type[StudyConfig] = StudyConfig
) -> Settings:
    """The settings for these images; see `config` for what wins over what.

    Args:
        asked: What was typed and what the `--config` files hold.
        photos: The images.
        begun: What the study was begun with.
        study: The class of the settings.
    """
    between = [_dataset_source(photos.dataset), *([begun] if begun else [])]
    found = settle(asked, scale_of(photos.side), between, study)
    if is_rehearsal(found, photos.dataset):
        between.insert(1, Source(REHEARSAL, f"the rehearsal with {REHEARSAL_MODEL}"))
        found = settle(asked, scale_of(0), between, study)
    return found


def rehearsing(asked: Layers) -> Layers:
    """The same with the tiny diffusion model."""
    return Layers((*asked.sources, Source({"model": REHEARSAL_MODEL}, "your answer")))


def is_rehearsal(settings: Settings, dataset: ImageDataset) -> bool:
    """Whether the tiny model would make images of another dataset than its own."""
    own = (dataset.config.expand or {}).get(MODEL_OPTION)
    model = settings.config.model
    return is_same_model(model, REHEARSAL_MODEL) and not is_same_model(own, REHEARSAL_MODEL)


def models_of(settings: Settings, dataset: ImageDataset) -> list[str]:
    """The diffusion models that the study needs: one for all methods, or each method's own."""
    if settings.config.model is not None:
        return [settings.config.model]
    methods = {settings.samplers[name] for name in settings.config.methods}
    configs = [
        expand.parse(["-d", settings.config.dataset, "--data_dir", settings.config.data_dir,
                      "--method", method])[0]
        for method in sorted(methods)
    ]  # fmt: skip
    return list(dict.fromkeys(config.pretrained_model_name_or_path for config in configs))


def study_of(settings: Settings, photos: Photos, output_dir: Path, network: Network) -> Study:
    """Put the study together; its commands do not repeat what the dataset's own file says.

    Args:
        settings: All settings.
        photos: The images.
        output_dir: Folder of the results.
        network: The classifier.
    """
    own = photos.dataset.config
    of_classifier, of_expand, of_methods = own.classifier or {}, own.expand or {}, own.methods or {}
    given = Source(settings.train, "the options of the trainings")
    train = {**network.options, **without_retired(given, [Recipe])}
    has_recipe = (CONFIG_DIR / "classifiers" / f"{train['arch']}.yaml").is_file()
    if not (train["pretrained"] or has_recipe or "pretrained" in of_classifier):
        del train["pretrained"]  # it is the scripts' default
    model = settings.config.model
    known = model is not None and model == of_expand.get(MODEL_OPTION)
    first = locate_model(models_of(settings, photos.dataset)[0])
    return Study(
        settings=settings,
        dataset=photos.dataset,
        place=photos.place,
        draw=None,
        set_folders={},
        train=_without(train, of_classifier),
        expand=_without(settings.expand, of_expand),
        method_options={
            name: _without(options, of_methods.get(settings.samplers[name]) or {})
            for name, options in settings.method_options.items()
        },
        model=None if known else model,
        output_dir=output_dir,
        num_train=len(photos.train),
        num_test=len(photos.test),
        resolution=settings.expand.get("resolution") or model_resolution(first),
    )


def identity_of(study: Study, photos: Photos, network: Network) -> dict[str, Any]:
    """Everything that decides the results, apart from the choice of arms, methods and seeds."""
    config = study.settings.config
    train = {k: v for k, v in network.options.items() if k not in OF_NETWORK}
    kept = {key: getattr(config, key) for key in KEPT if key not in NESTED}
    kept |= {key: network.options.get(key) for key in OF_NETWORK}
    kept["train"] = {**train, **study.settings.train}
    kept["expand"] = dict(study.settings.expand)
    kept["method_options"] = _named(study.settings)
    images: dict[str, Any] = dict(photos.identity)
    if config.draw_per_seed:  # which of them a seed takes does not depend on the other seeds
        all_images = photos.dataset.records("train")
        images |= {"training_images": content_summary(all_images), "shots": config.shots}
    return {
        **images,
        "models": [
            model_fingerprint(locate_model(m)) for m in models_of(study.settings, study.dataset)
        ],
        "rehearsal": is_rehearsal(study.settings, study.dataset),
        "settings": {key: value for key, value in kept.items() if value is not None},
    }


def _named(settings: Settings) -> dict[str, dict[str, Any]]:
    """The options of methods, as a study file gives them."""
    options = {
        name: {**({"method": method} if method != name else {}), **settings.method_options[name]}
        for name, method in settings.samplers.items()
        if name not in settings.by_sweep  # their names tell their options
    }
    return {name: values for name, values in options.items() if values}


def _dataset_source(dataset: ImageDataset) -> Source:
    """The settings in the dataset's own file, as settings of a study."""
    config = dataset.config
    classifier, of_expand = dict(config.classifier or {}), dict(config.expand or {})
    values = {key: classifier.pop(key) for key in OF_NETWORK if key in classifier}
    if MODEL_OPTION in of_expand:
        values["model"] = of_expand.pop(MODEL_OPTION)
    values |= {"train": classifier, "expand": of_expand, "method_options": config.methods or {}}
    return Source(values, f"the settings of the dataset {dataset.name}")


def _without(options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    absent = object()
    return {key: value for key, value in options.items() if known.get(key, absent) != value}
