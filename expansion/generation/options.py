"""Options of `expand.py`, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from expansion.common.config import CONFIG_DIR, Source, import_object, load_yaml, option
from expansion.common.errors import require, unknown_name
from expansion.common.option_parser import OptionParser
from expansion.data.datasets import dataset_of
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.generation.config import ExpandConfig

COMMON = frozenset(  # what --help shows
    "dataset method num_images_per_prompt pretrained_model_name_or_path lora encoder_weight_path "
    "exp output_dir strength guidance_scale prompt_template prompts_file shots test_fraction seed "
    "batch_size split total_split dry_run status".split()
)


@dataclass(frozen=True, kw_only=True)
class Instead:
    """What the command may be asked for instead of images."""

    dry_run: bool = option(False, "print the plan and stop")
    status: bool = option(False, "print how far the processes of this set are, and stop")


def parse_expansion(
    arguments: Sequence[str], doc: str, methods: Mapping[str, str], default: str
) -> tuple[ExpandConfig, SamplerConfig, Instead]:
    """Command line > `--config` files > dataset file > method file > defaults.

    Args:
        doc: What `--help` says of the command.
        methods: Method -> its config class as "module:Class".
        default: The method if none is given.
    """
    parser = OptionParser(
        prog="expand.py",
        description=doc,
        epilog=f"methods: {', '.join(methods)}",
        common=COMMON,
    )
    require(
        "--join" not in arguments,
        "--join is gone: leave it out, or divide the work by --total_split and --split; a set "
        "that was begun goes on with any number of shards",
    )
    method = parser.first_look(arguments, "method").peek("method", default)
    if method not in list(methods):  # YAML may give a list, which a mapping cannot look up
        raise unknown_name("method", method, list(methods))
    config_class = import_object(methods[method])
    classes = {"run": ExpandConfig, f"method {method}": config_class, "instead of images": Instead}
    given = parser.read(arguments, classes)
    name, dataset = dataset_of(given)
    method_file = CONFIG_DIR / method / "default.yaml"
    # Where images must not be mirrored for classifiers, a method that mirrors does not either.
    mirrors = "flip" in {field.name for field in fields(config_class)}
    handed = not dataset.may_be_mirrored
    beneath = [
        *([load_yaml(method_file)] if method_file.is_file() else []),
        Source({"method": method}, "method"),
        Source({"flip": False} if mirrors and handed else {}, f"dataset {name}: classifier"),
        Source(dataset.expand or {}, f"dataset {name}: expand"),
        Source((dataset.methods or {}).get(method) or {}, f"dataset {name}: methods: {method}"),
    ]
    return tuple(given.over(*beneath).compose(*classes.values()))
