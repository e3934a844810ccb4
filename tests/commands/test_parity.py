"""What the released codes computed (tests/parity/README.md): DistDiff to 1e-6, DreamDA to 1e-5.

On a CPU like that of the numbers (AVX-512, one thread) 1e-6 holds for each element. Other CPUs and
more threads sum in another order, and a gradient step grows what comes of that: up to 3e-6 was seen
with AVX2, 2e-5 with SSE alone. So the root mean square over an array is compared, and more loosely
where the arithmetic is known to be another.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdiff.config import DistDiffConfig
from distdiff.guidance import Guidance, draw_transform
from distdiff.prototypes import Prototypes
from distdiff.sampler import DistDiffSampler
from dreamda.config import DreamDAConfig
from dreamda.sampler import DreamDASampler
from expansion.common.errors import InputError
from expansion.diffusion.conditioning import Conditioning
from expansion.diffusion.samples import Batch
from tests.conftest import ROOT

DATA = ROOT / "tests" / "parity"
DREAMDA = {"atol": 1e-5, "rtol": 1e-5}


def numbers(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


GIVEN = numbers("distdiff_released")
DIRECT = numbers("distdiff_direct_released")
SEVEN = numbers("dreamda_released")
VARIANTS = numbers("dreamda_variants_released")


def like_the_numbers() -> bool:
    """Whether this process sums as the one that computed the numbers did."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.get_num_threads() == 1


