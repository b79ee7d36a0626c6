# SPDX-License-Identifier: Apache-2.0
"""Reconstruction robustness against published values, simulation, and an attack on a real client."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data import ClientDataModule, NoMasks
from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.privacy.gaussian_accounting import mu_of, noise_multiplier_for
from lightning_recon.privacy.reconstruction_robustness import (
    binomial_interval,
    log_likelihoods,
    matching_success,
    rero_gamma,
    sampled_rero_gamma,
)
from lightning_recon.structure import WaterFilling

SURE = 0.9999  # of the intervals here: the draws are fixed, and a change of them should not fail a test


def honest(task: Task) -> ServerPayload:
    return ServerPayload()


def malicious(task: Task) -> ServerPayload:
    return WaterFilling().payload(task)


def flat(update: ClientUpdate) -> Tensor:
    return torch.cat([update.gradient[name].flatten() for name in sorted(update.gradient)])


def clients(count: int, noise_multiplier: float) -> VictimClient:
    """As many clients as candidates, one bundled photograph each, DP-SGD's clip with a binding norm."""
    data = ClientDataModule(image_size=32, batch_size=1, clients=count, masks=NoMasks(), num_classes=16)
    data.prepare_data()
    data.setup("fit")
    found = VictimClient("convnet", 16, privacy=Privacy(0.01, noise_multiplier, "sample"), noise_seed=0)
    found.bind(data.client_batches)
    return found


def attack(
    count: int, noise_multiplier: float, rounds: int, draws: int, server: Callable[[Task], ServerPayload]
) -> tuple[int, Tensor]:
    """How often matching names the photograph that was used, each being used equally often; the candidates' cosines."""
    client = clients(count, noise_multiplier)
    payload = server(client.task)
    # What the attacker computes for itself: it knows the network, the payload and the photographs, not which was used.
    own = clients(count, 0.0)
    candidates = torch.stack([flat(own.share(payload, index, 0, 0)) for index in range(count)])
    assert torch.allclose(candidates.norm(dim=1), torch.tensor(0.01))  # the clip binds
    right = 0
    for used in range(count):
        scores = torch.zeros(draws, count, dtype=torch.float64)
        for round in range(rounds):
            released = torch.stack([flat(client.share(payload, used, draw, round)) for draw in range(draws)])
            scores += log_likelihoods(released, candidates, client.privacy.noise_std)
        right += int((scores.argmax(1) == used).sum())
    return right, cosines(candidates)


def cosines(vectors: Tensor) -> Tensor:
    directions = torch.nn.functional.normalize(vectors.double(), dim=1)
    return directions @ directions.T


def success_given(cosines: Tensor, mu: float, draws: int = 200_000) -> float:
    """What the attack achieves on updates of equal norm with these cosines, by simulating the scores alone."""
    count = len(cosines)
    generator = torch.Generator().manual_seed(0)
    used = torch.arange(draws) % count
    root = torch.linalg.cholesky(cosines + 1e-9 * torch.eye(count))
    noise = torch.randn(draws, count, generator=generator, dtype=torch.float64) @ root.T
    return float(((mu * cosines[used] + noise).argmax(1) == used).double().mean())


@pytest.mark.parametrize(
    ("epsilon", "gammas"),
    [
        (1, (0.155, 0.020, 0.0024)),
        (2, (0.218, 0.034, 0.0048)),
        (4, (0.361, 0.081, 0.0152)),
        (8, (0.650, 0.255, 0.0772)),
        (16, (0.948, 0.719, 0.427)),
        (32, (0.9998, 0.995, 0.963)),
    ],
)
def test_the_published_table(epsilon: float, gammas: tuple[float, ...]) -> None:
    mu = mu_of(noise_multiplier_for(epsilon, 1e-5, 1, "add_remove"), 1, "add_remove")
    for kappa, gamma in zip((0.1, 0.01, 0.001), gammas, strict=True):
        assert rero_gamma(kappa, mu) == pytest.approx(gamma, abs=6e-4 if gamma >= 0.02 else 6e-5)


