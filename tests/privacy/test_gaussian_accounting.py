# SPDX-License-Identifier: Apache-2.0
"""Accounting against known values, limits, and Opacus's numerical accountant."""

import math
import warnings

import pytest
from opacus.accountants import PRVAccountant, RDPAccountant

from lightning_recon.errors import UserError
from lightning_recon.privacy.gaussian_accounting import (
    Adjacency,
    epsilon_by_adjacency,
    gaussian_delta,
    gaussian_epsilon,
    mu_of,
    noise_multiplier_for,
    nominal_epsilon,
    renyi_epsilon,
)


@pytest.mark.parametrize(
    ("epsilon", "z"), [(1, "3.73"), (2, "1.99"), (4, "1.08"), (8, "0.600"), (16, "0.344"), (32, "0.205")]
)
def test_one_release_to_three_digits(epsilon: float, z: str) -> None:
    exact = noise_multiplier_for(epsilon, 1e-5, 1, "add_remove")
    assert f"{exact:#.3g}" == z
    assert noise_multiplier_for(epsilon, 1e-5, 1, "replace_one") == pytest.approx(2 * exact)


@pytest.mark.parametrize(
    ("norm", "psnr", "z", "epsilon"),
    [
        # Noise at which the noise law |x| z reaches a PSNR, for typical norms of pictures from 28^2 to 224^2.
        (9.2, 15, "1.9e-02", "1.6e+03"),
        (9.2, 30, "3.4e-03", "4.4e+04"),
        (27, 20, "3.7e-03", "3.8e+04"),
        (53, 20, "1.9e-03", "1.4e+05"),
        (106, 20, "9.4e-04", "5.7e+05"),
        (195, 15, "9.1e-04", "6.1e+05"),
        (195, 30, "1.6e-04", "1.9e+07"),
    ],
)
def test_what_a_plain_reading_costs(norm: float, psnr: float, z: str, epsilon: str) -> None:
    noise = 10 ** (-psnr / 20) / norm
    assert f"{noise:.1e}" == z
    assert f"{gaussian_epsilon(1 / noise, 1e-5):.1e}" == epsilon


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
def test_the_paper_s_noise_is_exact_where_exponentials_overflow(adjacency: Adjacency, expected: float) -> None:
    mu = mu_of(2e-4, 1, adjacency)
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
def test_noise_inverts_epsilon(epsilon: float, adjacency: Adjacency, rounds: int) -> None:
    z = noise_multiplier_for(epsilon, 1e-5, rounds, adjacency)
    mu = mu_of(z, rounds, adjacency)
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
    assert renyi_epsilon(mu, 1e-5) is None
    assert nominal_epsilon(0.0) is None
    assert epsilon_by_adjacency(0.0, 3, 1e-5) == {"add_remove": None, "replace_one": None}


def test_both_adjacencies_by_name() -> None:
    both = epsilon_by_adjacency(2e-4, 1, 1e-5)
    assert both == pytest.approx({"add_remove": 1.25e7, "replace_one": 5.0e7}, rel=3e-3)


@pytest.mark.parametrize("mu", [0.01, 0.5, 1.666, 29.0, 5000.0])
def test_renyi_accounting_lies_above_the_exact_value_and_near_it_where_little_noise_is(mu: float) -> None:
    exact, stated = gaussian_epsilon(mu, 1e-5), renyi_epsilon(mu, 1e-5)
    assert exact is not None
    assert stated is not None
    # The classical conversion, minimised in closed form: rho + 2 sqrt(rho log(1/delta)) with rho = mu^2/2.
    assert exact <= stated <= mu**2 / 2 + mu * math.sqrt(2 * math.log(1e5))
    assert mu < 29 or stated == pytest.approx(exact, rel=0.05)


def test_renyi_accounting_as_opacus_does_it() -> None:
    accountant = RDPAccountant()
    accountant.history = [(1.5, 1.0, 10)]
    orders = [1 + step / 1000 for step in range(1000, 9000)]
    found = renyi_epsilon(mu_of(1.5, 10, "add_remove"), 1e-5)
    assert found == pytest.approx(accountant.get_epsilon(1e-5, alphas=orders), rel=1e-6)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_impossible_delta_is_named(delta: float) -> None:
    for refuses in (gaussian_epsilon, renyi_epsilon):
        with pytest.raises(UserError, match="delta is"):
            refuses(1.0, delta)


def test_negative_epsilon_is_named() -> None:
    with pytest.raises(UserError, match="epsilon is -1"):
        noise_multiplier_for(-1, 1e-5, 1, "add_remove")


@pytest.mark.parametrize("adjacency", ["add_remove", "replace_one"])
def test_less_noise_more_rounds_and_smaller_delta_all_cost(adjacency: Adjacency) -> None:
    def cost(z: float = 1.0, rounds: int = 5, delta: float = 1e-5) -> float:
        epsilon = gaussian_epsilon(mu_of(z, rounds, adjacency), delta)
        assert epsilon is not None
        return epsilon

    assert 0 <= cost(z=1e6) < 1e-3 < cost(z=2.0) < cost() < cost(z=0.5) < cost(z=1e-3)
    assert cost(z=1e-3) == pytest.approx(mu_of(1e-3, 5, adjacency) ** 2 / 2, rel=0.01)  # type: ignore[operator]
    assert cost(rounds=1) < cost() < cost(rounds=20)
    assert cost(delta=1e-3) < cost() < cost(delta=1e-9)
