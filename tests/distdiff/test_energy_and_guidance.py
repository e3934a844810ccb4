"""DistDiff's energies and guidance against values by hand and an implementation of its own."""

from __future__ import annotations

import math
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from distdiff.config import DistDiffConfig
from distdiff.energy import DecodedEnergy, ImageEnergy, nearest_groups
from distdiff.guidance import Guidance, gradient_step, project, transform_latents
from distdiff.prototypes import Prototypes
from distdiff.sampler import DistDiffSampler
from expansion.classifier.backbones import Classifier
from expansion.diffusion.img2img import Img2ImgSampler
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.diffusion.samples import Batch
from expansion.diffusion.stable_diffusion import load_pipeline
from tests.conftest import TINY_MODEL
from tests.helpers.distdiff_parts import (
    DIRECT,
    PAIR,
    PROMPTS,
    PROTOTYPES,
    distdiff,
    drawn_transform,
    generators,
    make_batch,
    make_sampler,
)

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class MeanColour(nn.Module):
    """Stub guide: the mean of each channel, (B, 3)."""

    image_size = 8

    def features(self, pixels: Tensor) -> Tensor:
        return pixels.mean(dim=(2, 3))


COLOUR_PROTOTYPES = Prototypes(
    torch.tensor([[1.0, 0, 0], [0, 0.6, 0.8]]),
    torch.tensor([[[0.0, 1, 0], [0, 0, 1]], [[0.8, 0.6, 0], [0, 0, 1]]]),
)


