# SPDX-License-Identifier: Apache-2.0
"""The objectives have their minimum where theory puts it, and keep victims apart."""

import pytest
import torch
from torch import Tensor

from lightning_recon.attack.objectives import ChannelLikelihood, MomentMatching
from lightning_recon.structure.guess import Posterior
from lightning_recon.structure.moments import moments
from lightning_recon.structure.statistics import public_statistics
from lightning_recon.structure.transform import analyse

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
    posterior = Posterior(gain * data, prior * (1 - gain), prior)
    return posterior, data, variance


def objective(posterior: Posterior, window: float = 0.0, variation: float = 0.0) -> ChannelLikelihood:
    dtype = posterior.mean.dtype
    return ChannelLikelihood(posterior, STATISTICS.mean.to(dtype), STATISTICS.colour.to(dtype), window, variation)


def part(posterior: Posterior, chosen: slice) -> Posterior:
    return Posterior(posterior.mean[chosen], posterior.variance[chosen], posterior.prior_variance[chosen])


def gradient(of: ChannelLikelihood | MomentMatching, dummies: Tensor) -> Tensor:
    dummies = dummies.clone().requires_grad_()
    return torch.autograd.grad(of.losses(dummies).sum(), dummies)[0]


def test_wieners_estimate_is_the_minimum_under_the_plain_prior() -> None:
    posterior, _, _ = channel()
    plain = objective(posterior)
    start = torch.zeros_like(posterior.mean)
    assert float(gradient(plain, start).abs().max()) < 1e-9
    # Around it the objective is ½‖θ‖²: one step length suits all coefficients.
    for size in (0.1, 3.0):
        dummies = size * torch.randn_like(start)
        risen = plain.losses(dummies) - plain.losses(start)
        torch.testing.assert_close(risen, 0.5 * dummies.square().sum(dim=(1, 2, 3)), rtol=1e-6, atol=1e-6)


def test_it_is_the_negative_log_posterior_up_to_a_constant() -> None:
    posterior, data, noise = channel()
    plain = objective(posterior)

    def by_hand(dummies: Tensor) -> Tensor:
        coefficients = posterior.mean + posterior.variance.sqrt() * dummies
        misfit = (coefficients - data) ** 2 / noise + coefficients**2 / posterior.prior_variance
        return 0.5 * misfit.sum(dim=(1, 2, 3))

    one, other = torch.randn(2, *posterior.mean.shape, dtype=torch.float64)
    difference = plain.losses(one) - plain.losses(other)
    torch.testing.assert_close(difference, by_hand(one) - by_hand(other), rtol=1e-6, atol=1e-6)


def test_in_float32_the_start_is_still_a_minimum() -> None:
    posterior, _, _ = channel(dtype=torch.float32)
    assert float(gradient(objective(posterior), torch.zeros_like(posterior.mean)).abs().max()) < 0.02


@pytest.mark.parametrize(("window", "variation"), [(0.0, 0.0), (2.0, 0.0), (2.0, 3.0)])
def test_victims_do_not_influence_one_another(window: float, variation: float) -> None:
    posterior, _, _ = channel()
    dummies = torch.randn_like(posterior.mean)
    together = objective(posterior, window, variation)
    losses, slopes = together.losses(dummies), gradient(together, dummies)
    for index in range(COUNT):
        chosen = slice(index, index + 1)
        alone = objective(part(posterior, chosen), window, variation)
        torch.testing.assert_close(alone.losses(dummies[chosen]), losses[chosen], rtol=1e-12, atol=1e-9)
        torch.testing.assert_close(gradient(alone, dummies[chosen]), slopes[chosen], rtol=1e-9, atol=1e-9)


def test_pictures_are_those_of_the_posterior_mean() -> None:
    posterior, _, _ = channel()
    pictures = objective(posterior).pictures(torch.zeros_like(posterior.mean))
    back = analyse(pictures, STATISTICS.mean, STATISTICS.colour)
    torch.testing.assert_close(back, posterior.mean, rtol=0, atol=1e-5)