def test_between_guessing_and_certainty() -> None:
    assert rero_gamma(0.03, 0.0) == pytest.approx(0.03)
    assert rero_gamma(0.1, 5000.0) == 1.0
    assert rero_gamma(0.1, None) is None
    bounds = [rero_gamma(0.1, mu) or 0.0 for mu in (1e-3, 0.1, 1.0, 3.0, 10.0)]
    assert all(later > earlier for earlier, later in itertools.pairwise(bounds))


@pytest.mark.parametrize(("kappa", "z", "steps"), [(0.1, 0.6, 1), (0.1, 6.0, 100), (0.01, 0.6, 1), (0.5, 1.0, 3)])
def test_drawn_bound_at_full_sampling_is_the_exact_one(kappa: float, z: float, steps: int) -> None:
    exact = rero_gamma(kappa, math.sqrt(steps) / z)
    found = sampled_rero_gamma(kappa, z, 1.0, steps, samples=50_000, confidence=SURE)
    assert exact is not None
    assert found.lower <= exact <= found.upper
    assert found.upper - found.lower < 0.08
    assert found.lower < found.value < found.upper
    assert found == sampled_rero_gamma(kappa, z, 1.0, steps, samples=50_000, confidence=SURE)


@pytest.mark.parametrize(("rate", "z"), [(0.3, 0.5), (0.05, 0.3)])
def test_drawn_bound_of_one_sampled_step_in_closed_form(rate: float, z: float) -> None:
    # The likelihood ratio grows with the output, so the best event is the same as without sampling.
    alone = rero_gamma(0.1, 1 / z)
    assert alone is not None
    found = sampled_rero_gamma(0.1, z, rate, 1, samples=50_000, confidence=SURE)
    assert found.lower <= (1 - rate) * 0.1 + rate * alone <= found.upper


def test_the_stated_interval_holds_as_often_as_stated() -> None:
    exact = rero_gamma(0.1, 1.0)
    assert exact is not None
    intervals = [sampled_rero_gamma(0.1, 1.0, 1.0, 1, samples=2000, confidence=0.8, seed=seed) for seed in range(300)]
    held = sum(one.lower <= exact <= one.upper for one in intervals)
    assert binomial_interval(held, 300, SURE)[1] > 0.8
    assert held < 300  # nor is it so wide that it says nothing


def test_sampling_lowers_the_bound_and_steps_raise_it() -> None:
    def bound(rate: float = 0.1, steps: int = 20, z: float = 1.0) -> float:
        return sampled_rero_gamma(0.1, z, rate, steps, samples=20_000).value

    assert 0.1 < bound(rate=0.02) < bound() < bound(rate=0.5) < bound(rate=1.0)
    assert bound(steps=2) < bound() < bound(steps=60)
    assert bound(z=3.0) < bound() < bound(z=0.5)
    assert bound(z=1e4) == pytest.approx(0.1, abs=0.02)
    assert bound(z=0.02) == pytest.approx(1 - 0.9**21, abs=0.02)  # seen in a step, or guessed


@pytest.mark.parametrize(("z", "samples", "wrong"), [(0.0, 1000, "without noise"), (1.0, 900, "too few")])
def test_what_cannot_be_drawn_is_named(z: float, samples: int, wrong: str) -> None:
    with pytest.raises(UserError, match=wrong):
        sampled_rero_gamma(0.1, z, 0.5, 1, samples=samples)


def test_binomial_interval() -> None:
    assert binomial_interval(0, 20, 0.95) == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))
    assert binomial_interval(20, 20, 0.95) == pytest.approx((0.025 ** (1 / 20), 1.0))
    lower, upper = binomial_interval(8, 20, 0.95)
    # Each end is where the other side's tail is 2.5 %.
    tail = sum(math.comb(20, k) * lower**k * (1 - lower) ** (20 - k) for k in range(8, 21))
    assert tail == pytest.approx(0.025)
    assert sum(math.comb(20, k) * upper**k * (1 - upper) ** (20 - k) for k in range(9)) == pytest.approx(0.025)


