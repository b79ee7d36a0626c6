# SPDX-License-Identifier: Apache-2.0
"""Risks against dp-accounting, known values, and the guarantee that they follow from; noise for a wanted risk."""

import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from scipy.special import ndtri

from lightning_recon.errors import UserError
from lightning_recon.privacy.gaussian import Gaussian
from lightning_recon.privacy.gaussian_accounting import gaussian_epsilon
from lightning_recon.privacy.integer_noise import Skellam
from lightning_recon.privacy.laplace import Laplace
from lightning_recon.privacy.mechanism import Adjacency, Mechanism
from lightning_recon.privacy.noise_for_risk import RISKS, Risk, noise_multiplier_for_risks, risk_limit
from lightning_recon.privacy.reconstruction_robustness import rero_gamma
from lightning_recon.privacy.risk import (
    advantage,
    gaussian_advantage,
    gaussian_true_positive_rate,
    true_positive_rate,
)

DELTA = 1e-5


@pytest.mark.parametrize("mu", [0.3, 1.0])
def test_advantage_is_delta_at_epsilon_zero(mu: float) -> None:
    loss = privacy_loss_distribution.from_gaussian_mechanism(1 / mu, value_discretization_interval=1e-3)
    assert gaussian_advantage(mu) == pytest.approx(loss.get_delta_for_epsilon(0.0), abs=1e-3)


@pytest.mark.parametrize("mu", [0.3, 2.5])
@pytest.mark.parametrize("rate", [0.001, 0.1])
def test_many_guarantees_together_give_the_exact_risk(mu: float, rate: float) -> None:
    guarantees = [(gaussian_epsilon(mu, delta) or 0.0, delta) for delta in np.geomspace(1e-7, 0.95, 300)]
    exact = gaussian_true_positive_rate(rate, mu)
    assert exact <= true_positive_rate(rate, guarantees) <= exact * 1.01
    assert gaussian_advantage(mu) <= advantage(guarantees) <= gaussian_advantage(mu) + 3e-3


def test_known_values_of_membership_risk() -> None:
    # At mu = 1 the best threshold lies half way: Phi(1/2) of the members, and of the others, are guessed rightly.
    assert gaussian_advantage(1.0) == pytest.approx(0.6914624612740131 - 0.3085375387259869)
    assert gaussian_true_positive_rate(0.01, -float(ndtri(0.01))) == pytest.approx(0.5)
    assert gaussian_true_positive_rate(0.1, 0.7) == rero_gamma(0.1, 0.7)
    assert (gaussian_advantage(None), gaussian_true_positive_rate(0.01, None)) == (1.0, 1.0)
    assert (gaussian_advantage(0.0), gaussian_true_positive_rate(0.01, 0.0)) == (0.0, pytest.approx(0.01))


def test_a_pure_guarantee_alone() -> None:
    assert advantage([(1.0, 0.0)]) == pytest.approx(math.tanh(0.5))
    assert true_positive_rate(0.01, [(1.0, 0.0)]) == pytest.approx(0.01 * math.e)
    assert true_positive_rate(0.9, [(1.0, 0.0)]) == pytest.approx(1 - 0.1 / math.e)
    assert true_positive_rate(0.01, [(1e6, 0.0)]) == 1.0
    assert (advantage([]), true_positive_rate(0.01, [])) == (1.0, 1.0)


def laplace_advantage(scales: float) -> float:
    return 1 - math.exp(-scales / 2)


@pytest.mark.parametrize("adjacency", ["add_remove", "replace_one"])
def test_laplace_noise_close_to_its_exact_advantage(adjacency: Adjacency) -> None:
    scales = 1.0 if adjacency == "add_remove" else 2.0  # that the noise moves by, at z = 1
    found = Laplace().membership_advantage(1.0, 1, adjacency)
    assert laplace_advantage(scales) <= found <= laplace_advantage(scales) + 0.02
    assert Laplace().true_positive_rate(0.01, 1.0, 1, adjacency) == pytest.approx(0.01 * math.exp(scales), rel=1e-6)


