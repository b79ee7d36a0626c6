# SPDX-License-Identifier: Apache-2.0
"""Refinement moves where theory says, and keeps victims apart."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from lightning_recon.attack import LargeDenoiser, SmallDenoiser, TotalVariation
from lightning_recon.exchange import ClientUpdate, Task
from lightning_recon.priors.dct import CosineTransform
from lightning_recon.priors.denoisers import Denoiser
from lightning_recon.priors.image_statistics import public_statistics
from lightning_recon.structure.coding.leaked_moments import moments
from lightning_recon.structure.refinement import _TRUST as TRUST
from lightning_recon.structure.refinement import LeakedMoments, MomentMatching, PlugAndPlay, Posterior
from lightning_recon.structure.water_filling import WaterFilling

SIZE, COUNT = 16, 4
STATISTICS = public_statistics(SIZE, SIZE, subjects=False)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


def channel(noise: float = 0.05, dtype: torch.dtype = torch.float64) -> tuple[Posterior, Tensor, Tensor]:
    """A posterior as Wiener's filter leaves it, with the observed coefficients and their noise variance.

    High frequencies were not sent: there the posterior is the prior.
    """
    prior = STATISTICS.variance.to(dtype).expand(COUNT, -1, -1, -1)
    variance = torch.full_like(prior, noise**2)
    variance[..., SIZE // 2 :, :] = torch.inf
    data = prior.sqrt() * torch.randn_like(prior) + noise * torch.randn_like(prior)
    gain = prior / (prior + variance)
    posterior = Posterior(gain * data, prior * (1 - gain), prior, torch.zeros_like(prior))
    return posterior, data, variance


def identity(x: Tensor, sigma: Tensor) -> Tensor:
    return x


def splitting(posterior: Posterior, denoiser: Denoiser = identity, chosen: slice = slice(None)) -> PlugAndPlay:
    dtype = posterior.mean.dtype
    own = Posterior(*(value[chosen] for value in vars(posterior).values()))
    return PlugAndPlay(own, CosineTransform(STATISTICS.mean.to(dtype), STATISTICS.colour.to(dtype)), denoiser)


def gradient(of: PlugAndPlay | MomentMatching, dummies: Tensor) -> Tensor:
    dummies = dummies.clone().requires_grad_()
    return torch.autograd.grad(of.losses(dummies, 0).sum(), dummies)[0]


@pytest.mark.parametrize("step", [0, 3])
def test_the_fit_is_the_exact_minimiser(step: int) -> None:
    posterior, data, noise = channel()
    dummies = torch.randn_like(posterior.mean)
    steps = splitting(posterior)
    found, trust = steps.fitted(dummies, step), steps.trust(step)
    deviation = posterior.variance.sqrt()
    decoded = posterior.mean + deviation * dummies

    def energy(coefficients: Tensor) -> Tensor:
        misfit = (coefficients - data) ** 2 / noise
        return 0.5 * (misfit + (coefficients - decoded) ** 2 / (trust * posterior.variance)).sum()

    coefficients = (posterior.mean + deviation * found).requires_grad_()
    slope = torch.autograd.grad(energy(coefficients), coefficients)[0]
    assert float((slope * deviation).abs().max()) < 1e-9
    # What was not sent is left to the denoiser.
    torch.testing.assert_close(found[..., SIZE // 2 :, :], dummies[..., SIZE // 2 :, :])


def test_without_a_row_the_identity_changes_nothing() -> None:
    posterior, _, _ = channel()
    unknown = replace(posterior, mean=torch.zeros_like(posterior.mean), variance=posterior.prior_variance)
    dummies = 0.01 * torch.randn_like(unknown.mean)
    torch.testing.assert_close(splitting(unknown).stepped(dummies, 0), dummies, rtol=0, atol=1e-6)


def test_a_gaussian_denoiser_comes_to_the_posterior_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_recon.structure.refinement._GREY_LEVEL", 0.0)
    monkeypatch.setattr("lightning_recon.structure.refinement._AS_LARGE_AS_IMAGES", float("inf"))
    # A white Gaussian source behind even white noise, inside [0, 1]: everything is known in closed form.
    variance, noise = torch.full((COUNT, 3, SIZE, SIZE), 4e-4, dtype=torch.float64), 3e-4
    mean_image = torch.full((3, SIZE, SIZE), 0.5, dtype=torch.float64)
    data = (variance + noise).sqrt() * torch.randn_like(variance)
    wrong = 10 * variance  # the decoding believed in more contrast than there is
    gain = wrong / (wrong + noise)
    posterior = Posterior(gain * data, wrong * (1 - gain), wrong, torch.zeros_like(wrong))

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        # The splitting adds its own variance to the denoiser's prior.
        return mean_image + (x - mean_image) * (1 - TRUST * posterior.variance / variance)

    steps = PlugAndPlay(posterior, CosineTransform(mean_image, torch.eye(3, dtype=torch.float64)), denoiser)
    dummies = torch.zeros_like(variance)
    for _ in range(200):
        dummies = steps.stepped(dummies, 0)
    found = posterior.mean + posterior.variance.sqrt() * steps.fitted(dummies, 0)
    torch.testing.assert_close(found, data * variance / (variance + noise), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("denoiser", [TotalVariation(iterations=5), SmallDenoiser().eval()])
def test_refinement_comes_to_rest(denoiser: nn.Module) -> None:
    posterior, _, _ = channel(dtype=torch.float32)
    steps = splitting(posterior, denoiser)
    dummies, moved = torch.zeros_like(posterior.mean), []
    for step in range(40):
        dummies, before = steps.stepped(dummies, step), dummies
        moved.append(float((steps.images(dummies) - steps.images(before)).abs().max()))
    assert moved[-1] < 1e-3 < moved[0]


class Black(nn.Module):
    """A denoiser whose result is easily told from its input."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_a_denoiser_tells_up_to_which_errors_it_is_trusted() -> None:
    posterior, _, _ = channel()
    weights = []
    for largest in (None, 0.02, 1.0):
        denoiser = Black()
        if largest is not None:
            denoiser.largest_sigma = largest
        weights.append(splitting(posterior, denoiser)._denoiser_weight(0))
    without = splitting(posterior)._denoiser_weight(0)
    torch.testing.assert_close(weights[0], without)
    assert bool((weights[1] < weights[0]).all())
    assert bool((weights[0] < weights[2]).all())
    sigma = float(splitting(posterior).sigma[0])
    denoiser = Black()
    denoiser.largest_sigma = sigma
    halved = splitting(posterior, denoiser)._denoiser_weight(0)[0] / weights[2][0]
    assert float(halved) == pytest.approx(0.5, abs=1e-3)


