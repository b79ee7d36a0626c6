# SPDX-License-Identifier: Apache-2.0
"""Lower bound on epsilon from how often a threshold separates included from excluded canaries.

Assumptions: scores of different canaries are independent, and those of one kind have one distribution. Nothing is
assumed of the noise.
"""

import math
from collections.abc import Iterator

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaincinv

from lightning_recon.verification.empirical_epsilon.scores import CanaryScores

_SMALLEST_P_VALUE = 1e-12


def clopper_pearson_epsilon(scores: CanaryScores, delta: float, confidence: float = 0.95) -> float:
    """Lower bound on epsilon that needs no model of the noise.

    A threshold decides that a canary was included. An (epsilon, delta) differentially private release allows at most
    TPR <= exp(epsilon) FPR + delta, so that lower bounds on TPR and upper bounds on FPR give a lower bound on epsilon.
    The thresholds are the 1st, 10th, 100th ... highest score of the excluded canaries, both ways round. Their risks of
    error add up to 1 - confidence.

    Args:
        scores: of the canaries.
        delta: privacy parameter, in [0, 1).
        confidence: probability, over the releases, that epsilon is no less than the bound, in (0, 1).

    Returns:
        The bound, >= 0.

    Source: Clopper and Pearson (Biometrika 26, 1934); for privacy audits Jagielski, Ullman and Oprea (arXiv 2006.07709)
    and Nasr et al. (arXiv 2302.07956). The r-th highest of n independent scores is exceeded with a probability of
    distribution Beta(r, n + 1 - r), so that the threshold may be one of the scores.
    """
    tests = list(_tests(scores))
    risk = (1 - confidence) / len(tests) / 2
    return max(_epsilon(*test, delta, risk) for test in tests)


def clopper_pearson_p_value(scores: CanaryScores, epsilon: float, delta: float) -> float:
    """Smallest risk at which `clopper_pearson_epsilon` exceeds a claimed epsilon.

    Args:
        scores: of the canaries.
        epsilon: the claim, >= 0.
        delta: privacy parameter of the claim, in [0, 1).

    Returns:
        P-value of the claim, in (0, 1]; at least 1e-12.
    """

    def excess(log_risk: float) -> float:
        return clopper_pearson_epsilon(scores, delta, -math.expm1(log_risk)) - epsilon

    lowest, highest = math.log(_SMALLEST_P_VALUE), -1e-9
    if excess(highest) <= 0:
        return 1.0
    if excess(lowest) > 0:
        return _SMALLEST_P_VALUE
    return math.exp(brentq(excess, lowest, highest, xtol=1e-6))


def _tests(scores: CanaryScores) -> Iterator[tuple[int, int, int, int]]:
    # Rank of the threshold and number of the scores that set it; successes and number of the others.
    for one in (scores, scores.reversed):
        falling = np.sort(one.excluded)[::-1]
        for rank in (10**power for power in range(1 + int(math.log10(len(falling))))):
            yield rank, len(falling), int((one.included > falling[rank - 1]).sum()), len(one.included)


def _epsilon(rank: int, negatives: int, hits: int, positives: int, delta: float, risk: float) -> float:
    lowest_tpr = 0.0 if hits == 0 else float(betaincinv(hits, positives - hits + 1, risk))
    highest_fpr = float(betaincinv(rank, negatives + 1 - rank, 1 - risk))
    return max(0.0, math.log((lowest_tpr - delta) / highest_fpr)) if lowest_tpr > delta else 0.0