@pytest.mark.parametrize("mechanism", [Gaussian(), Laplace(), Skellam()], ids=lambda one: one.name)
def test_more_rounds_are_a_greater_risk(mechanism: Mechanism) -> None:
    for rate in (0.01, 0.1):
        one, more = (mechanism.true_positive_rate(rate, 20.0, rounds, "add_remove") for rounds in (1, 20))
        assert rate < one < more < 1
    one, more = (mechanism.membership_advantage(20.0, rounds, "add_remove") for rounds in (1, 20))
    assert 0 < one < more < 1


def test_without_noise_nothing_is_hidden() -> None:
    for mechanism in (Gaussian(), Laplace()):
        assert mechanism.membership_advantage(0.0, 1, "add_remove") == 1.0
        assert mechanism.true_positive_rate(0.01, 0.0, 1, "add_remove") == 1.0


# --- the inverse ---


@pytest.mark.parametrize("adjacency", ["add_remove", "replace_one"])
@pytest.mark.parametrize(
    "text", ["advantage=0.1", "tpr@0.01=0.05", "tpr@0.001=0.01", "reconstruction@0.1=0.2", "epsilon=8", "mu=1"]
)
def test_the_noise_keeps_the_risk_and_no_less_does(text: str, adjacency: Adjacency) -> None:
    risk, limit = risk_limit(text)
    z = noise_multiplier_for_risks([(risk, limit)], Gaussian(), 20, DELTA, adjacency)
    assert risk.of(Gaussian(), z, 20, DELTA, adjacency) == pytest.approx(limit, rel=1e-5)
    assert (risk.of(Gaussian(), z, 20, DELTA, adjacency) or 1.0) <= limit
    assert (risk.of(Gaussian(), 0.999 * z, 20, DELTA, adjacency) or 0.0) > limit


def test_noise_for_a_risk_by_hand() -> None:
    """Advantage 0.1: mu = 2 Phi^-1(0.55); four rounds need twice the noise of one."""
    z = 1 / (2 * float(ndtri(0.55)))
    assert noise_multiplier_for_risks([(Risk("advantage"), 0.1)], Gaussian(), 1, DELTA, "add_remove") == (
        pytest.approx(z, rel=1e-6)
    )
    assert noise_multiplier_for_risks([(Risk("advantage"), 0.1)], Gaussian(), 4, DELTA, "add_remove") == (
        pytest.approx(2 * z, rel=1e-6)
    )


def test_several_limits_need_the_noise_of_the_strictest() -> None:
    limits = [risk_limit("advantage=0.5"), risk_limit("tpr@0.001=0.002")]
    together = noise_multiplier_for_risks(limits, Gaussian(), 1, DELTA, "add_remove")
    assert together == noise_multiplier_for_risks(limits[1:], Gaussian(), 1, DELTA, "add_remove")
    assert all((risk.of(Gaussian(), together, 1, DELTA, "add_remove") or 1.0) <= limit for risk, limit in limits)


def test_noise_for_a_risk_under_laplace_noise() -> None:
    z = noise_multiplier_for_risks([(Risk("tpr", 0.01), 0.03)], Laplace(), 1, DELTA, "add_remove")
    assert z == pytest.approx(1 / math.log(3), rel=1e-5)
    with pytest.raises(UserError, match="mu is not known for the laplace mechanism"):
        noise_multiplier_for_risks([(Risk("mu"), 1.0)], Laplace(), 1, DELTA, "add_remove")


def test_every_stated_risk_is_known_of_gaussian_noise() -> None:
    assert all(risk.of(Gaussian(), 1.0, 1, DELTA, "add_remove") is not None for risk in RISKS)


@pytest.mark.parametrize(
    "text",
    ["", "advantage", "advantage=x", "tpr=0.1", "tpr@2=0.1", "advantage@0.1=0.2", "privacy=1", "tpr@0.01=0.005",
     "advantage=1", "epsilon=0", "mu=nan"],
)  # fmt: skip
def test_a_limit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--risk"):
        risk_limit(text)