def test_the_large_denoiser_is_the_better_one_where_the_noise_is_high(
    photographs: Callable[[int], Tensor], task: Callable[..., Task], release: Callable[..., ClientUpdate]
) -> None:
    size, structure, announced = 64, WaterFilling(), task(64, 1, 0.03)
    payload, images, statistics = structure.payload(announced), photographs(size), public_statistics(size, size, False)
    found = []
    for image in images:
        decoded = structure.decode(payload, announced, release(payload, announced, image[None]))
        assert isinstance(decoded.refinement, Posterior)
        found.append(decoded.refinement)
    posterior, errors = Posterior.joined(found), []
    for denoiser in (identity, SmallDenoiser().eval(), LargeDenoiser().eval()):
        with torch.no_grad():
            *_, last = PlugAndPlay(posterior, statistics.transform, denoiser).iterates(6)
        errors.append(float((last - images).square().mean()))
    assert errors[2] < 0.97 * errors[1] < 0.97 * errors[0]


def test_gradient_descent_with_step_one_goes_all_the_way() -> None:
    posterior, _, _ = channel()
    steps = splitting(posterior, TotalVariation(iterations=3))
    dummies = torch.randn_like(posterior.mean)
    torch.testing.assert_close(dummies - gradient(steps, dummies), steps.stepped(dummies, 0))


def test_the_denoiser_is_told_the_error_that_decoding_left() -> None:
    posterior, _, _ = channel()
    told: list[Tensor] = []

    def listener(x: Tensor, sigma: Tensor) -> Tensor:
        told.append(sigma)
        assert 0 <= x.min() <= x.max() <= 1
        return x

    steps = splitting(posterior, listener)
    for step in range(40):
        steps.stepped(torch.zeros_like(posterior.mean), step)
    torch.testing.assert_close(told[0], posterior.variance.mean(dim=(1, 2, 3)).sqrt())
    assert all(bool((later <= earlier).all()) for earlier, later in pairwise(told))
    assert bool((told[-1] > 0).all())


