# SPDX-License-Identifier: Apache-2.0
"""Means of updates of which only the largest entries arrived are distributed as simulated ones are."""

import math

import numpy as np
import pytest
from scipy import stats

from lightning_recon.structure.coding.censored_means import CensoredMean, censored_amplitude


def simulated(amplitude: float, threshold: float, rounds: int, count: int = 200_000) -> np.ndarray:
    received = amplitude + np.random.default_rng(0).standard_normal((count, rounds))
    means: np.ndarray = np.where(np.abs(received) < threshold, 0.0, received).mean(axis=1)
    return means


@pytest.mark.parametrize(
    ("amplitude", "threshold", "rounds"), [(0.0, 1.5, 2), (1.0, 1.5, 3), (-3.0, 2.0, 5), (2.0, 0.5, 8)]
)
def test_densities_are_those_of_simulated_means(amplitude: float, threshold: float, rounds: int) -> None:
    means, of = simulated(amplitude, threshold, rounds), CensoredMean(amplitude, 1.0, threshold, rounds)
    nothing = float((means == 0).mean())
    assert math.exp(of.log_likelihood(np.zeros(1))[0]) == pytest.approx(nothing, abs=5 * math.sqrt(1 / len(means)))
    edges = np.linspace(-5, 5, 41)
    counts = np.histogram(means[means != 0], edges)[0]
    fine = np.linspace(-5, 5, 4001) + 1e-9
    density = np.exp(of.log_likelihood(fine)) * rounds  # of the mean, not of the sum
    parts = [slice(left, left + 101) for left in range(0, 4000, 100)]
    expected = np.array([np.trapezoid(density[part], fine[part]) for part in parts]) * len(means)
    # Densities jump at the threshold, by less than a step of the grid: 3 % of a bin.
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected + 1) + 0.03 * expected).all()


def test_one_round_is_a_normal_density_beyond_the_threshold() -> None:
    of, values = CensoredMean(1.3, 0.5, 0.7, 1), np.array([-1.2, 0.8, 1.3, 2.5])
    np.testing.assert_allclose(of.log_likelihood(values), stats.norm.logpdf(values, 1.3, 0.5), atol=2e-3)


def test_values_that_nobody_expects_are_finite() -> None:
    found = CensoredMean(0.0, 1.0, 1.0, 4).log_likelihood(np.array([-1e3, 50.0, 1e6]))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("amplitude", [0.2, 1.0, 3.0])
def test_the_amplitude_follows_from_the_mean(amplitude: float) -> None:
    mean = float(simulated(amplitude, 1.5, 1).mean())
    assert censored_amplitude(mean, 1.0, 1.5) == pytest.approx(amplitude, abs=0.03)


def test_no_mean_is_no_amplitude() -> None:
    assert censored_amplitude(0.0, 1.0, 1.5) == 0.0
