"""Energies beside DistDiff's own, and sums of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import expand
from distdiff.config import DistDiffConfig
from distdiff.energy import ChamferEnergy, DecodedEnergy, EntropyEnergy, ImageEnergy
from distdiff.prototypes import Prototypes
from distdiff.sampler import DistDiffSampler
from expansion.classifier.backbones import Classifier
from expansion.common.errors import InputError
from tests.helpers.distdiff_parts import generators, make_batch, unit

REFERENCES = [unit(3, 4, seed=5), unit(2, 4, seed=6)]


def chamfer(group: np.ndarray, real: np.ndarray) -> float:
    """The two-sided distance, from its definition."""
    distances = np.array([[np.linalg.norm(f - r) for r in real] for f in group])
    return distances.min(axis=1).mean() + distances.min(axis=0).mean()


def test_the_chamfer_energy_of_a_group_has_the_two_sided_distance_as_its_mean():
    features = unit(5, 4, seed=7)
    targets = torch.tensor([0, 0, 0, 1, 1])
    energy = ChamferEnergy(REFERENCES)(features, features[:, :0], targets, [2, 1, 2])
    for rows in (slice(0, 2), slice(2, 3), slice(3, 5)):
        expected = chamfer(features[rows].numpy(), REFERENCES[int(targets[rows][0])].numpy())
        assert energy[rows].mean().item() == pytest.approx(expected, rel=1e-5)


def test_an_image_lowers_the_chamfer_distance_by_covering_what_others_leave():
    """Two equal images beside one of two real ones: one of them is drawn to the other real one."""
    real = torch.eye(2)
    features = F.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.2]]), dim=-1).requires_grad_()
    energy = ChamferEnergy([real])(features, features[:, :0], torch.zeros(2, dtype=int), [2])
    (gradient,) = torch.autograd.grad(energy.sum(), features)
    assert gradient[1] @ torch.tensor([-1.0, 1.0]) < 0  # the nearer one moves towards (0, 1)
    assert gradient[0] @ torch.tensor([-1.0, 1.0]) > 0  # the other one stays with (1, 0)


def test_lowering_the_entropy_energy_makes_the_guide_unsure():
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    energy = EntropyEnergy()(logits, logits, torch.zeros(2), [1, 1])
    p = logits.detach().softmax(dim=1)
    torch.testing.assert_close(energy.detach(), (p * p.log()).sum(dim=1))
    (gradient,) = torch.autograd.grad(energy.sum(), logits)
    assert gradient[0, 0] > 0 and torch.allclose(gradient[1], torch.zeros(3), atol=1e-6)


def config(energy: str, **options) -> DistDiffConfig:
    shared = {"num_inference_steps": 10, "guidance_scale": 3.0, "guidance_step": 4}
    return DistDiffConfig(energy=energy, encoder_weight_path="guide", **{**shared, **options})


@pytest.fixture(scope="module")
def guide() -> Classifier:
    torch.manual_seed(3)
    return Classifier("resnet10_tiny", 10, 32).eval().requires_grad_(False)


PROTOTYPES = Prototypes(unit(10, 128, seed=1), unit(10, 3, 128, seed=2))
REAL = [unit(4, 128, seed=10 + label) for label in range(10)]


def test_energies_add_up_with_their_weights(guide):
    decoded = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    targets, groups = torch.tensor([1, 1, 2, 2]), [2, 2]

    def total(energy: str) -> Tensor:
        return ImageEnergy(guide, PROTOTYPES, config(energy), REAL)(decoded, targets, groups)

    parts = [total("prototypes"), total("chamfer"), total("entropy")]
    together = total("prototypes:1+chamfer:0.5+entropy:-0.1")
    torch.testing.assert_close(together, parts[0] + 0.5 * parts[1] - 0.1 * parts[2])
    assert len({round(float(part[0]), 4) for part in parts}) == 3


@pytest.mark.parametrize("singly", [False, True])
def test_groups_are_decoded_whole_and_have_the_plain_gradient(monkeypatch, singly):
    monkeypatch.setattr("expansion.diffusion.encoding.LATENTS_AT_ONCE", 3 * 4)
    sizes: list[int] = []

    def decode(latents: Tensor) -> Tensor:
        sizes.append(len(latents))
        return latents.sin()

    def energy(images: Tensor, targets: Tensor, groups: list[int]) -> Tensor:
        parts = images.flatten(1).split(groups)
        return torch.cat([part.square().sum(dim=1) * part.sum() for part in parts])

    start = torch.randn(5, 4, 2, 2, generator=generators()[0]).requires_grad_()
    decoded = DecodedEnergy(decode, energy, loss_scale=64)
    decoded.singly = singly
    found = decoded([start * 2], torch.arange(5), [2, 1, 2])
    assert sizes == ([2, 1, 2] if singly else [3, 2])
    (gradient,) = torch.autograd.grad(found.sum(), start)
    whole = energy((start * 2).sin(), torch.arange(5), [2, 1, 2])
    torch.testing.assert_close(gradient, torch.autograd.grad(whole.sum(), start)[0])


def test_chamfer_guidance_does_not_depend_on_other_groups(pipeline, guide):
    sampler = DistDiffSampler(pipeline, config("chamfer", group_size=2, rho=1.0), guide)
    sampler.use_prototypes(PROTOTYPES, REAL)
    batch = make_batch()
    object.__setattr__(batch, "targets", torch.tensor([1, 1, 3, 3]))
    together = sampler.sample(batch, generators())
    for rows in ((0, 2), (2, 4)):
        alone = sampler.sample(batch.part(*rows), generators()[slice(*rows)])
        torch.testing.assert_close(alone.images, together.images[slice(*rows)], atol=1e-4, rtol=0)
        energies = alone.details["energy_start"], together.details["energy_start"][slice(*rows)]
        torch.testing.assert_close(*energies, atol=1e-4, rtol=0)
    half = sampler.sample(batch.part(0, 1), generators()[:1]).details["energy_start"]
    assert abs(half - together.details["energy_start"][0]) > 1e-3  # the neighbour counts


@pytest.mark.slow
@pytest.mark.parametrize("energy", ["chamfer --group_size 3", "prototypes:1+entropy:0.1"])
def test_shards_of_a_set_with_another_energy_make_the_same_images(
    digits_dir, guide_path, tmp_path, energy
):
    line = f"-d digits --data_dir {digits_dir} --method distdiff --shots 1 --device cpu"
    line += " --num_images_per_prompt 3 --num_inference_steps 6 --guidance_step 2 --batch_size 7"
    line += f" --encoder_weight_path {guide_path} --energy {energy}"
    for folder, shards in (("whole", ["0/1"]), ("parts", ["1/2", "0/2"])):
        for shard in shards:
            split, total = shard.split("/")
            options = f" --output_dir {tmp_path / folder} --split {split} --total_split {total}"
            assert not expand.main((line + options).split())
    names = [json.loads(row)["file_name"] for row in open(tmp_path / "whole" / "metadata.jsonl")]
    assert len(names) == 30
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


@pytest.mark.parametrize(
    "energy, options, message",
    [
        ("chamfre", {}, "unknown energy 'chamfre'"),
        ("prototypes+prototypes", {}, "prototypes occurs twice"),
        ("entropy:much", {}, "write NAME:WEIGHT"),
        ("entropy:nan", {}, "write NAME:WEIGHT"),
        ("entropy", {"energy_compat": "released"}, "released is for prototypes alone"),
        ("chamfer", {"group_size": 0}, "group_size 0"),
        ("prototypes", {"group_size": 2}, "group_size 2 is for the energy chamfer"),
        ("chamfer", {"optimize_targets": "none"}, "optimize_targets none is plain img2img"),
    ],
)
def test_an_energy_that_cannot_be_is_refused_in_one_line(energy, options, message):
    with pytest.raises(InputError, match=message):
        config(energy, **options)