def test_victims_do_not_influence_one_another() -> None:
    posterior, _, _ = channel(dtype=torch.float32)
    dummies, denoiser = torch.randn_like(posterior.mean), SmallDenoiser().eval()
    together = splitting(posterior, denoiser).stepped(dummies, 0)
    for index in range(COUNT):
        chosen = slice(index, index + 1)
        alone = splitting(posterior, denoiser, chosen).stepped(dummies[chosen], 0)
        torch.testing.assert_close(alone, together[chosen], rtol=1e-4, atol=1e-3)


def test_images_are_those_of_the_posterior_mean() -> None:
    posterior, _, _ = channel()
    images = splitting(posterior).images(torch.zeros_like(posterior.mean))
    back = STATISTICS.transform.analyse(images)
    torch.testing.assert_close(back, posterior.mean, rtol=0, atol=1e-5)


def test_every_refinement_names_its_objective_and_joins_updates() -> None:
    posterior, _, _ = channel(dtype=torch.float32)
    parts = [Posterior(*(value[chosen] for value in vars(posterior).values())) for chosen in (slice(0, 1), slice(1, 4))]
    joined = Posterior.joined(parts).to("cpu")
    objective = joined.objective(torch.zeros_like(joined.mean), STATISTICS.transform, identity)
    assert isinstance(objective, PlugAndPlay)
    assert not objective.needs_optimizer
    dummies, found = torch.zeros_like(posterior.mean), list(objective.iterates(2))
    for step, images in enumerate(found):
        torch.testing.assert_close(images, splitting(posterior).images(dummies).clamp(0, 1))
        dummies = splitting(posterior).stepped(dummies, step)
    assert len(found) == 3
    initial = torch.rand(2, 3, SIZE, SIZE)
    leaked = LeakedMoments.joined([LeakedMoments(moments(one[None])) for one in initial])
    matching = leaked.objective(initial, STATISTICS.transform, identity)
    assert isinstance(matching, MomentMatching)
    assert matching.needs_optimizer
    assert [torch.equal(images, initial) for images in matching.iterates(5)] == [True]


def test_moments_are_matched_where_they_were_leaked() -> None:
    initial = torch.rand(2, 3, SIZE, SIZE)
    matching = MomentMatching(initial, moments(initial))
    start = torch.zeros_like(initial)
    assert matching.losses(start, 0).tolist() == [0.0, 0.0]
    assert not bool(gradient(matching, start).any())
    assert bool((matching.losses(start + 0.01 * torch.randn_like(start), 0) > 0).all())


def test_each_moment_is_weighed_as_in_the_paper() -> None:
    initial = torch.rand(1, 3, SIZE, SIZE)
    for index, weight in enumerate((1e6, 2e4, 1e-6)):
        leaked = moments(initial)
        leaked[0, index, 1] += 0.5
        assert float(MomentMatching(initial, leaked).losses(torch.zeros_like(initial), 0)) == pytest.approx(
            0.25 * weight
        )


def test_moment_matching_moves_an_image_to_its_moments() -> None:
    initial = 0.2 + 0.4 * torch.rand(1, 3, SIZE, SIZE)
    matching = MomentMatching(initial, moments(initial + 0.02))
    dummies = torch.zeros_like(initial).requires_grad_()
    optimiser = torch.optim.Adam([dummies], lr=5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        matching.losses(dummies, 0).sum().backward()
        optimiser.step()
    assert float(matching.losses(dummies, 0).detach()) < 5
    shift = (matching.images(dummies.detach()) - initial).mean()
    assert float(shift) == pytest.approx(0.02, abs=2e-3)


def test_where_the_moments_stay_too_far_off_the_first_image_is_kept() -> None:
    initial = torch.rand(2, 3, SIZE, SIZE)
    leaked = moments(initial)
    leaked[1, 0] += 1.0  # a mean that no image near this one has
    dummies = torch.full_like(initial, 1e-4)
    images = MomentMatching(initial, leaked).images(dummies)
    torch.testing.assert_close(images[0], initial[0] + 1e-4)
    assert torch.equal(images[1], initial[1])


def test_moment_matching_keeps_victims_apart() -> None:
    initial, dummies = torch.rand(3, 3, SIZE, SIZE), 0.01 * torch.randn(3, 3, SIZE, SIZE)
    leaked = moments(torch.rand(3, 3, SIZE, SIZE))
    together = MomentMatching(initial, leaked).losses(dummies, 0)
    alone = [MomentMatching(initial[i : i + 1], leaked[i : i + 1]).losses(dummies[i : i + 1], 0) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-3)