def test_total_variation_pulls_towards_smoother_pictures() -> None:
    posterior, _, _ = channel(noise=1.0)
    start = torch.zeros_like(posterior.mean)
    smoothing = objective(posterior, variation=50.0)
    step = -1e-4 * gradient(smoothing, start)

    def roughness(dummies: Tensor) -> Tensor:
        pictures = smoothing.pictures(dummies)
        return pictures.diff(dim=-1).abs().sum(dim=(1, 2, 3)) + pictures.diff(dim=-2).abs().sum(dim=(1, 2, 3))

    assert bool((smoothing.losses(step) < smoothing.losses(start)).all())
    assert bool((roughness(step) < roughness(start)).all())


def test_local_contrast_pulls_flat_places_together() -> None:
    white = torch.randn(1, 3, SIZE, SIZE, dtype=torch.float64)
    white[..., : SIZE // 2] = 0
    prior = STATISTICS.variance.double()[None]
    identity = torch.eye(3, dtype=torch.float64)
    truth = analyse(white, torch.zeros(3, SIZE, SIZE), identity) * prior.sqrt()
    noise = prior  # as strong as the signal, everywhere
    mean = 0.5 * (truth + noise.sqrt() * torch.randn_like(truth))
    adaptive = objective(Posterior(mean, prior / 2, prior), window=2.0)
    dummies = torch.zeros_like(mean)
    for _ in range(100):
        dummies = dummies - 0.05 * gradient(adaptive, dummies)
    found = mean + (prior / 2).sqrt() * dummies

    def error(estimate: Tensor) -> float:
        return float(((estimate - truth) ** 2 / prior).sum())

    assert error(found) < 0.85 * error(mean)


def test_moments_are_matched_where_they_were_leaked() -> None:
    initial = torch.rand(2, 3, SIZE, SIZE)
    matching = MomentMatching(initial, moments(initial))
    start = torch.zeros_like(initial)
    assert matching.losses(start).tolist() == [0.0, 0.0]
    assert not bool(gradient(matching, start).any())
    assert bool((matching.losses(start + 0.01 * torch.randn_like(start)) > 0).all())


def test_each_moment_is_weighed_as_in_the_paper() -> None:
    initial = torch.rand(1, 3, SIZE, SIZE)
    for index, weight in enumerate((1e6, 2e4, 1e-6)):
        leaked = moments(initial)
        leaked[0, index, 1] += 0.5
        assert float(MomentMatching(initial, leaked).losses(torch.zeros_like(initial))) == pytest.approx(0.25 * weight)


def test_moment_matching_moves_a_picture_to_its_moments() -> None:
    initial = 0.2 + 0.4 * torch.rand(1, 3, SIZE, SIZE)
    matching = MomentMatching(initial, moments(initial + 0.02))
    dummies = torch.zeros_like(initial).requires_grad_()
    optimiser = torch.optim.Adam([dummies], lr=5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        matching.losses(dummies).sum().backward()
        optimiser.step()
    assert float(matching.losses(dummies).detach()) < 5
    shift = (matching.pictures(dummies.detach()) - initial).mean()
    assert float(shift) == pytest.approx(0.02, abs=2e-3)


def test_where_the_moments_stay_too_far_off_the_first_picture_is_kept() -> None:
    initial = torch.rand(2, 3, SIZE, SIZE)
    leaked = moments(initial)
    leaked[1, 0] += 1.0  # a mean that no picture near this one has
    dummies = torch.full_like(initial, 1e-4)
    pictures = MomentMatching(initial, leaked).pictures(dummies)
    torch.testing.assert_close(pictures[0], initial[0] + 1e-4)
    assert torch.equal(pictures[1], initial[1])


def test_moment_matching_keeps_victims_apart() -> None:
    initial, dummies = torch.rand(3, 3, SIZE, SIZE), 0.01 * torch.randn(3, 3, SIZE, SIZE)
    leaked = moments(torch.rand(3, 3, SIZE, SIZE))
    together = MomentMatching(initial, leaked).losses(dummies)
    alone = [MomentMatching(initial[i : i + 1], leaked[i : i + 1]).losses(dummies[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-3)
