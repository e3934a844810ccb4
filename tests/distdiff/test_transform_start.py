"""The transform of a latent starts at the paper's draw, inside the ball or at the latent."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from distdiff.guidance import Guidance, Guided
from expansion.common.errors import InputError
from expansion.diffusion.img2img import Img2ImgSampler
from tests.helpers.distdiff_parts import (
    DIRECT,
    PAIR,
    distdiff,
    drawn_transform,
    generators,
    make_sampler,
)

EPSILON = 0.2


def latents() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=generators()[0])


def guided(
    start: str | None, rho: float, drawing: list | None = None, epsilon: float = EPSILON
) -> Guided:
    """Guidance whose energy is the latent's sum: dE/dw = sum of z, dE/db = 64 per channel."""
    options = {} if start is None else {"transform_start": start}
    guidance = Guidance(
        SimpleNamespace(run=lambda z, *given, **options: (z * 1, [z * 1])),
        lambda predictions, targets: predictions[0].flatten(1).sum(1),
        distdiff(rho=rho, constraint_value=epsilon, log_energy=True, **options),
    )
    return guidance.transform(latents(), [301], None, None, drawing or generators(2))


@pytest.mark.parametrize("start", [None, "random"])
def test_by_default_the_draw_of_the_paper_takes_most_elements_to_the_edge(start):
    z, (w, b) = latents(), drawn_transform(generators(2))
    change = (1 + w) * z + b - z
    found = guided(start, rho=0.0)
    assert torch.equal(found.latents, z + change.clamp(-EPSILON, EPSILON))
    share = (change.abs() >= EPSILON).float().mean(dim=(1, 2, 3))
    assert torch.equal(found.figures["saturated_start"], share) and share.min() > 0.7


def test_from_the_identity_a_latent_without_a_step_stays_as_it_is_and_nothing_is_drawn():
    drawing = generators(2)
    found = guided("identity", rho=0.0, drawing=drawing)
    assert torch.equal(found.latents, latents())
    assert found.figures["saturated_start"].tolist() == [0.0, 0.0]
    assert torch.equal(found.figures["energy_start"], latents().flatten(1).sum(1))
    assert torch.equal(
        torch.rand(3, generator=drawing[0]), torch.rand(3, generator=generators()[0])
    )


def test_from_the_identity_the_gradient_alone_moves_the_latent():
    z, rho = latents(), 1e-4
    total = z.sum(dim=(2, 3), keepdim=True)
    found = guided("identity", rho=rho)
    torch.testing.assert_close(found.latents, (1 - rho * total) * z - rho * 64)
    assert found.figures["saturated"].max() == 0 and found.figures["changed_by_update"].min() > 0.9


def test_a_draw_inside_the_ball_is_that_of_the_paper_shrunk_channel_by_channel():
    z, (w, b) = latents(), drawn_transform(generators(2))
    found = guided("inside", rho=0.0)
    change, drawn = found.latents - z, w * z + b
    largest = drawn.abs().amax(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(change, drawn * (EPSILON / 2 / largest), atol=1e-6, rtol=0)
    assert found.figures["saturated_start"].tolist() == [0.0, 0.0]


def test_a_draw_that_lies_inside_the_ball_already_is_taken_as_it_is():
    far = guided("inside", rho=0.0, epsilon=1e9), guided("random", rho=0.0, epsilon=1e9)
    assert torch.equal(far[0].latents, far[1].latents)


@pytest.mark.parametrize("start, same", [("identity", True), ("inside", False)])
def test_images_without_a_step_are_img2img_s_from_the_identity_alone(pipeline, guide, start, same):
    config = distdiff(transform_start=start, rho=0.0)
    plain = Img2ImgSampler(pipeline, config).sample(PAIR, generators(2)).images
    sampler = make_sampler(pipeline, guide, transform_start=start, rho=0.0)
    assert torch.equal(sampler.sample(PAIR, generators(2)).images, plain) is same


def test_a_start_of_the_transform_is_refused_where_there_is_no_transform():
    with pytest.raises(InputError, match="transform_start inside is for guidance_type transform"):
        distdiff(transform_start="inside", **DIRECT)
