"""Samplers as a library: images in, images out, and what expand.py makes of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import expand
from distdiff.config import DistDiffConfig
from distdiff.prototypes import build_prototypes, extract_features
from distdiff.sampler import DistDiffSampler
from dreamda.config import DreamDAConfig
from dreamda.sampler import DreamDASampler
from expansion.classifier.backbones import load_classifier
from expansion.common.config import import_object
from expansion.common.errors import InputError
from expansion.data.datasets import few_shot, load_dataset
from expansion.diffusion.img2img import Img2ImgSampler
from expansion.diffusion.sampler import Sampler
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.images.pixels import decode_image
from expansion.images.records import ImageRecord, given_records
from tests.conftest import ROOT

FEW = {"num_inference_steps": 4, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def digits(digits_dir):
    """One image of each class, in the order of the plan."""
    dataset = load_dataset("digits", digits_dir)
    records = few_shot(dataset.records("train"), 1)
    prompts = [f"a photo of the digit {dataset.prompt_names[r.label]}" for r in records]
    return records, prompts


def sources_in_memory(records: list[ImageRecord]) -> list[Image.Image]:
    return [Image.open(record.path) for record in records]


def pixels(variants: list[list[Image.Image]]) -> np.ndarray:
    return np.stack([np.asarray(image) for group in variants for image in group])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("img2img", {}),
        ("img2img", {"resize_mode": "random_crop"}),
        ("dreamda", {"resize_mode": "center_crop"}),
        ("distdiff", {"guidance_step": 2}),
    ],
)
def test_variants_are_the_images_that_expand_makes(
    pipeline, digits, digits_dir, guide_path, tmp_path, method, options
):
    records, prompts = digits
    if method == "distdiff":
        options = {**options, "encoder_weight_path": str(guide_path)}
    line = f"-d digits --data_dir {digits_dir} --method {method} --shots 1 --seed 7 --batch_size 4"
    line += f" --num_images_per_prompt 3 --device cpu --output_dir {tmp_path} --resolution 32"
    given = [f"--{name}={value}" for name, value in {**FEW, **options}.items()]
    assert expand.main([*line.split(), *given]) == 0

    config_class, sampler_class = map(import_object, expand.SAMPLERS[method])
    defaults = {"strength": 0.5, "negative_prompt": ""} if method == "img2img" else {}
    sampler = sampler_class(pipeline, config_class(**{**defaults, **FEW, **options}))
    sampler.batch_size = 4
    labels = [record.label for record in records]
    images = sources_in_memory(records)
    sampler.prepare_images(images, labels)
    names = [record.file_name for record in records]
    made = sampler.variants(
        images, prompts=prompts, labels=labels, number=3, names=names, seed=7, resolution=32
    )
    assert [len(group) for group in made] == [3] * 10
    for record, group in zip(records, made, strict=True):
        for k, image in enumerate(group):
            stem = Path(record.file_name).stem
            (path,) = tmp_path.rglob(f"{stem}_expand_{k}.png")
            assert image.tobytes() == Image.open(path).tobytes(), path


@pytest.mark.slow
def test_every_method_honours_the_resize_mode(pipeline):
    wide = Image.linear_gradient("L").resize((96, 32)).rotate(90).resize((96, 40))
    for sampler_class, config_class in (
        (Img2ImgSampler, SamplerConfig),
        (DreamDASampler, DreamDAConfig),
        (DistDiffSampler, lambda **given: DistDiffConfig(optimize_targets="none", **given)),
    ):
        made = {
            mode: pixels(
                sampler_class(pipeline, config_class(resize_mode=mode, **FEW)).variants(
                    [wide], prompts="a photo"
                )
            )
            for mode in ("squash", "center_crop")
        }
        assert made["squash"].shape == (1, 32, 32, 3)
        assert not np.array_equal(made["squash"], made["center_crop"])
        squared = wide.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
        sampler = sampler_class(pipeline, config_class(resize_mode="squash", **FEW))
        assert np.array_equal(
            made["squash"], pixels(sampler.variants([squared], prompts="a photo"))
        )


@pytest.mark.slow
def test_other_images_under_the_same_names_are_not_taken_for_the_first(pipeline):
    first, second = (Image.new("RGB", (32, 32), colour) for colour in ("white", "black"))
    for sampler_class, config in ((Img2ImgSampler, SamplerConfig), (DreamDASampler, DreamDAConfig)):
        sampler, fresh = (sampler_class(pipeline, config(**FEW)) for _ in range(2))
        sampler.variants([first], prompts="a photo")
        again = pixels(sampler.variants([second], prompts="a photo"))
        assert np.array_equal(again, pixels(fresh.variants([second], prompts="a photo")))


def test_names_and_seed_decide_the_noise(pipeline):
    image = Image.new("RGB", (40, 32), "grey")
    sampler = Img2ImgSampler(pipeline, SamplerConfig(**FEW))
    one, other = pixels(sampler.variants([image, image], prompts="a photo"))
    assert not np.array_equal(one, other)
    (named,) = pixels(sampler.variants([image], prompts="a photo", names=["1"]))
    (seeded,) = pixels(sampler.variants([image], prompts="a photo", names=["1"], seed=43))
    assert np.abs(named.astype(int) - other).max() <= 1 and not np.array_equal(seeded, named)


def test_images_in_memory_give_the_prototypes_of_their_files(pipeline, digits, guide_path):
    records, _ = digits
    config = DistDiffConfig(encoder_weight_path=str(guide_path), guidance_step=2, **FEW)
    sampler = DistDiffSampler(pipeline, config)
    labels = [record.label for record in records]
    expected = build_prototypes(
        extract_features(load_classifier(guide_path), records), torch.tensor(labels), 10, config.K
    )
    for images in (sources_in_memory(records), [record.path for record in records]):
        sampler.prepare_images(images, labels)
        ((_, energy),) = sampler.energy.energy.energies
        found = energy.prototypes
        torch.testing.assert_close(found.class_prototypes, expected.class_prototypes)
        torch.testing.assert_close(found.group_prototypes, expected.group_prototypes)


def test_guidance_without_what_it_needs_says_what_is_missing(pipeline, guide_path):
    images = [Image.new("RGB", (32, 32))]
    with pytest.raises(InputError, match="--encoder_weight_path"):
        DistDiffSampler(pipeline, DistDiffConfig(guidance_step=2, **FEW)).variants(
            images, prompts="a", labels=[0]
        )
    config = DistDiffConfig(encoder_weight_path=str(guide_path), guidance_step=2, **FEW)
    sampler = DistDiffSampler(pipeline, config)
    with pytest.raises(InputError, match="give the images' labels"):
        sampler.variants(images, prompts="a")
    with pytest.raises(InputError, match="labels 10: the guide knows 0 to 9"):
        sampler.variants(images, prompts="a", labels=[10])
    with pytest.raises(InputError, match="prepare_images"):
        sampler.variants(images, prompts="a", labels=[1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": []}, "give a list of images"),
        ({"images": "photo.jpg"}, "give a list of images"),
        ({"prompts": ["a", "b"]}, "2 prompts for 1 images"),
        ({"labels": [1, 2]}, "2 labels for 1 images"),
        ({"labels": [-1]}, "labels count from 0"),
        ({"names": []}, "0 names for 1 images"),
        ({"number": 0}, "number 0"),
        ({"resolution": 30}, "resolution 30: give a multiple of 4"),
        ({"resolution": 0}, "resolution 0: give a multiple of 4"),
        ({"resolution": -4}, "resolution -4: give a multiple of 4"),
        ({"resolution": 1 << 20}, "resolution 1048576: give at most"),
        ({"images": [Image.new("RGB", (4, 4))] * 2, "names": ["a", "a"]}, "one name"),
        ({"images": ["no such file.png"]}, "no such file.png"),
        ({"images": [Image.new("RGB", (500, 2))]}, "500 x 2 pixels are a line"),
    ],
)
def test_wrong_use_ends_in_one_line(pipeline, wrong, message):
    given = {"images": [Image.new("RGB", (4, 4))], "prompts": "a photo", **wrong}
    with pytest.raises(InputError, match=message):
        Img2ImgSampler(pipeline, SamplerConfig(**FEW)).variants(given.pop("images"), **given)


def test_a_sampler_with_a_misspelt_method_cannot_be_made():
    class Misspelt(Sampler):
        @classmethod
        def build(cls, config, class_names, prompt_names, load_pipeline):
            return cls()

        def prepare(self, records):
            pass

        def sampel(self, batch, generators):
            return None

    with pytest.raises(TypeError, match="abstract method '?sample"):
        Misspelt()


def turned(image: Image.Image) -> Image.Image:
    image.getexif()[0x0112] = 6
    return image


PLAIN = Image.effect_noise((24, 16), 60)
COLOURS = Image.merge("RGB", [PLAIN, PLAIN.rotate(180), PLAIN])
FORMS = {
    "grey.png": PLAIN,
    "palette.png": COLOURS.quantize(16),
    "transparent.png": Image.merge("RGBA", [*COLOURS.split(), PLAIN]),
    "sixteen.png": Image.fromarray(np.arange(24 * 16, dtype=np.uint16).reshape(16, 24) * 150),
    "floats.tif": Image.fromarray(np.linspace(0, 1, 24 * 16, dtype=np.float32).reshape(16, 24)),
    "cmyk.tif": COLOURS.convert("CMYK"),
    "colours.png": COLOURS,
}


@pytest.mark.parametrize("name", FORMS)
def test_an_image_in_memory_is_read_as_its_file_would_be(tmp_path, name):
    FORMS[name].save(tmp_path / name)
    (record,) = given_records([tmp_path / name])
    expected = record.load()
    for image in (FORMS[name], Image.open(tmp_path / name)):
        (held,) = given_records([image])
        assert held.load().mode == "RGB" and held.load().tobytes() == expected.tobytes()


def test_a_photo_in_memory_is_turned_upright_and_its_colours_become_srgb(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    COLOURS.save(tmp_path / "photo.jpg", exif=exif, icc_profile=profile)
    (record,) = given_records([tmp_path / "photo.jpg"])
    with Image.open(tmp_path / "photo.jpg") as opened:
        found = decode_image(opened)
    assert found.size == (16, 24) and found.tobytes() == record.load().tobytes()


@pytest.mark.slow
def test_the_snippet_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch, guide_path, digits):
    text = (ROOT / "docs/library.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", text.split("\n## ")[0], re.DOTALL)
    assert snippets and any(".variants(" in snippet for snippet in snippets)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    (tmp_path / "model_best.pth.tar").symlink_to(guide_path)
    for i, record in enumerate(digits[0]):
        record.load().resize((50, 40)).save(tmp_path / f"photo{i}.jpg")
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    for snippet in snippets:
        exec(compile(snippet, "docs/library.md", "exec"), found)
    assert [len(group) for group in found["variants"]] == [3] * 10
    assert all(isinstance(image, Image.Image) for group in found["variants"] for image in group)
