"""GIF-SD's one step by an implementation of its own, and what an image may not depend on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import InterpolationMode, hflip, rotate
from transformers import CLIPModel, CLIPTokenizer

from baselines.gif.config import GIFConfig
from baselines.gif.sampler import GIFSampler
from expansion.classifier.clip import ClipClassifier
from expansion.common.errors import InputError
from expansion.common.seeding import stable_seed
from expansion.diffusion.channel_transform import project, transform_latents
from expansion.diffusion.img2img import Img2ImgSampler
from expansion.diffusion.memory import FittingSampler
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.diffusion.samples import Batch
from expansion.diffusion.stable_diffusion import load_pipeline
from tests.conftest import TINY_MODEL

pytestmark = pytest.mark.slow

NAMES = ("ant", "bee", "sea cat")
FEW = {"num_inference_steps": 4, "guidance_scale": 3.0, "strength": 0.5}
STILL = {"rotation": 0.0, "flip": False}  # the real image as it is
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@pytest.fixture(scope="module")
def clip(clip_dir) -> ClipClassifier:
    return ClipClassifier.load(str(clip_dir), NAMES, ["This is a photo of a {}"])


@pytest.fixture
def make(pipeline, clip):
    return lambda **options: GIFSampler(pipeline, GIFConfig(**{**FEW, **options}), clip)


def make_batch(index: list[int], numbers: list[int], first: int = 0) -> Batch:
    """Variants `numbers` of three real images, of which `index` says which."""
    coarse = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    return Batch(
        images=F.interpolate(coarse, (32, 32), mode="bilinear"),
        sources=["a", "b", "c"],
        source_index=torch.tensor(index),
        prompts=[f"a sketch of {k}" for k in range(first, first + len(index))],
        targets=torch.tensor([1, 2, 0])[index],
        source_seeds=[7, 8, 9],
        numbers=numbers,
    )


WHOLE = make_batch([0, 0, 0, 1, 1, 2], [0, 1, 2, 0, 1, 1])  # groups of 2, 1, 2 and 1


def generators(rows: range = range(6)) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(70 + i) for i in rows]


def figures(vae, clip_dir, latents: Tensor, image: Tensor, options: dict) -> tuple[Tensor, ...]:
    """Score of a group, and its parts; with transformers and torch alone."""
    model, tokenizer = CLIPModel.from_pretrained(clip_dir), CLIPTokenizer.from_pretrained(clip_dir)
    texts = [f"This is a photo of a {name}" for name in NAMES]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")

    def features(images: Tensor, mean, std) -> Tensor:
        small = F.interpolate(images, (16, 16), mode="bicubic", antialias=True)
        shift, scale = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
        found = model.get_image_features((small - shift) / scale).pooler_output
        return found / found.norm(dim=1, keepdim=True)

    released = options.get("clip_compat") == "released"
    made = vae.decode(latents / vae.config.scaling_factor).sample
    made = ((made + 1) / 2).clamp(0, 1)
    of_made = features(made, *(((0,) * 3, (1,) * 3) if released else (CLIP_MEAN, CLIP_STD)))
    normal = (CIFAR_MEAN, CIFAR_STD) if released else (CLIP_MEAN, CLIP_STD)
    of_text = model.get_text_features(**tokens).pooler_output
    of_text = of_text / of_text.norm(dim=1, keepdim=True)
    scale = model.logit_scale.exp()
    real = (scale * features(image, *normal) @ of_text.T).softmax(dim=1).detach()
    odds = (scale * of_made @ of_text.T).softmax(dim=1)
    kept = options["label"] if options.get("class_label") == "label" else int(real.argmax())
    gained = -(odds * odds.log()).sum(dim=1) + (real * real.log()).sum()
    mean = of_made.mean(dim=0)
    if options.get("divergence") == "released":
        apart = -(mean.exp().sum().log()).expand(len(odds))
    else:
        p = mean.softmax(dim=0)
        apart = torch.stack([(p * (p / f.softmax(dim=0)).log()).sum() for f in of_made])
    return (gained + odds[:, kept] + apart).mean(), gained, odds[:, kept], apart


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip_compat": "released", "divergence": "released"},
        {"class_label": "label", "constraint_value": 4.0},
        {"rotation": 40.0, "flip": True},
    ],
    ids=["default", "released", "label", "turned"],
)
def test_a_step_is_that_of_an_implementation_of_its_own(pipeline, clip_dir, make, options):
    batch = make_batch([0, 0], [2, 3])  # the second group of the first image
    options = {**STILL, **options}
    samples = make(**options).sample(batch, generators(range(2)))
    # The real image as the group turns it, then img2img without a word of GIF.
    drawn = torch.Generator().manual_seed(stable_seed("turn", 7, 1))
    share, coin = torch.rand(2, generator=drawn).tolist()
    turned = rotate(batch.images, (2 * share - 1) * options["rotation"], InterpolationMode.NEAREST)
    turned = hflip(turned) if options["flip"] and coin < 0.5 else turned
    plain, drawn = Img2ImgSampler(pipeline, SamplerConfig(**FEW)), generators(range(2))
    with torch.no_grad():
        start, embeds = plain.start(dataclasses.replace(batch, images=turned), drawn)
        z, _ = plain.denoiser.run(start, plain.denoiser.timesteps, embeds)
    w = torch.stack([torch.rand(4, 1, 1, generator=g) for g in drawn]).requires_grad_()
    b = torch.stack([torch.randn(4, 1, 1, generator=g) for g in drawn]).requires_grad_()
    # One step up the score, whose real image is not turned.
    vae, radius = pipeline.vae, options.get("constraint_value", 0.8)
    seen = {**options, "label": 1}
    score, gained, kept, apart = figures(vae, clip_dir, z * (1 + w) + b, batch.images[:1], seen)
    towards = torch.autograd.grad(score, (w, b))
    with torch.no_grad():
        w, b = (x + 0.1 * g.sign() for x, g in zip((w, b), towards, strict=True))
        moved = torch.minimum(torch.maximum(z * (1 + w) + b, z - radius), z + radius)
        expected = (vae.decode(moved / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(samples.images, expected, atol=1e-4, rtol=0)
    details = samples.details
    assert details["score"].mean().item() == pytest.approx(score.item(), abs=1e-4)
    assert details["probability"].tolist() == pytest.approx(kept.tolist(), abs=1e-4)
    assert details["kl"].tolist() == pytest.approx(apart.tolist(), abs=1e-5)
    assert not details["update_skipped"].any()


def test_a_small_step_raises_the_score_of_every_group(make):
    sampler = make(**STILL, step_size=0.002)
    z = 2 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for seed in range(4):
        random = torch.Generator().manual_seed(seed)
        w = torch.rand(2, 4, 1, 1, generator=random)
        b = torch.randn(2, 4, 1, 1, generator=random)
        kept, real_entropy = torch.tensor([seed % 3] * 2), torch.zeros(2)
        gradient, before = sampler._gradient(z, w, b, real_entropy, kept)
        w_step, b_step = (0.002 * gradient.sign()).chunk(2, dim=1)
        _, after = sampler._gradient(z, w + w_step, b + b_step, real_entropy, kept)
        assert after.total.mean() > before.total.mean()


def test_latents_stay_in_their_ball_and_without_one_the_images_are_those_of_img2img(
    pipeline, make, monkeypatch
):
    decoded: list[Tensor] = []
    sampler = make(**STILL, constraint_value=0.3)
    decode = sampler.codec.decode
    monkeypatch.setattr(sampler.codec, "decode", lambda z: decoded.append(z) or decode(z))
    sampler.sample(WHOLE, generators())
    plain = make(**STILL, constraint_value=0.0)
    decode_plain = plain.codec.decode
    monkeypatch.setattr(plain.codec, "decode", lambda z: decoded.append(z) or decode_plain(z))
    unmoved = plain.sample(WHOLE, generators())
    distance = (decoded[0] - decoded[1]).abs()
    assert distance.max() <= 0.3 + 1e-6 and (distance > 0.29).float().mean() > 0.5
    same = Img2ImgSampler(pipeline, SamplerConfig(**FEW)).sample(WHOLE, generators())
    torch.testing.assert_close(unmoved.images, same.images, atol=1e-6, rtol=0)


def test_a_variant_that_is_alone_in_its_group_has_no_divergence(make):
    assert (make(**STILL).sample(WHOLE, generators()).details["kl"] == 0).tolist() == [
        *(False, False, True, False, False, True),
    ]
    assert not make(group_size=1).sample(WHOLE, generators()).details["kl"].any()


def test_a_group_depends_on_no_other_in_the_batch(make):
    sampler = make()
    whole = sampler.sample(WHOLE, generators())
    for first, last in ((0, 2), (2, 3), (3, 5), (5, 6)):
        part = make().sample(WHOLE.part(first, last), generators(range(first, last)))
        torch.testing.assert_close(part.images, whole.images[first:last], atol=2e-4, rtol=0)
        for name, values in whole.details.items():
            torch.testing.assert_close(part.details[name], values[first:last], atol=1e-4, rtol=1e-3)
    fitting = FittingSampler(sampler)
    fitting.largest = 2
    parts = fitting.sample(WHOLE, generators)
    torch.testing.assert_close(parts.images, whole.images, atol=2e-4, rtol=0)


def test_variants_of_a_group_do_depend_on_each_other(make):
    """Else nothing would be gained by computing them together."""
    sampler = make(**STILL)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    w, b = torch.rand(2, 4, 1, 1), torch.randn(2, 4, 1, 1)
    others = (torch.zeros(2), torch.zeros(2).long())
    together, _ = sampler._gradient(z, w, b, *others)
    alone, _ = sampler._gradient(z[:1], w[:1], b[:1], *(x[:1] for x in others))
    assert (together[:1] * 2 - alone).abs().max() > 1e-3 * alone.abs().max()


def test_memory_is_saved_twice_and_gradients_stay(make, pipeline):
    sampler = make()
    before = sampler.sample(WHOLE, generators())
    for recomputes in (False, True):
        assert sampler.save_memory() and sampler.recomputes == recomputes
        sizes: list[int] = []
        hook = pipeline.vae.decoder.register_forward_pre_hook(
            lambda module, inputs, sizes=sizes: sizes.append(len(inputs[0]))
        )
        after = sampler.sample(WHOLE, generators())
        hook.remove()
        assert set(sizes[:-1]) == {1} and sizes[-1] == 6  # for the gradient; for the images
        torch.testing.assert_close(after.images, before.images, atol=1e-5, rtol=0)
    assert not sampler.save_memory() and not pipeline.vae.is_gradient_checkpointing
    alone = make(group_size=1)
    assert alone.save_memory() and alone.recomputes and not alone.save_memory()


def test_a_gradient_that_is_not_finite_leaves_out_the_step_of_its_variant_alone(make, monkeypatch):
    sampler, plain = make(**STILL), make(**STILL)
    gradient = sampler._gradient

    def damaged(*inputs):
        joint, terms = gradient(*inputs)
        joint[0, 3] = float("nan")
        return joint, terms

    monkeypatch.setattr(sampler, "_gradient", damaged)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    w, b = torch.rand(2, 4, 1, 1), torch.randn(2, 4, 1, 1)
    moved, found = sampler._move(WHOLE, range(0, 2), z, w, b)
    whole, _ = plain._move(WHOLE, range(0, 2), z, w, b)
    assert found["update_skipped"].tolist() == [1, 0] and torch.equal(moved[1], whole[1])
    assert torch.equal(moved[0], project(transform_latents(z, w, b), z, 0.8)[0])
    assert not torch.equal(moved[0], whole[0])


def test_the_variants_of_a_group_start_from_one_turned_image(make):
    sampler = make(group_size=2)
    turned = sampler._turned(WHOLE, WHOLE.groups(2))
    assert len(turned.images) == 4 and turned.source_index.tolist() == [0, 0, 1, 2, 2, 3]
    assert [turned.files[i] for i in turned.source_index] == list("aaabbc")
    assert len(set(turned.sources)) == 4
    part = WHOLE.part(2, 5)
    again = make(group_size=2)._turned(part, part.groups(2))
    assert torch.equal(again.images, turned.images[1:3]) and again.sources == turned.sources[1:3]
    # Another run seed draws anew, under names that the encoder does not confuse.
    other = dataclasses.replace(WHOLE, source_seeds=[17, 18, 19])
    assert not {*sampler._turned(other, WHOLE.groups(2)).sources} & {*turned.sources}
    assert make(**STILL)._turned(WHOLE, WHOLE.groups(2)) is WHOLE


def test_angles_fill_their_range_and_half_the_images_are_mirrored(make):
    sampler, drawn = make(rotation=15.0), []
    for seed in range(200):
        batch = dataclasses.replace(WHOLE, source_seeds=[seed] * 3).part(0, 2)
        (name,) = sampler._turned(batch, batch.groups(2)).sources
        drawn.append((float(name.split()[2]), "mirrored" in name))
    angles = [angle for angle, _ in drawn]
    assert -15 <= min(angles) < -13 and 13 < max(angles) <= 15 and abs(np.mean(angles)) < 2
    assert 75 < sum(mirrored for _, mirrored in drawn) < 125


def test_each_variant_of_a_random_crop_has_its_own_image_in_the_group(make):
    """Units hold groups by file name, so batches must do so too."""
    batch = make_batch([0, 1], [0, 1])
    cropped = dataclasses.replace(batch, sources=["a#0", "a#1", "c"], files=["a", "a", "c"])
    assert cropped.groups(2) == [range(0, 2)]
    samples = make(resize_mode="random_crop").sample(cropped, generators(range(2)))
    assert samples.details["kl"].min() > 0


@pytest.mark.parametrize("steps, strength, rows", [(4, 0.5, 4), (10, 0.9, 18)])
def test_the_rows_of_the_unet_are_those_that_are_told(pipeline, make, steps, strength, rows):
    sampler = make(num_inference_steps=steps, strength=strength)
    counted: list[int] = []
    hook = pipeline.unet.register_forward_pre_hook(
        lambda module, inputs: counted.append(len(inputs[0]))
    )
    sampler.sample(WHOLE, generators())
    hook.remove()
    assert sum(counted) == 6 * sampler.config.unet_rows_per_image(3) == 6 * rows


def test_sixteen_bits_keep_the_gradient_and_clip_stays_in_32(clip):
    halved = load_pipeline(str(TINY_MODEL), "bfloat16")
    sampler = GIFSampler(halved, GIFConfig(**FEW), clip)
    samples = sampler.sample(WHOLE.part(0, 2), generators(range(2)))
    assert clip.model.dtype == torch.float32 and samples.images.isfinite().all()
    z, w = torch.randn(2, 4, 8, 8), torch.rand(2, 4, 1, 1)
    joint, _ = sampler._gradient(z, w, w, torch.zeros(2), torch.zeros(2).long())
    assert joint.dtype == torch.float32 and joint.isfinite().all() and (joint != 0).all()


def test_labels_are_checked_where_the_score_needs_them(make):
    make().check_labels(None)
    for labels in (None, [0, 3]):
        with pytest.raises(InputError, match="class_label label|labels 3: CLIP was told 0 to 2"):
            make(class_label="label").check_labels(labels)


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("group_size", 0, "group_size 0: give 1 or more"),
        ("constraint_value", -1.0, "constraint_value -1.0: give 0 or more"),
        ("step_size", -1.0, "step_size -1.0: give 0 or more"),
        ("rotation", 200.0, "rotation 200.0: give 0 to 180 degrees"),
        ("clip_template", "a photo", "write {} once"),
    ],
)
def test_settings_that_mean_nothing_are_refused(option, value, message):
    with pytest.raises(InputError, match=message):
        GIFConfig(**{option: value})
