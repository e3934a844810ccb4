"""Generate the expanded set of a dataset: one shard, or all of them under `accelerate launch`.

    python expand.py -d digits --method img2img --num_images_per_prompt 10
    python expand.py -d caltech-101 --method distdiff --total_split 4 --split 0 --arch resnet50 \\
        --encoder_weight_path \\
        checkpoint/caltech-101/resnet50_unpretrained_lr0.1/seed1/model_best.pth.tar

The same command goes on where an earlier one stopped. `--method NAME --help` shows
a method's options.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from expansion.common.config import import_object
from expansion.common.errors import run_command
from expansion.data.datasets import dataset_title
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.generation.config import ExpandConfig
from expansion.generation.options import Instead, parse_expansion
from expansion.generation.plan import make_plan, output_folder
from expansion.generation.run import run
from expansion.generation.status import status_text
from expansion.generation.summary import describe
from expansion.selection.until_kept import make_until_kept

# method -> its config and its sampler; the config's module imports no torch.
SAMPLERS = {
    "img2img": (  # SDEdit with the template prompt; the row "SD" of DistDiff's tables
        "expansion.diffusion.sampler_config:SamplerConfig",
        "expansion.diffusion.img2img:Img2ImgSampler",
    ),
    "text2img": (  # the row "SD" of DreamDA's tables
        "baselines.text2img_config:Text2ImgConfig",
        "baselines.text2img:Text2ImgSampler",
    ),
    "bot": ("baselines.bot_config:BoTConfig", "baselines.bot:BoTSampler"),
    "lecf": ("baselines.lecf_config:LECFConfig", "baselines.text2img:Text2ImgSampler"),
    "da_fusion": (
        "baselines.da_fusion_config:DAFusionConfig",
        "baselines.da_fusion:DAFusionSampler",
    ),
    "diffusion_inversion": (
        "baselines.diffusion_inversion.config:DiffusionInversionConfig",
        "baselines.diffusion_inversion.sampler:DiffusionInversionSampler",
    ),
    "gif": ("baselines.gif.config:GIFConfig", "baselines.gif.sampler:GIFSampler"),
    "diffusemix": (
        "baselines.diffusemix.config:DiffuseMixConfig",
        "baselines.diffusemix.sampler:DiffuseMixSampler",
    ),
    "distdiff": ("distdiff.config:DistDiffConfig", "distdiff.sampler:DistDiffSampler"),
    "dreamda": ("dreamda.config:DreamDAConfig", "dreamda.sampler:DreamDASampler"),
}
DEFAULT_METHOD = "distdiff"


def main(arguments: Sequence[str] | None = None) -> int | None:
    config, method_config, instead = parse(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if instead.status:
        title = dataset_title(config.dataset, config.data_dir)
        print(status_text(output_folder(config, title)))
        return None
    if instead.dry_run:
        print(describe(make_plan(config, method_config)))
        return None
    sampler_class = import_object(SAMPLERS[config.method][1])
    if config.until_kept is not None:
        return make_until_kept(config, method_config, sampler_class)
    return run(make_plan(config, method_config), sampler_class)


def parse(arguments: Sequence[str]) -> tuple[ExpandConfig, SamplerConfig, Instead]:
    """The settings of a run and of its method, and whether something else is asked for."""
    configs = {method: config for method, (config, _) in SAMPLERS.items()}
    return parse_expansion(arguments, __doc__, configs, DEFAULT_METHOD)


if __name__ == "__main__":
    run_command(main)
