# SPDX-License-Identifier: Apache-2.0
"""Lower bound on epsilon of the Gaussian mechanism, from mean and variance of the canaries' scores.

Assumptions: the noise is Gaussian with the same standard deviation for all canaries, independent between them, and a
canary moves its own score alone, by at most the sensitivity. Where the noise is not Gaussian the bound states nothing.
"""

import math

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, nct

from lightning_recon.privacy.gaussian_accounting import gaussian_epsilon, noise_multiplier_for
from lightning_recon.verification.empirical_epsilon.scores import CanaryScores

_LARGE = 1e4  # above it the noise of the mean is negligible beside that of the variance


def gaussian_dp_epsilon(scores: CanaryScores, delta: float, confidence: float = 0.95, rounds: int = 1) -> float:
    """Lower bound on epsilon of a Gaussian mechanism.

    Args:
        scores: of the canaries in one release each.
        delta: privacy parameter, in (0, 1).
        confidence: probability, over the releases, that epsilon is no less than the bound, in (0, 1).
        rounds: releases about the same data that epsilon is stated for; they compose to sqrt(rounds) * mu.

    Returns:
        The bound, >= 0; infinite where scores have no noise.

    Source: Dong, Roth and Su, "Gaussian Differential Privacy" (2022); auditing through mu as in Nasr et al. (arXiv
    2302.07956), here by mean and variance instead of a threshold.
    """
    mu = mu_lower_bound(scores, confidence) * math.sqrt(rounds)
    if mu == 0 or math.isinf(mu):
        return mu
    found = gaussian_epsilon(mu, delta)
    assert found is not None
    return found


def gaussian_dp_p_value(scores: CanaryScores, epsilon: float, delta: float, rounds: int = 1) -> float:
    """Probability, if the claim holds, of scores that lie so far apart.

    Args:
        scores: of the canaries in one release each.
        epsilon: the claim, >= 0.
        delta: privacy parameter of the claim, in (0, 1).
        rounds: releases about the same data that the claim is about.

    Returns:
        P-value of the claim, in [0, 1].
    """
    mu = 1 / noise_multiplier_for(epsilon, delta, 1, "add_remove") / math.sqrt(rounds)
    return _mu_p_value(scores, mu)


def mu_lower_bound(scores: CanaryScores, confidence: float = 0.95) -> float:
    """Lower bound on mu, the distance of the two means in standard deviations of the noise.

    Args:
        scores: of the canaries.
        confidence: probability, over the releases, that mu is no less than the bound, in (0, 1).

    Returns:
        The bound, >= 0; infinite where scores have no noise.

    Source: exact interval of the noncentral t distribution, e.g. Hedges and Olkin, "Statistical Methods for
    Meta-Analysis" (1985), chapter 5.
    """
    risk = 1 - confidence
    if _mu_p_value(scores, 0.0) >= risk:
        return 0.0
    statistic, _, share = _t_statistic(scores)
    upper = statistic * share
    return upper if math.isinf(upper) else float(brentq(lambda mu: _mu_p_value(scores, mu) - risk, 0.0, upper))


def _mu_p_value(scores: CanaryScores, mu: float) -> float:
    # Student's t of the two kinds is noncentral: its noncentrality is mu over the standard error of the difference.
    statistic, degrees, share = _t_statistic(scores)
    noncentrality = mu / share
    if math.isinf(statistic):
        return 0.0 if statistic > 0 else 1.0
    if noncentrality > _LARGE:
        return float(chi2.cdf(degrees * (noncentrality / statistic) ** 2, degrees)) if statistic > 0 else 1.0
    return float(nct.sf(statistic, degrees, noncentrality))


def _t_statistic(scores: CanaryScores) -> tuple[float, int, float]:
    # Student's t, its degrees of freedom, and the standard error of the difference in standard deviations of a score.
    counts = len(scores.included), len(scores.excluded)
    share = math.sqrt(1 / counts[0] + 1 / counts[1])
    degrees = sum(counts) - 2
    squares = sum(float(np.square(one - one.mean()).sum()) for one in (scores.included, scores.excluded))
    difference = float(scores.included.mean() - scores.excluded.mean())
    error = share * math.sqrt(squares / degrees)
    if error == 0:  # scores without noise
        return (math.copysign(math.inf, difference) if difference else 0.0), degrees, share
    return difference / error, degrees, share
