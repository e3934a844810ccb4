"""--expand_fraction: variants of a share of each class, for factors below 1x."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from PIL import Image

import expand
from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from expansion.data.splits import share_of_each_class
from expansion.generation.plan import exp_name, make_plan
from expansion.store.expanded_set import read_expansion
from expansion.study.config import read_command_line, settle
from expansion.study.steps import Study
from tests.conftest import TINY_MODEL
from tests.helpers.stand_ins import folders

SIZES = {"ant": 10, "bee": 4, "cat": 1}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for split in ("train", "test"):
        folders(root / split, SIZES)
    return root


def line(photos: Path, output: Path, *options: object) -> list[str]:
    fixed = f"-d {photos} --method img2img --num_images_per_prompt 1 --num_inference_steps 2"
    fixed += f" --batch_size 4 --device cpu --output_dir {output} --resolution 32"
    fixed += f" --pretrained_model_name_or_path {TINY_MODEL}"
    return [*fixed.split(), *map(str, options)]


def planned(photos: Path, tmp_path: Path, *options: object):
    config, method_config, _ = expand.parse(line(photos, tmp_path / "out", *options))
    return make_plan(config, method_config)


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.2, [2, 1, 1]), (0.5, [5, 2, 1]), (0.01, [1, 1, 1]), (1, [10, 4, 1])],
)
def test_every_class_has_its_share_and_at_least_one_image(photos, fraction, expected):
    records = load_dataset(str(photos)).records("train")
    chosen = share_of_each_class(records, fraction, 0)
    assert [sum(record.label == label for record in chosen) for label in range(3)] == expected


def test_a_larger_share_keeps_what_a_smaller_one_has_and_a_seed_decides(photos):
    records = load_dataset(str(photos)).records("train")
    names = [{r.file_name for r in share_of_each_class(records, f, 3)} for f in (0.2, 0.5, 0.9)]
    assert names[0] < names[1] < names[2]
    assert names[1] == {r.file_name for r in share_of_each_class(records[::-1], 0.5, 3)}
    assert names[1] != {r.file_name for r in share_of_each_class(records, 0.5, 4)}


def test_the_method_sees_all_real_images_and_shards_share_the_variants(photos, tmp_path):
    plan = planned(photos, tmp_path, "--expand_fraction", 0.5)
    assert (len(plan.records), len(plan.expanded), len(plan.variants)) == (15, 8, 8)
    parts = [
        planned(photos, tmp_path, "--expand_fraction", 0.5, "--total_split", 2, "--split", split)
        for split in (0, 1)
    ]
    names = [{v.file_name for v in part.shard_variants} for part in parts]
    assert not names[0] & names[1]
    assert names[0] | names[1] == {v.file_name for v in plan.variants}


def test_the_set_is_called_after_its_factor(photos):
    options = ["-d", str(photos), "--method", "img2img", "--expand_fraction", "0.2"]
    config, method_config, _ = expand.parse([*options, "--num_images_per_prompt", "1"])
    assert make_plan(config, method_config).exp == "img2img_0.2x"
    config, method_config, _ = expand.parse([*options[:-2], "--num_images_per_prompt", "1000000"])
    assert exp_name(config) == "img2img_1000000x"


@pytest.mark.slow
def test_a_share_is_a_whole_set_beside_all_real_images_and_grows_to_the_rest(photos, tmp_path):
    output = tmp_path / "out"
    assert expand.main(line(photos, output, "--expand_fraction", 0.5)) == 0
    real = {r.file_name: r for r in load_dataset(str(photos)).records("train")}
    made = read_expansion(output, real)
    assert [sum(r.label == label for r in made) for label in range(3)] == [5, 2, 1]
    assert (output / "contact_sheet.png").is_file()
    first = {r.file_name: Image.open(r.path).tobytes() for r in made}
    assert expand.main(line(photos, output)) == 0
    more = {r.file_name: Image.open(r.path).tobytes() for r in read_expansion(output, real)}
    assert len(more) == 15 and first.items() <= more.items()


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5])
def test_what_is_no_share_is_refused(photos, fraction):
    with pytest.raises(InputError, match="expand_fraction .*: give more than 0 and at most 1"):
        expand.parse(["-d", str(photos), "--expand_fraction", str(fraction)])


def test_a_study_reckons_with_the_share(tmp_path, photos):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({
        "methods": ["img2img"], "num_images_per_prompt": 1, "arms": [{}, {"method": "each"}],
        "method_options": {"img2img": {"expand_fraction": 0.2}},
    }))  # fmt: skip
    settings = settle(read_command_line([str(photos), "--config", str(path)], ""), "tiny")
    study = Study(settings, None, (), None, {}, {}, {}, {}, None, tmp_path, 15, 15, 32)
    assert study.set_name("img2img") == "img2img_0.2x" and study.factor("img2img") == 0.2