def test_matching_between_guessing_and_certainty() -> None:
    assert matching_success(10, 1 / 0.6002) == pytest.approx(0.565, abs=5e-4)
    for count in (1, 2, 10, 1000):
        assert matching_success(count, 0.0) == pytest.approx(1 / count)
        assert matching_success(count, 60.0) == pytest.approx(1.0)
    assert matching_success(2, 1.3) == pytest.approx(0.5 * (1 + math.erf(1.3 / 2)))  # Phi(mu / sqrt 2)


@pytest.mark.parametrize("count", [2, 10, 1000])
def test_no_matching_beats_the_bound(count: int) -> None:
    for mu in (0.01, 0.3, 1.0, 1.666, 3.0, 6.0):
        bound = rero_gamma(1 / count, mu)
        assert bound is not None
        assert 1 / count < matching_success(count, mu) <= bound


def test_matching_of_orthogonal_signals_by_simulation() -> None:
    count, mu, draws = 10, 1.666, 20_000
    generator = torch.Generator().manual_seed(0)
    candidates = 3.0 * torch.eye(count, 50)
    used = torch.arange(draws) % count
    released = candidates[used] + 3.0 / mu * torch.randn(draws, 50, generator=generator)
    right = int((log_likelihoods(released, candidates, 3.0 / mu).argmax(1) == used).sum())
    lower, upper = binomial_interval(right, draws, SURE)
    assert lower < matching_success(count, mu) < upper


def test_likelihood_weighs_candidates_of_different_norms() -> None:
    # In one dimension the nearest candidate is the likeliest.
    candidates = torch.tensor([[0.0], [1.0], [5.0]])
    released = torch.tensor([[0.4], [0.6], [2.9], [3.1]])
    scores = log_likelihoods(released, candidates, 2.0)
    assert scores.argmax(1).tolist() == [0, 1, 1, 2]
    densities = torch.distributions.Normal(candidates.double().T, 2.0).log_prob(released.double())
    torch.testing.assert_close(scores - scores[:, :1], densities - densities[:, :1])


@pytest.mark.parametrize(
    ("server", "epsilon", "rounds", "draws"),
    [
        (honest, 8, 1, 60),
        pytest.param(honest, 2, 1, 40, marks=pytest.mark.slow),
        pytest.param(honest, 8, 3, 20, marks=pytest.mark.slow),
        (malicious, 8, 1, 40),
    ],
)
def test_no_matching_of_photographs_passes_the_bound(
    server: Callable[[Task], ServerPayload], epsilon: float, rounds: int, draws: int
) -> None:
    count = 10
    z = noise_multiplier_for(epsilon, 1e-5, rounds, "add_remove")
    mu = mu_of(z, rounds, "add_remove")
    assert mu is not None
    gamma = rero_gamma(1 / count, mu)
    assert gamma is not None
    right, angles = attack(count, z, rounds, draws, server)
    lower, upper = binomial_interval(right, count * draws, SURE)
    assert lower <= gamma
    assert right > 1.1 * draws  # guessing is right once in ten
    # The channel is what theory says: nothing but the angles between the candidates matters.
    assert lower <= success_given(angles, mu) <= upper
    assert success_given(angles, mu) <= gamma
    if server is honest:
        # Photographs of different classes have nearly orthogonal gradients. Not so the structure's code: at this noise
        # it sends little but brightness, which is best for a picture and poor for telling ten candidates apart.
        assert (angles - torch.eye(count)).abs().max() < 0.1
        assert lower <= matching_success(count, mu) <= upper
    else:
        assert success_given(angles, mu) < matching_success(count, mu)


def test_matching_without_noise_worth_the_name_is_always_right() -> None:
    assert attack(10, 0.05, 1, 3, honest)[0] == 30


def test_success_given_the_angles() -> None:
    for mu in (0.5, 1.666):
        assert success_given(torch.eye(10, dtype=torch.float64), mu) == pytest.approx(
            matching_success(10, mu), abs=0.005
        )