@pytest.mark.parametrize("compat", ["paper", "released"])
@pytest.mark.parametrize(
    "targets, gs, ls, weights",
    [
        ("global_prototype-local_prototype", 1, 1, (1, 1)),
        ("local_prototype-global_prototype", 0.5, 2, (0.5, 2)),
        ("global_prototype", 3, 1, (3, 0)),
        ("local_prototype", 1, 5, (0, 5)),
    ],
)
def test_energies_are_weighted_distances_to_the_class_and_the_nearest_group(
    compat, targets, gs, ls, weights
):
    """One image of one colour per class, as the decoder gives it; clamped beyond 1 (paper)."""
    config = distdiff(optimize_targets=targets, gs=gs, ls=ls, energy_compat=compat)
    decoded = torch.tensor([[0.2, -0.6, 1.5], [-3.0, 0.5, 0.1]])
    energy = ImageEnergy(MeanColour(), COLOUR_PROTOTYPES, config)
    actual = energy(decoded[..., None, None].expand(2, 3, 16, 16), torch.tensor([0, 1]))
    if compat == "released":
        features = [[0.2, -0.6, 1.5], [-3.0, 0.5, 0.1]]
    else:  # [0, 1] images (0.6, 0.2, 1) and (0, 0.75, 0.55), normalised, unit length
        raw = [
            [(0.6 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (1 - 0.406) / 0.225],
            [(0 - 0.485) / 0.229, (0.75 - 0.456) / 0.224, (0.55 - 0.406) / 0.225],
        ]
        features = [[x / math.hypot(*row) for x in row] for row in raw]
    groups = [
        [0, 0, 1],
        [0, 0, 1],
    ]  # largest cosine: third channel positive, the others' dot products below
    for row, feature in enumerate(features):
        to_class = math.dist(feature, COLOUR_PROTOTYPES.class_prototypes[row].tolist())
        to_group = math.dist(feature, groups[row])
        expected = weights[0] * to_class + weights[1] * to_group
        assert actual[row].item() == pytest.approx(expected, abs=1e-5)


def test_the_nearest_group_is_that_of_largest_cosine_whatever_the_feature_s_length():
    groups = torch.tensor([[[1.0, 0], [0.6, 0.8]], [[1.0, 0], [0.6, 0.8]]])
    features = torch.tensor([[50.0, 20.0], [0.01, 0.008]], requires_grad=True)
    # cosines with (1, 0) and (0.6, 0.8): 50 : 46 and 0.01 : 0.0124
    chosen = nearest_groups(features, groups)
    assert chosen.tolist() == [[1.0, 0.0], [pytest.approx(0.6), pytest.approx(0.8)]]
    assert not chosen.requires_grad


def test_decoded_images_are_reduced_to_the_guide_s_size_without_aliasing():
    """As Pillow's bicubic reduction, which is antialiased."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    small = np.asarray(Image.fromarray(pixels).resize((8, 8), Image.Resampling.BICUBIC)) / 255
    expected = ((torch.from_numpy(small).permute(2, 0, 1) - MEAN) / STD).flatten().float()
    flat = SimpleNamespace(image_size=8, features=lambda x: x.flatten(1))
    energy = ImageEnergy(flat, COLOUR_PROTOTYPES, distdiff())
    decoded = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    torch.testing.assert_close(
        energy.features(decoded)[0], F.normalize(expected, dim=0), atol=5e-3, rtol=0
    )


class ByHand:
    """DistDiff as METHODS 1.3 tells it, in plain loops and with its own noise schedule."""

    def __init__(self, pipeline, guide, config: DistDiffConfig):
        self.pipeline, self.guide, self.config = pipeline, guide, config
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.a = (1 - betas).cumprod(0).tolist()

    def ddim(self, z: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """z_{t-100} and x0hat."""
        if self.config.guidance_scale > 1:
            e_u, e_c = (self.pipeline.unet(z, t, e).sample for e in (self.negative, self.embeds))
            e = e_u + self.config.guidance_scale * (e_c - e_u)
        else:
            e = self.pipeline.unet(z, t, self.embeds).sample
        a, a_p = self.a[t], self.a[max(t - 100, 0)]
        x0 = (z - math.sqrt(1 - a) * e) / math.sqrt(a)
        return math.sqrt(a_p) * x0 + math.sqrt(1 - a_p) * e, x0

    def energy(self, x0: Tensor) -> Tensor:
        config = self.config
        x = self.pipeline.vae.decode(x0 / 0.18215).sample
        if config.energy_compat == "released":
            f = self.guide.features(x)
            if config.guidance_type == "direct_guidance":
                f = f / f.norm(dim=1, keepdim=True)
        else:
            f = self.guide.features(((x / 2 + 0.5).clamp(0, 1) - MEAN) / STD)
            f = f / f.norm(dim=1, keepdim=True)
        total = torch.zeros(len(f))
        if "global_prototype" in config.targets:
            total = total + config.gs * (f - PROTOTYPES.class_prototypes[self.labels]).norm(dim=1)
        if "local_prototype" in config.targets:
            groups = PROTOTYPES.group_prototypes[self.labels]
            j = (groups * f[:, None]).sum(-1).argmax(1)
            total = total + config.ls * (f - groups[torch.arange(len(f)), j]).norm(dim=1)
        return total

    def look_ahead(self, z: Tensor, window: list[int]) -> Tensor:
        energies = []
        for t in window:
            z, x0 = self.ddim(z, t)
            energies.append(self.energy(x0))
        return torch.stack(energies).mean(0)

    def transform(
        self, z: Tensor, window: list[int], drawn: list
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        w, b = drawn_transform(drawn)
        figures = {"energy_unguided": self.look_ahead(z, window)}
        with torch.enable_grad():
            energy = self.look_ahead((1 + w.requires_grad_()) * z + b.requires_grad_(), window)
            steps = torch.autograd.grad(energy.sum(), (w, b))
        figures["energy_start"] = energy.detach()
        if config.rho_mode == "sign":
            steps = [g.sign() for g in steps]
        moved = (1 + w - config.rho * steps[0]) * z + (b - config.rho * steps[1])
        low, high = z - config.constraint_value, z + config.constraint_value
        z = torch.minimum(torch.maximum(moved, low), high).detach()
        return z, {**figures, "energy_end": self.look_ahead(z, window)}

    def direct(self, z: Tensor, t: int) -> Tensor:
        with torch.enable_grad():
            following, x0 = self.ddim(z.requires_grad_(), t)
            (g,) = torch.autograd.grad(self.energy(x0).sum(), z)
        return following.detach() - self.config.rho * g

    @torch.no_grad()
    def __call__(self, batch: Batch, drawn: list) -> tuple[Tensor, dict[str, Tensor]]:
        pipe, config, figures = self.pipeline, self.config, {}
        self.labels = batch.targets
        texts = [*batch.prompts], [""] * len(batch.prompts)
        self.embeds, self.negative = (
            pipe.encode_prompt(text, "cpu", 1, False)[0] for text in texts
        )
        posterior = pipe.vae.encode(batch.images[batch.source_index] * 2 - 1).latent_dist
        draw = [torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in drawn]) for _ in range(2)]
        z = 0.18215 * (posterior.mean + posterior.std * draw[0])
        z = math.sqrt(self.a[401]) * z + math.sqrt(1 - self.a[401]) * draw[1]
        times, opens = [401, 301, 201, 101, 1], 5 - config.guidance_step
        window = times[opens : opens + config.guidance_period]
        for t in times:
            if config.guidance_type == "transform_guidance" and t == window[0]:
                z, figures = self.transform(z, window, drawn)
            if config.guidance_type == "direct_guidance" and t in window:
                z = self.direct(z, t)
            else:
                z, _ = self.ddim(z, t)
        return (pipe.vae.decode(z / 0.18215).sample / 2 + 0.5).clamp(0, 1), figures


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rho": 0.0},
        {"loss_scale": 1.0},
        {"rho_mode": "sign", "rho": 0.1, "constraint_value": 0.8},
        {"energy_compat": "released", "guidance_scale": 1.0},
        {
            "optimize_targets": "local_prototype",
            "ls": 0.9,
            "guidance_period": 1,
            "guidance_step": 5,
        },
        {"constraint_value": 1e9, "rho": 0.5, "guidance_period": 4},
        {**DIRECT, "loss_scale": 3000.0},
        {**DIRECT, "guidance_period": 4, "optimize_targets": "global_prototype"},
        {**DIRECT, "energy_compat": "released", "gs": 0.5},
    ],
    ids=lambda options: " ".join(f"{k}={v}" for k, v in options.items()) or "default",
)
def test_guided_images_and_energies_equal_a_loop_by_hand(pipeline, guide, options):
    samples = make_sampler(pipeline, guide, **options).sample(PAIR, generators(2))
    images, figures = ByHand(pipeline, guide, distdiff(**options))(PAIR, generators(2))
    torch.testing.assert_close(samples.images, images, atol=1e-4, rtol=0)
    plain = Img2ImgSampler(pipeline, distdiff(**options)).sample(PAIR, generators(2)).images
    assert (plain - images).abs().amax(dim=(1, 2, 3)).min() > 1e-3  # guidance moved every image
    for name, values in figures.items():
        torch.testing.assert_close(samples.details[name], values, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_gradient_agrees_with_finite_differences_in_float64(monkeypatch):
    """dE/d(w, b) through guide, decoder and two U-Net steps, as `transform` has it, per image."""
    pipeline = load_pipeline(str(TINY_MODEL))
    sampler = DistDiffSampler(pipeline, distdiff(rho=1.0, constraint_value=1e9), None)
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # the 16-bit code's casts to float32
    for part in (pipeline.unet, pipeline.vae):
        part.double()
    torch.manual_seed(3)
    sampler.guide = Classifier("resnet10_tiny", 10, 32).eval().requires_grad_(False).double()
    sampler.use_prototypes(
        Prototypes(PROTOTYPES.class_prototypes.double(), PROTOTYPES.group_prototypes.double())
    )
    z = torch.randn(2, 4, 8, 8, generator=generators()[0]).double()
    embeds = sampler.prompt_encoder(PROMPTS[:2], "").map(Tensor.double)
    labels = torch.tensor([1, 2])
    window = [301, 201]
    w, b = (draw.double() for draw in drawn_transform(generators(2)))
    joint, slopes, eps = torch.cat([w, b], dim=1), [], 1e-5
    for i in range(8):
        ends = []
        for sign in (1, -1):
            moved = joint.clone()
            moved[:, i] += sign * eps
            with torch.no_grad():
                start = transform_latents(z, moved[:, :4], moved[:, 4:])
                ends.append(sampler.guidance().look_ahead_energy(start, window, embeds, labels))
        slopes.append((ends[0] - ends[1]) / (2 * eps))
    g_w, g_b = torch.stack(slopes, dim=1).view(2, 8, 1, 1).split(4, dim=1)
    guided = sampler.guidance().transform(z, window, embeds, labels, generators(2))
    assert guided.latents.dtype == torch.float64
    applied = (1 + w) * z + b - guided.latents  # = g_w z + g_b
    expected = g_w * z + g_b
    error = (applied - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert error.max() < 1e-4 and expected.abs().max() > 0.01


@pytest.mark.parametrize(
    "latents", [torch.randn(2, 4, 8, 8) * 3, torch.tensor([1e30, -1e30, 0.0, -5.0])]
)
@pytest.mark.parametrize("radius", [0.0, 0.2, 4.0])
def test_the_projection_never_leaves_the_ball(latents, radius):
    center = torch.linspace(-3, 3, latents.numel()).view(latents.shape)
    for candidate in (latents, center + 0.05, center * torch.inf, center.flip(0)):
        candidate = candidate.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        projected = project(candidate, center, radius)
        assert (projected - center).abs().max() <= radius * (1 + 1e-5)
        inside = (candidate - center).abs() <= radius
        torch.testing.assert_close(projected[inside], candidate[inside])
        if radius == 0:
            assert torch.equal(projected, center)


@pytest.mark.parametrize(
    "mode, expected",
    [
        ("raw", [[6.0, -8.0], [0.0, 0.0], [0.0, 2.0]]),
        ("sign", [[2.0, -2.0], [0.0, 0.0], [0.0, 2.0]]),
        ("unit", [[1.2, -1.6], [0.0, 0.0], [0.0, 2.0]]),
    ],
)
def test_the_step_is_the_gradient_its_sign_or_its_direction_per_image(mode, expected):
    gradient = torch.tensor([[3.0, -4.0], [0.0, 0.0], [0.0, 1.0]]).view(3, 2, 1, 1)
    step = gradient_step(gradient, rho=2.0, mode=mode)
    torch.testing.assert_close(step.flatten(1), torch.tensor(expected))


@pytest.mark.parametrize("options", [{"constraint_value": 0.0}, {"optimize_targets": "none"}])
def test_no_room_or_no_target_equals_img2img_bit_for_bit(pipeline, guide, options):
    config = SamplerConfig(num_inference_steps=10, guidance_scale=3.0)
    plain = Img2ImgSampler(pipeline, config).sample(PAIR, generators(2)).images
    guided = make_sampler(pipeline, guide, **options).sample(PAIR, generators(2)).images
    assert torch.equal(plain, guided)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"rho": 1.0}, DIRECT])
def test_an_image_alone_and_in_a_batch_is_the_same(pipeline, guide, options):
    sampler = make_sampler(pipeline, guide, **options)
    together = sampler.sample(make_batch(), generators()).images
    alone = [sampler.sample(make_batch(slice(i, i + 1)), generators(1, i)).images for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_the_energy_of_decoded_latents_has_the_plain_gradient_and_keeps_no_images(
    monkeypatch, at_once
):
    monkeypatch.setattr("expansion.diffusion.encoding.LATENTS_AT_ONCE", at_once * 4)
    decoded: list[weakref.ref] = []

    def decode(latents: Tensor) -> Tensor:
        images = latents.sin() * 3
        decoded.append(weakref.ref(images))
        return images

    def energy(images: Tensor, targets: Tensor, groups: object = None) -> Tensor:
        return (images.square() * targets.view(-1, 1, 1, 1)).flatten(1).sum(dim=1).sqrt()

    start = torch.randn(5, 4, 2, 2, generator=generators()[0]).requires_grad_()
    targets = torch.arange(1, 6)
    predictions = [start * 2, start.square()]
    found = DecodedEnergy(decode, energy, loss_scale=1024)(predictions, targets)
    assert len(decoded) == 2 * -(-5 // at_once) and not any(
        image() is not None for image in decoded
    )
    expected = torch.stack([energy(decode(x), targets) for x in predictions]).mean(dim=0)
    torch.testing.assert_close(found, expected)
    weights = torch.arange(5.0)
    (gradient,) = torch.autograd.grad((weights * found).sum(), start, retain_graph=True)
    (plain,) = torch.autograd.grad((weights * expected).sum(), start)
    torch.testing.assert_close(gradient, plain)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("form", ["transform", "direct"])
def test_a_gradient_that_is_not_finite_skips_that_image_s_update_and_is_counted(form, bad):
    """The energy is the predicted latent's sum: dE/dw = sum of z, dE/db = 4 per 2x2 channel."""
    factor = torch.ones(2, 4, 2, 2)
    factor[0, 1, 0, 0] = bad
    guidance = Guidance(
        SimpleNamespace(run=lambda z, *given, **options: (z * 1, [z * 1])),
        lambda predictions, targets: (predictions[0] * factor).flatten(1).sum(1),
        distdiff(rho=0.5, constraint_value=1e9),
    )
    z = torch.randn(2, 4, 2, 2, generator=generators()[0])
    if form == "direct":
        guided = guidance.direct(z, [301], None, None)
        expected = torch.stack([z[0], z[1] - 0.5])
    else:
        guided = guidance.transform(z, [301], None, None, generators(2))
        w, b = drawn_transform(generators(2))
        expected = (1 + w) * z + b
        total = z[1].sum(dim=(1, 2), keepdim=True)
        expected[1] = (1 + w[1] - 0.5 * total) * z[1] + b[1] - 0.5 * 4
    torch.testing.assert_close(guided.latents, expected)
    assert guided.figures["update_skipped"].tolist() == [1.0, 0.0]
