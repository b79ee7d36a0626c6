# SPDX-License-Identifier: Apache-2.0
"""What a privacy guarantee means for a person: how well any attack can do, all rounds together.

An attack on membership decides from all releases whether a person's record was in the data. Its false-positive rate is
the share of absent records that it calls present, its true-positive rate the share of present ones.
"""

import math
from collections.abc import Sequence

from scipy.special import ndtr, ndtri

Guarantee = tuple[float, float]  # epsilon and delta, of the same releases

# At these false-positive rates membership attacks are compared, e.g. by Carlini et al. (arXiv 2112.03570).
FALSE_POSITIVE_RATES = (0.01, 0.001)


def gaussian_advantage(mu: float | None) -> float:
    """Membership advantage that no attack on a Gaussian mechanism exceeds: true- minus false-positive rate.

    Args:
        mu: sensitivity over noise of all rounds together, >= 0; None where there is no noise.

    Returns:
        2 Phi(mu/2) - 1, in [0, 1].

    Source: Dong, Roth and Su, "Gaussian Differential Privacy" (2022), of the trade-off function G_mu; advantage as in
    Yeom et al. (arXiv 1709.01604).
    """
    return 1.0 if mu is None else float(2 * ndtr(mu / 2) - 1)


def gaussian_true_positive_rate(false_positive_rate: float, mu: float | None) -> float:
    """True-positive rate that no membership attack on a Gaussian mechanism exceeds.

    Args:
        false_positive_rate: of the attack, in (0, 1).
        mu: sensitivity over noise of all rounds together, >= 0; None where there is no noise.

    Returns:
        Phi(Phi^-1(false-positive rate) + mu), in [false-positive rate, 1].

    Source: Dong, Roth and Su (2022): 1 - G_mu. It is the bound gamma of reconstruction as well, see `rero_gamma`.
    """
    return 1.0 if mu is None else float(ndtr(ndtri(false_positive_rate) + mu))


def advantage(guarantees: Sequence[Guarantee]) -> float:
    """Membership advantage that no attack exceeds, given several guarantees that all hold.

    Args:
        guarantees: (epsilon, delta) pairs of the same releases.

    Returns:
        The least of (exp(epsilon) - 1 + 2 delta) / (exp(epsilon) + 1), in [0, 1].

    Source: Kairouz, Oh and Viswanath (arXiv 1311.0776): the region of error rates that a guarantee allows.
    """
    return min([1.0, *(math.tanh(one / 2) * (1 - delta) + delta for one, delta in guarantees)])


def true_positive_rate(false_positive_rate: float, guarantees: Sequence[Guarantee]) -> float:
    """True-positive rate that no membership attack exceeds, given several guarantees that all hold.

    Args:
        false_positive_rate: of the attack, in (0, 1).
        guarantees: (epsilon, delta) pairs of the same releases.

    Returns:
        The least of exp(epsilon) FPR + delta and 1 - exp(-epsilon) (1 - delta - FPR), in [false-positive rate, 1].

    Source: Kairouz, Oh and Viswanath (arXiv 1311.0776).
    """
    bounds = [1.0]
    for epsilon, delta in guarantees:
        if epsilon < 700:  # beyond, the bound is 1
            bounds.append(math.exp(epsilon) * false_positive_rate + delta)
        bounds.append(1 - math.exp(-epsilon) * max(0.0, 1 - delta - false_positive_rate))
    return max(false_positive_rate, min(bounds))