def assert_close_to_released(found: Tensor, expected: Tensor) -> None:
    """DistDiff: root mean square of the errors of an array of about 1, and the largest of them."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    tolerance = 1e-6 if like_the_numbers() else 2e-5
    errors = found - expected
    assert errors.square().mean().sqrt() <= tolerance * max(1.0, expected.square().mean().sqrt())
    assert errors.abs().max() <= 10 * tolerance


def tensor(value: np.ndarray) -> Tensor:
    return torch.from_numpy(np.atleast_1d(value))


class ConvGuide(nn.Module):
    """The guide of the released numbers."""

    image_size, num_classes = 224, 10

    def features(self, pixels: Tensor) -> Tensor:
        weight, bias = tensor(GIVEN["conv_weight"]), tensor(GIVEN["conv_bias"])
        return F.conv2d(pixels, weight, bias, stride=2, padding=1).relu().mean((2, 3))


def one_image(prompts: list[str], label: int = 0) -> Batch:
    """Variants of one real image; its pixels are not looked at."""
    index = torch.zeros(len(prompts), dtype=torch.long)
    targets = torch.full((len(prompts),), label)
    return Batch(torch.zeros(1, 3, 32, 32), ("real",), index, prompts, targets, (5,))


def distdiff_sampler(pipeline, monkeypatch, **options) -> DistDiffSampler:
    """A sampler that is given the latents, the noise and the embeddings of the released run."""
    config = DistDiffConfig(
        encoder_weight_path="guide", loss_scale=1.0, energy_compat="released", **options
    )
    sampler = DistDiffSampler(pipeline, config, ConvGuide())
    prototypes = (tensor(GIVEN[name]) for name in ("class_prototypes", "group_prototypes"))
    sampler.use_prototypes(Prototypes(*prototypes))
    noise = tensor(GIVEN["noise"])
    monkeypatch.setattr("expansion.diffusion.img2img.randn_tensor", lambda *_, **__: noise)
    monkeypatch.setattr(sampler.codec, "encode", lambda *_: tensor(GIVEN["vae_latents"]))
    sampler.embed_prompts = lambda batch: Conditioning(tensor(GIVEN["prompt_embeds"]))
    return sampler


def spied(monkeypatch, name: str) -> list:
    """Arguments and results of every call of a method of guidance."""
    calls: list = []
    method = getattr(Guidance, name)

    def spy(guidance, *arguments):
        calls.append((arguments, method(guidance, *arguments)))
        return calls[-1][1]

    monkeypatch.setattr(Guidance, name, spy)
    return calls


def sample_and_latents(sampler, batch: Batch) -> tuple[Tensor, Tensor]:
    """The images, and the latents that were decoded to them."""
    decoded: list[Tensor] = []
    decode = sampler.codec.decode
    sampler.codec.decode = lambda latents: decode(decoded.append(latents) or latents)
    images = sampler.sample(batch, [torch.Generator()] * len(batch)).images
    return images, decoded[-1]


def digit_three() -> Batch:
    return one_image([str(GIVEN["prompt"])], int(GIVEN["label"]))


def test_the_prompt_s_embeddings_are_those_of_the_released_run(pipeline):
    sampler = DistDiffSampler(pipeline, DistDiffConfig(optimize_targets="none"), None)
    embeds = sampler.embed_prompts(digit_three()).prompt_embeds
    torch.testing.assert_close(embeds, tensor(GIVEN["prompt_embeds"]), atol=2e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("row", range(len(GIVEN["settings"])))
def test_distdiff_equals_the_released_code_at_every_stage(pipeline, monkeypatch, row):
    scale, rho, step, period, strength = GIVEN["settings"][row].tolist()
    found = {key[2:]: tensor(value) for key, value in GIVEN.items() if key.startswith(f"{row}_")}
    sampler = distdiff_sampler(
        pipeline,
        monkeypatch,
        guidance_scale=scale,
        rho=rho,
        guidance_step=int(step),
        guidance_period=int(period),
        strength=strength,
    )
    drawn = found["scale"].clone(), found["shift"].clone()
    monkeypatch.setattr("distdiff.guidance.draw_transform", lambda *_: drawn)
    calls = spied(monkeypatch, "transform")
    images, latents = sample_and_latents(sampler, digit_three())
    ((arguments, guided),) = calls
    assert_close_to_released(arguments[0], found["before_window"])
    assert_close_to_released(guided.figures["energy_start"], found["energy"])
    gradients = torch.cat([found["gradient_scale"], found["gradient_shift"]])
    norm = guided.figures["gradient_norm"]  # its rounding grows through three networks
    torch.testing.assert_close(norm, gradients.norm()[None], atol=1e-4, rtol=0)
    assert_close_to_released(guided.latents, found["projected"])
    assert_close_to_released(latents, found["final_latents"])
    assert_close_to_released(images, found["image"])


def direct_options(row: int) -> dict:
    """Settings of a row of the direct numbers."""
    scale, rho, step, period, strength, gs, ls, *acting = DIRECT["settings"][row].tolist()
    names = [n for n, on in zip(("global_prototype", "local_prototype"), acting, strict=True) if on]
    return {
        "guidance_type": "direct_guidance",
        "guidance_scale": scale,
        "rho": rho,
        "guidance_step": int(step),
        "guidance_period": int(period),
        "strength": strength,
        "gs": gs,
        "ls": ls,
        "optimize_targets": "-".join(names),
    }


@pytest.mark.slow
@pytest.mark.parametrize("row", range(len(DIRECT["settings"])))
def test_direct_guidance_equals_the_released_code(pipeline, monkeypatch, row):
    found = {key[2:]: tensor(value) for key, value in DIRECT.items() if key.startswith(f"{row}_")}
    sampler = distdiff_sampler(pipeline, monkeypatch, **direct_options(row))
    calls = spied(monkeypatch, "direct")
    images, latents = sample_and_latents(sampler, digit_three())
    ((arguments, guided),) = calls
    assert_close_to_released(arguments[0], found["before_window"])
    assert_close_to_released(guided.figures["energy_start"], found["energies"][:1])
    assert_close_to_released(guided.figures["energy_end"], found["energies"][-1:])
    assert_close_to_released(guided.latents, found["after_window"])
    assert_close_to_released(latents, found["final_latents"])
    assert_close_to_released(images, found["image"])


def test_direct_guidance_with_features_as_long_as_a_transform_s_would_be_seen(
    pipeline, monkeypatch
):
    """The tolerance is fine enough: without unit length, energies and latents are elsewhere."""
    sampler = distdiff_sampler(pipeline, monkeypatch, **direct_options(0))
    sampler.energy.energy.unit_length = False
    calls = spied(monkeypatch, "direct")
    sample_and_latents(sampler, digit_three())
    ((_, guided),) = calls
    assert (guided.figures["energy_start"] - tensor(DIRECT["0_energies"])[:1]).abs().max() > 0.1
    assert (guided.latents - tensor(DIRECT["0_after_window"])).abs().max() > 1e-3


class Drawn:
    """The random tensors of the released DreamDA run, in the order in which it drew them."""

    def __init__(self, num_variants: int):
        source = np.random.default_rng(42)

        def draw(shape: tuple[int, ...]) -> Tensor:
            return torch.from_numpy(source.standard_normal(shape).astype(np.float32))

        self.latents, self.x_T = draw((1, 4, 8, 8)), draw((1, 4, 8, 8))
        self.bottleneck, self.trajectory = [], []
        for _ in range(num_variants):
            features, noises = [], []
            for step in range(80):
                features.append(torch.cat([draw((1, 96, 4, 4)) for _ in range(2)]))
                if step < 79:
                    noises.append(draw((1, 4, 8, 8)))
            self.bottleneck.append(features)
            self.trajectory.append(noises)


def dreamda_sampler(pipeline, monkeypatch, drawn: Drawn, variants: list[int], **options):
    """A sampler for `variants` whose random numbers are the released run's."""
    sampler = DreamDASampler(pipeline, DreamDAConfig(**options))
    monkeypatch.setattr(sampler.codec, "encode_one", lambda *_: drawn.latents)
    shared = options.get("inversion_per", "image") == "image"
    inverted = variants[:1] if shared else variants
    noises = iter([n for v in inverted for n in (drawn.x_T, *drawn.trajectory[v])])
    monkeypatch.setattr("dreamda.inversion.randn_tensor", lambda *_, **__: next(noises))
    steps: Iterator[int] = iter(range(80))

    class KnownNoise:
        """In place of GaussianNoise: rows are the guidance rows of all variants, negative first."""

        def __init__(self, scale: float, **_):
            self.scale = scale

        def __call__(self, features: Tensor) -> Tensor:
            step = next(steps)
            rows = [drawn.bottleneck[v][step][row] for row in range(2) for v in variants]
            return features + self.scale * torch.stack(rows)

        def mean_std(self) -> Tensor:
            return torch.zeros(len(variants))

    monkeypatch.setattr("dreamda.sampler.GaussianNoise", KnownNoise)
    return sampler


