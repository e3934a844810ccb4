"""Generate the expanded set of a dataset: one shard, or all of them under `accelerate launch`.

    python expand.py -d digits --method img2img --num_images_per_prompt 10
    python expand.py -d caltech-101 --method distdiff --total_split 4 --split 0 --arch resnet50 \\
        --encoder_weight_path checkpoint/caltech-101/resnet50_unpretrained_lr0.1/seed1/model_best.pth.tar

The same command goes on where an earlier one stopped. `--method NAME --help` shows
a method's options.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from expansion.common.config import (
    CONFIG_DIR,
    Source,
    add_options,
    command_line_source,
    compose,
    import_object,
    load_yaml,
)
from expansion.common.errors import brief, run_command, unknown_name
from expansion.common.option_parser import OptionParser
from expansion.data.datasets import (
    DEFAULT_DATASET,
    dataset_config,
    dataset_title,
)
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.generation.plan import (
    ExpandConfig,
    describe,
    make_plan,
    output_folder,
)
from expansion.generation.run import run
from expansion.generation.status import status_text

# method -> its config and its sampler; the config's module imports no torch.
SAMPLERS = {
    "img2img": (
        "expansion.diffusion.sampler_config:SamplerConfig",
        "expansion.diffusion.img2img:Img2ImgSampler",
    ),
    "distdiff": ("distdiff.config:DistDiffConfig", "distdiff.sampler:DistDiffSampler"),
    "dreamda": ("dreamda.config:DreamDAConfig", "dreamda.sampler:DreamDASampler"),
}
DEFAULT_METHOD = "distdiff"
COMMON = frozenset(  # what --help shows
    "dataset method num_images_per_prompt pretrained_model_name_or_path lora encoder_weight_path "
    "exp output_dir strength guidance_scale prompt_template prompts_file shots test_fraction seed "
    "batch_size split total_split".split()
)


def main(arguments: Sequence[str] | None = None) -> int | None:
    config, method_config, options = parse(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.status:
        title = dataset_title(config.dataset, config.data_dir)
        print(status_text(output_folder(config, title)))
        return None
    plan = make_plan(config, method_config)
    if options.dry_run:
        print(describe(plan))
        return None
    return run(plan, import_object(SAMPLERS[plan.config.method][1]))


def parse(arguments: Sequence[str]) -> tuple[ExpandConfig, SamplerConfig, argparse.Namespace]:
    """Command line > `--config` files > dataset file > method file > defaults."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", nargs="*", default=[])
    first.add_argument("--method", default=None)
    first.add_argument("--dataset", "-d", default=None)
    early, _ = first.parse_known_args(arguments)
    given = [load_yaml(path) for path in early.config]
    method, name = (
        getattr(early, key)
        or next((s.values[key] for s in reversed(given) if key in s.values), default)
        for key, default in (("method", DEFAULT_METHOD), ("dataset", DEFAULT_DATASET))
    )
    if method not in tuple(SAMPLERS):
        raise unknown_name("method", method, list(SAMPLERS))
    config_class = import_object(SAMPLERS[method][0])
    parser = OptionParser(
        prog="expand.py",
        description=__doc__,
        epilog=f"methods: {', '.join(SAMPLERS)}",
        common=COMMON,
        allow_abbrev=False,
    )
    parser.add_argument("--config", nargs="*", default=[], help="YAML files; later ones win")
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    parser.add_argument(
        "--status",
        action="store_true",
        help="print how far the processes of this set are, and stop",
    )
    add_options(parser, ExpandConfig, "run")
    add_options(parser, config_class, f"method {method}")
    options = parser.parse_args(arguments)
    dataset = dataset_config(
        name if isinstance(name, str) else brief(name),
        options.data_dir if "data_dir" in options else "data",
    )
    sources = [
        *(load_yaml(path) for path in _method_files(method)),
        Source({"method": method}, "method"),
        Source(dataset.expand or {}, f"dataset {name}: expand"),
        Source((dataset.methods or {}).get(method) or {}, f"dataset {name}: methods: {method}"),
        *given,
        command_line_source(options, ignore=("config", "dry_run", "status")),
    ]
    config, method_config = compose([ExpandConfig, config_class], sources)
    return config, method_config, options


def _method_files(method: str) -> list[Path]:
    """The method's YAML file, if it has one."""
    files = [CONFIG_DIR / method / "default.yaml", CONFIG_DIR / "baselines" / f"{method}.yaml"]
    return [path for path in files if path.is_file()]


if __name__ == "__main__":
    run_command(main)
