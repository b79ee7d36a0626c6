# SPDX-License-Identifier: Apache-2.0
"""Discrete Gaussian and Skellam noise: distributions, and epsilon against libraries and exact divergences."""

import math

import numpy as np
import pytest
from scipy import stats

from lightning_recon.errors import UserError
from lightning_recon.privacy.gaussian_accounting import gaussian_epsilon
from lightning_recon.privacy.integer_noise import LEAST_STD, DiscreteGaussian, IntegerMechanism, Skellam

BOTH = [DiscreteGaussian(), Skellam()]


def exact_probabilities(mechanism: IntegerMechanism, std: float, values: np.ndarray) -> np.ndarray:
    if isinstance(mechanism, Skellam):
        return np.asarray(stats.skellam.pmf(values, std**2 / 2, std**2 / 2))
    weights = np.exp(-(values**2) / (2 * std**2))
    return weights / weights.sum()


@pytest.mark.parametrize("mechanism", BOTH)
@pytest.mark.parametrize("std", [1.3, 9.0])
def test_samples_follow_the_distribution(mechanism: IntegerMechanism, std: float) -> None:
    count = 200_000
    drawn = mechanism.sample_steps(count, std, np.random.default_rng(0)).numpy()
    assert drawn.dtype == np.int64
    values = np.arange(-math.ceil(4 * std), math.ceil(4 * std) + 1)
    expected = exact_probabilities(mechanism, std, np.arange(-200, 201))[200 + values]
    found = np.array([(drawn == value).sum() for value in values])
    chi = ((found - count * expected) ** 2 / (count * expected)).sum()
    assert chi < stats.chi2.isf(1e-4, len(values) - 1)
    assert drawn.std() == pytest.approx(std, rel=0.01)


def test_sums_of_skellam_noise_are_skellam_noise() -> None:
    assert Skellam.closed_under_sums
    assert not DiscreteGaussian.closed_under_sums
    drawn = sum(Skellam().sample_steps(100_000, 4.0, np.random.default_rng(seed)) for seed in range(4))
    assert float(drawn.double().std()) == pytest.approx(8.0, rel=0.01)
    kurtosis = stats.kurtosis(drawn.numpy())
    assert kurtosis == pytest.approx(1 / 64, abs=0.05)


@pytest.mark.parametrize("rounds", [1, 16])
@pytest.mark.parametrize("z", [0.5, 4.0])
def test_epsilon_of_the_discrete_gaussian_is_dp_accounting_s(z: float, rounds: int) -> None:
    accounting = pytest.importorskip("dp_accounting")
    found = DiscreteGaussian().epsilon(z, rounds, 1e-5, "add_remove")
    assert found is not None
    zcdp = accounting.rdp.RdpAccountant()
    zcdp.compose(accounting.ZCDpEvent(rounds / (2 * z**2)))
    assert found <= zcdp.get_epsilon(1e-5) * 1.0001  # which has fewer orders
    # Exact for one number, whose composition for vectors the bound covers; and not far above it.
    pld = accounting.pld.privacy_loss_distribution.from_discrete_gaussian_mechanism(
        sigma=20 * z, sensitivity=20, value_discretization_interval=1e-3
    )
    exact = pld.self_compose(rounds).get_epsilon_for_delta(1e-5)
    assert exact <= found <= 1.12 * exact


@pytest.mark.parametrize("z", [0.5, 4.0])
def test_epsilon_of_skellam_noise_is_above_the_exact_divergences_and_near_the_gaussian_one(z: float) -> None:
    skellam = Skellam()
    for std in (LEAST_STD, 3 * LEAST_STD):
        moved = round(std / z)
        values = np.arange(-40 * std, 40 * std + 1)
        variance = std**2 / 2
        with np.errstate(divide="ignore"):  # SciPy's probabilities of the far tails are 0, which are left out
            here, there = (stats.skellam.logpmf(values - shift, variance, variance) for shift in (0, moved))
        kept = np.isfinite(here) & np.isfinite(there)
        orders = np.array([2.0, 5.0])
        for order, bound in zip(orders, skellam.renyi_divergence(orders, std / moved), strict=True):
            power = order * here[kept] + (1 - order) * there[kept]
            assert np.logaddexp.reduce(power) / (order - 1) <= bound
        # Mutual information needs order 1, for which the paper proves nothing.
        here, there = here[kept], there[kept]
        assert (
            0
            < float((np.exp(here) * (here - there)).sum())
            <= skellam.renyi_divergence(np.array([1.0]), std / moved)[0]
        )
    found, ideal = skellam.epsilon(z, 4, 1e-5, "add_remove"), gaussian_epsilon(math.sqrt(4) / z, 1e-5)
    assert found is not None
    assert ideal is not None
    assert ideal < found < 1.35 * ideal
    replaced = skellam.epsilon(2 * z, 4, 1e-5, "replace_one")
    assert replaced == pytest.approx(found)


@pytest.mark.parametrize("mechanism", BOTH)
def test_what_needs_steps_or_noise(mechanism: IntegerMechanism) -> None:
    with pytest.raises(UserError, match=r"whole numbers: set clipping_range"):
        mechanism.sample(3, np.random.default_rng(0))
    assert mechanism.epsilon(0.0, 1, 1e-5, "add_remove") is None
    assert mechanism.mutual_information(0.0, 1) == math.inf
    known = mechanism.mutual_information(2.0, 3)
    assert known == pytest.approx(3 / 8, rel=0.1)
    with pytest.raises(UserError, match="delta is 1"):
        mechanism.epsilon(1.0, 1, 1.0, "add_remove")
