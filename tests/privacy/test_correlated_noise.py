# SPDX-License-Identifier: Apache-2.0
"""Noise that is correlated over rounds: its matrices, its epsilon against dp-accounting, and what whitening leaves."""

import math

import numpy as np
import pytest
from scipy.linalg import toeplitz

from lightning_recon.errors import UserError
from lightning_recon.evaluation.results import privacy_record
from lightning_recon.privacy.correlated_noise import (
    equivalent_multiplier,
    noise_coefficients,
    round_weights,
    sensitivity,
    strategy_column,
)
from lightning_recon.privacy.parameters import Privacy

CASES = [(1, 1), (1, 7), (2, 1), (2, 7), (4, 16), (64, 16)]


def matrix(column: object, rounds: int) -> np.ndarray:
    padded = np.zeros(rounds)
    found = np.asarray(column)[:rounds]
    padded[: len(found)] = found
    return np.tril(toeplitz(padded))


@pytest.mark.parametrize(("bands", "rounds"), CASES)
def test_the_strategy_is_the_inverse_of_the_noise_s_coefficients(bands: int, rounds: int) -> None:
    inverse, strategy = matrix(noise_coefficients(bands), rounds), matrix(strategy_column(bands, rounds), rounds)
    np.testing.assert_allclose(inverse @ strategy, np.eye(rounds), atol=1e-12)
    assert strategy.min() >= 0
    assert sensitivity(bands, rounds) == pytest.approx(np.linalg.norm(strategy @ np.ones(rounds)))
    covariance = inverse @ inverse.T
    weights = np.array(round_weights(bands, rounds))
    best = np.linalg.solve(covariance, np.ones(rounds))
    np.testing.assert_allclose(weights, best / best.sum(), atol=1e-12)
    # What whitening leaves is what the covariance allows, and what independent noise of the same guarantee would leave.
    left = weights @ covariance @ weights
    assert left == pytest.approx(1 / best.sum())
    assert left == pytest.approx(equivalent_multiplier(1.0, bands, rounds) ** 2 / rounds)
    assert left <= covariance.sum() / rounds**2 * (1 + 1e-12)  # what plain averaging leaves


def test_all_bands_are_the_square_root_of_the_prefix_sums() -> None:
    strategy = matrix(strategy_column(12, 12), 12)
    np.testing.assert_allclose(strategy @ strategy, np.tril(np.ones((12, 12))), atol=1e-12)


def test_without_correlation_nothing_changes() -> None:
    assert equivalent_multiplier(0.3, 1, 17) == 0.3
    assert sensitivity(1, 16) == pytest.approx(4)
    assert round_weights(1, 16) == pytest.approx([1 / 16] * 16)


@pytest.mark.parametrize("adjacency", ["add_remove", "replace_one"])
def test_epsilon_is_dp_accounting_s(adjacency: str) -> None:
    accounting = pytest.importorskip("dp_accounting")
    privacy = Privacy(1.0, 3.0, rounds=16, noise_bands=4)
    found = privacy_record(
        granularity="update", per_layer=False, max_grad_norm=1.0, noise_multiplier=3.0, rounds=16, batch_size=1,
        delta=1e-5, adjacency="add_remove" if adjacency == "add_remove" else "replace_one", noise_bands=4,
    )  # fmt: skip
    moved = (1 if adjacency == "add_remove" else 2) * sensitivity(4, 16)
    accountant = accounting.pld.PLDAccountant()
    accountant.compose(accounting.GaussianDpEvent(privacy.noise_multiplier / moved))
    assert found["epsilon_accounted"] == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)
    assert found["mu"] == pytest.approx(moved / 3.0)


def test_only_gaussian_noise_is_correlated() -> None:
    with pytest.raises(UserError, match="noise_bands is 2, but noise that is correlated over rounds is Gaussian"):
        Privacy(1.0, 0.1, mechanism="laplace", noise_bands=2)
    late = Privacy(1.0, 0.1, rounds=8, noise_bands=2)
    assert late.noise_std == pytest.approx(0.1 * math.hypot(1, 0.5))
