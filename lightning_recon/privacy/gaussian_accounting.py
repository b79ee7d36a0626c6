# SPDX-License-Identifier: Apache-2.0
"""Exact privacy accounting of the Gaussian mechanism, and the nominal epsilon of the seed paper."""

import math
from collections.abc import Callable

from scipy.optimize import brentq, minimize_scalar
from scipy.special import erfcx, ndtr

from lightning_recon.errors import UserError
from lightning_recon.privacy.mechanism import ADJACENCIES, Adjacency

ACCOUNTANT = "gaussian-exact"


def gaussian_delta(epsilon: float, mu: float) -> float:
    """The smallest delta for which a Gaussian mechanism is (epsilon, delta) differentially private.

    Args:
        epsilon: Privacy parameter, >= 0.
        mu: Sensitivity divided by the standard deviation of the noise, > 0.

    Returns:
        delta = Phi(mu/2 - epsilon/mu) - exp(epsilon) * Phi(-mu/2 - epsilon/mu), in [0, 1].

    Source: Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy" (ICML 2018), Theorem 8.
    """
    return _delta_at(mu / 2 - epsilon / mu, mu)


def gaussian_epsilon(mu: float | None, delta: float) -> float | None:
    """The smallest epsilon for which a Gaussian mechanism is (epsilon, delta) differentially private.

    Args:
        mu: Sensitivity divided by the standard deviation of the noise, > 0; None where there is no noise.
        delta: Privacy parameter, in (0, 1).

    Returns:
        epsilon >= 0; None where there is no noise, since then no finite epsilon holds.

    Raises:
        UserError: If delta is outside (0, 1).

    Source: Balle and Wang (2018), Theorem 8, solved for epsilon; R independent releases compose to sqrt(R) * mu.
    """
    _check_delta(delta)
    if mu is None:
        return None
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    # Solved for u = mu/2 - epsilon/mu, which stays of order one where epsilon reaches 1e7 and more.
    # delta <= Phi(u) <= exp(-u^2/2)/2 for u < 0 gives the lower end; the upper end is epsilon = 0.
    lower = -math.sqrt(2 * math.log(1 / delta))
    u = brentq(lambda point: _delta_at(point, mu) - delta, lower, mu / 2, xtol=1e-13)
    return float(mu * (mu / 2 - u))


def mu_of(noise_multiplier: float, rounds: int, adjacency: Adjacency) -> float | None:
    """Sensitivity over noise of all rounds together, the one number that Gaussian releases compose by.

    Args:
        noise_multiplier: Standard deviation of the noise divided by the clipping norm, >= 0.
        rounds: Releases of the same data, >= 1.
        adjacency: "add_remove" moves the clipped sum by at most the clipping norm, "replace_one" by twice that.

    Returns:
        mu = sqrt(rounds) * sensitivity / noise, > 0; None without noise.

    Source: Dong, Roth and Su, "Gaussian Differential Privacy" (2022), Corollary 3.3.
    """
    if noise_multiplier == 0:
        return None
    return _distance(rounds, adjacency) / noise_multiplier


def noise_multiplier_for(epsilon: float, delta: float, rounds: int, adjacency: Adjacency) -> float:
    """The noise multiplier at which `gaussian_epsilon` of all rounds together is the epsilon asked for.

    Args:
        epsilon: Privacy parameter to reach, >= 0.
        delta: Privacy parameter, in (0, 1).
        rounds: Releases of the same data, >= 1.
        adjacency: Which neighbours are compared; see `mu_of`.

    Returns:
        Standard deviation of the noise divided by the clipping norm, > 0.

    Raises:
        UserError: If delta is outside (0, 1) or epsilon is negative.

    Source: Balle and Wang (2018), Theorem 8, solved for the noise.
    """
    _check_delta(delta)
    if not epsilon >= 0:
        raise UserError(f"epsilon is {epsilon}: give a number that is not negative")
    # delta(epsilon, mu) <= 2 Phi(mu/2) - 1 < mu gives the lower end; at the upper end u = 10, where delta is 1.
    upper = 10 + math.sqrt(100 + 2 * epsilon)
    log_mu = brentq(
        lambda point: gaussian_delta(epsilon, math.exp(point)) - delta, math.log(delta), math.log(upper), xtol=1e-13
    )
    return _distance(rounds, adjacency) / math.exp(log_mu)


