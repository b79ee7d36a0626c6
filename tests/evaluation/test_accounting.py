# SPDX-License-Identifier: Apache-2.0
"""Accounting against known values, limits, and Opacus's numerical accountant."""

import math
import warnings

import pytest
from opacus.accountants import PRVAccountant

from lightning_recon.errors import UserError
from lightning_recon.evaluation.accounting import (
    gaussian_delta,
    gaussian_epsilon,
    mu_of,
    noise_multiplier_for,
    nominal_epsilon,
    rero_gamma,
)

TABLE = [
    (3.73, 1, 0.155),
    (1.99, 2, 0.218),
    (1.08, 4, 0.361),
    (0.600, 8, 0.650),
    (0.344, 16, 0.948),
    (0.205, 32, 0.9998),
]


@pytest.mark.parametrize(("z", "epsilon", "gamma"), TABLE)
def test_one_release_matches_the_published_table(z: float, epsilon: float, gamma: float) -> None:
    exact = noise_multiplier_for(epsilon, 1e-5, 1, "add_remove")
    assert exact == pytest.approx(z, rel=5e-3)
    bound = rero_gamma(0.1, mu_of(exact, 1, "add_remove"))
    assert bound == pytest.approx(gamma, abs=6e-4)


@pytest.mark.parametrize(("z", "rounds"), [(0.6, 1), (1.0, 1), (2.0, 4), (5.0, 100)])
def test_agrees_with_opacus(z: float, rounds: int) -> None:
    accountant = PRVAccountant()
    accountant.history = [(z, 1.0, rounds)]
    with warnings.catch_warnings():  # its grid search divides by zero far out in the tails
        warnings.simplefilter("ignore")
        numerical = accountant.get_epsilon(1e-5, eps_error=0.01)
    exact = gaussian_epsilon(mu_of(z, rounds, "add_remove"), 1e-5)
    assert exact is not None
    assert exact <= numerical + 1e-3  # the numerical one is an upper bound up to its own error
    assert exact == pytest.approx(numerical, abs=0.02)


@pytest.mark.parametrize(("adjacency", "expected"), [("add_remove", 1.25e7), ("replace_one", 5.0e7)])
def test_the_paper_s_noise_is_exact_where_exponentials_overflow(adjacency: str, expected: float) -> None:
    mu = mu_of(2e-4, 1, adjacency)  # type: ignore[arg-type]
    epsilon = gaussian_epsilon(mu, 1e-5)
    assert epsilon == pytest.approx(expected, rel=3e-3)
    assert gaussian_delta(epsilon, mu) == pytest.approx(1e-5, rel=1e-3)
    assert nominal_epsilon(2e-4) == pytest.approx(10.0)


@pytest.mark.parametrize("mu", [1e-3, 0.1, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.2])
def test_epsilon_inverts_delta(mu: float, delta: float) -> None:
    epsilon = gaussian_epsilon(mu, delta)
    assert epsilon is not None
    if epsilon == 0.0:
        assert gaussian_delta(0.0, mu) <= delta
    else:
        assert gaussian_delta(epsilon, mu) == pytest.approx(delta, rel=1e-6)


@pytest.mark.parametrize("rounds", [1, 30])
@pytest.mark.parametrize("adjacency", ["add_remove", "replace_one"])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 8.0, 1e6])
def test_noise_inverts_epsilon(epsilon: float, adjacency: str, rounds: int) -> None:
    z = noise_multiplier_for(epsilon, 1e-5, rounds, adjacency)  # type: ignore[arg-type]
    mu = mu_of(z, rounds, adjacency)  # type: ignore[arg-type]
    assert gaussian_epsilon(mu, 1e-5) == pytest.approx(epsilon, rel=1e-6, abs=1e-6)


def test_delta_at_zero_epsilon_is_the_total_variation_distance() -> None:
    assert gaussian_delta(0.0, 1.7) == pytest.approx(math.erf(1.7 / 2 / math.sqrt(2)))


def test_composition_and_adjacency() -> None:
    assert mu_of(0.6, 300, "add_remove") == pytest.approx(28.87, rel=1e-3)
    single, double = mu_of(0.5, 4, "add_remove"), mu_of(0.5, 4, "replace_one")
    assert single == 4.0
    assert double == 8.0


def test_without_noise_nothing_is_promised() -> None:
    mu = mu_of(0.0, 1, "add_remove")
    assert mu is None
    assert gaussian_epsilon(mu, 1e-5) is None
    assert nominal_epsilon(0.0) is None
    assert rero_gamma(0.1, mu) is None


def test_robustness_bound_between_guessing_and_certainty() -> None:
    assert rero_gamma(0.03, 0.0) == pytest.approx(0.03)
    assert rero_gamma(0.01, 1 / 0.600) == pytest.approx(0.255, abs=1e-3)
    assert rero_gamma(0.1, 5000.0) == 1.0


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_impossible_delta_is_named(delta: float) -> None:
    with pytest.raises(UserError, match="delta is"):
        gaussian_epsilon(1.0, delta)


def test_negative_epsilon_is_named() -> None:
    with pytest.raises(UserError, match="epsilon is -1"):
        noise_multiplier_for(-1, 1e-5, 1, "add_remove")