def compare_z(sampler, corrections: Tensor, z: Tensor, steps: slice) -> None:
    """sigma_t z_t, which is what enters a step: the last sigma_t is small, and z_t a quotient."""
    torch.testing.assert_close(corrections, sampler.process.sigma[steps] * z, **DREAMDA)


@pytest.mark.slow
@pytest.mark.parametrize("inversion_per", ["image", "trajectory", "variant"])
def test_dreamda_equals_the_released_code(pipeline, monkeypatch, inversion_per):
    """One variant, for which the three are the same."""
    drawn, batch = Drawn(1), one_image(["a photo of the digit seven"])
    assert np.array_equal(drawn.latents.numpy(), SEVEN["vae_latents"])
    sampler = dreamda_sampler(pipeline, monkeypatch, drawn, [0], inversion_per=inversion_per)
    inversions, after, mean, invert = [], [], sampler._mean, sampler._invert
    monkeypatch.setattr(sampler, "_mean", lambda *given: after.append(given[2]) or mean(*given))
    monkeypatch.setattr(
        sampler, "_invert", lambda *given: inversions.extend(invert(*given)) or inversions
    )
    images, latents = sample_and_latents(sampler, batch)
    torch.testing.assert_close(inversions[0].start, tensor(SEVEN["x_T"]), **DREAMDA)
    compare_z(sampler, inversions[0].corrections, tensor(SEVEN["z"]), slice(None))
    whole = torch.cat([*after[1:], latents])
    torch.testing.assert_close(whole, tensor(SEVEN["latents"]), **DREAMDA)
    torch.testing.assert_close(images[0], tensor(SEVEN["image"]), **DREAMDA)


@pytest.mark.slow
def test_variants_that_share_x_T_alone_equal_the_released_code(pipeline, monkeypatch):
    """The released code's second and third variant: other noises after x_T, and so other z."""
    drawn = Drawn(3)
    options = {"inversion_per": "trajectory"}
    batch = one_image(["a photo of the digit seven"] * 2)
    sampler = dreamda_sampler(pipeline, monkeypatch, drawn, [1, 2], **options)
    for k, inversion in enumerate(sampler._invert(batch, [torch.Generator()] * 2), start=1):
        torch.testing.assert_close(inversion.start, tensor(SEVEN["x_T"]), **DREAMDA)
        steps = slice(None, None, 8)
        compare_z(sampler, inversion.corrections[steps], tensor(VARIANTS[f"{k}_z"]), steps)
    sampler = dreamda_sampler(pipeline, monkeypatch, drawn, [1, 2], **options)
    images, latents = sample_and_latents(sampler, batch)
    for k in (1, 2):
        torch.testing.assert_close(latents[k - 1], tensor(VARIANTS[f"{k}_latents"])[-1], **DREAMDA)
        torch.testing.assert_close(images[k - 1], tensor(VARIANTS[f"{k}_image"]), **DREAMDA)
    assert (images[0] - images[1]).abs().mean() > 0.05


def test_what_variants_share_comes_from_the_real_image_s_seed(pipeline):
    """`trajectory`: the latents and x_T; `image`: the noises too; `variant`: nothing."""
    batch = one_image(["a seven"] * 2)
    starts, corrections = {}, {}
    for kind in ("image", "trajectory", "variant"):
        config = DreamDAConfig(num_inference_steps=10, inversion_per=kind)
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        pair = DreamDASampler(pipeline, config)._invert(batch, generators)
        starts[kind] = [inversion.start for inversion in pair]
        corrections[kind] = [inversion.corrections for inversion in pair]
    equal = {k: [torch.equal(*starts[k]), torch.equal(*corrections[k])] for k in starts}
    assert equal == {"image": [True, True], "trajectory": [True, False], "variant": [False, False]}
    assert torch.equal(starts["trajectory"][0], starts["image"][0])


def test_an_inversion_without_noise_has_no_noises_to_draw_anew():
    with pytest.raises(InputError, match="inversion_per trajectory.*give image or variant"):
        DreamDAConfig(inversion="ddim", inversion_per="trajectory")


def test_the_transform_is_drawn_where_the_tests_put_the_released_numbers():
    """The tests replace this function; it must be what the guidance calls."""
    drawn = draw_transform(torch.zeros(1, 4, 8, 8), [torch.Generator().manual_seed(0)])
    assert [value.shape for value in drawn] == [torch.from_numpy(GIVEN["0_scale"]).shape] * 2