def renyi_epsilon(mu: float | None, delta: float) -> float | None:
    """What accounting by Renyi divergences states for a Gaussian mechanism: for comparison, above the exact value.

    Args:
        mu: Sensitivity over noise of all rounds together, > 0; None where there is no noise.
        delta: Privacy parameter, in (0, 1).

    Returns:
        The least epsilon >= 0 over all orders alpha > 1, at each of which the divergence is alpha mu^2 / 2; None
        without noise.

    Raises:
        UserError: If delta is outside (0, 1).

    Source: Mironov, "Renyi Differential Privacy" (arXiv 1702.07476), Proposition 7.
    """
    _check_delta(delta)
    return None if mu is None else converted_epsilon(lambda excess: (1 + excess) * mu * mu / 2, delta)


def converted_epsilon(divergence: Callable[[float], float], delta: float) -> float:
    """Epsilon that follows from Renyi divergences.

    Args:
        divergence: Of order 1 + its argument, which is above 0.
        delta: Privacy parameter, in (0, 1).

    Returns:
        The least epsilon >= 0 that was found over all orders, each of which gives an upper bound.

    Source: Canonne, Kamath and Steinke (arXiv 2004.00010), Proposition 12.
    """

    def stated(log_excess: float) -> float:
        excess = math.exp(log_excess)  # alpha - 1, over many orders of magnitude
        tail = math.log(1 / delta) - math.log1p(excess)
        return divergence(excess) + tail / excess + log_excess - math.log1p(excess)

    return max(0.0, float(minimize_scalar(stated, bounds=(-30, 30), options={"xatol": 1e-10}).fun))


def epsilon_by_adjacency(noise_multiplier: float, rounds: int, delta: float) -> dict[Adjacency, float | None]:
    """Exact epsilon of all rounds together for both kinds of neighbours.

    Args:
        noise_multiplier: Standard deviation of the noise divided by the clipping norm, >= 0.
        rounds: Releases of the same data, >= 1.
        delta: Privacy parameter, in (0, 1).

    Returns:
        `gaussian_epsilon` of `mu_of` by adjacency; None without noise.

    Raises:
        UserError: If delta is outside (0, 1).
    """
    return {name: gaussian_epsilon(mu_of(noise_multiplier, rounds, name), delta) for name in ADJACENCIES}


def nominal_epsilon(noise_multiplier: float) -> float | None:
    """The epsilon that the sample reconstruction paper attaches to a noise multiplier; no guarantee of anything.

    Args:
        noise_multiplier: Standard deviation of the noise divided by the clipping norm, >= 0.

    Returns:
        epsilon = 2 / (1000 * noise_multiplier); None without noise.

    Source: the noise of You et al. (IEEE TIFS 2025), sigma = 2 C / (1000 epsilon): as if 1000 samples were averaged.
    """
    return None if noise_multiplier == 0 else 2 / (1000 * noise_multiplier)


def _distance(rounds: int, adjacency: Adjacency) -> float:
    # How far neighbours' releases lie apart, all rounds together, in clipping norms.
    return math.sqrt(rounds) * (2 if adjacency == "replace_one" else 1)


def _delta_at(u: float, mu: float) -> float:
    # With v = u - mu, epsilon = (v^2 - u^2)/2, so exp(epsilon) Phi(v) = exp(-u^2/2) erfcx(-v/sqrt 2)/2: nothing in it
    # overflows or cancels however large epsilon is.
    return float(ndtr(u) - 0.5 * math.exp(-u * u / 2) * erfcx((mu - u) / math.sqrt(2)))


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise UserError(f"delta is {delta}: give a probability between 0 and 1, for example 1e-5")
