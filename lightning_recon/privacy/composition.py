# SPDX-License-Identifier: Apache-2.0
"""Numerical composition of equal releases, given the distribution of the privacy loss of one."""

import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_recon.opacus_import import import_opacus


class PrivacyLoss(Protocol):
    """Distribution of log P(x)/Q(x) of an output x drawn from P, on a bounded range."""

    def cdf(self, loss: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability of a loss no larger."""
        ...

    def mean(self) -> float:
        """Expected loss."""
        ...


def composed_epsilon(
    loss_between: Callable[[float, float], PrivacyLoss], reach: float, releases: int, delta: float, known: float
) -> float:
    """Epsilon of several equal, independent releases.

    Args:
        loss_between: the loss of one release, restricted to a range of values.
        reach: what the loss of all releases, and of each, keeps below but for a probability of `delta` / 1000.
        releases: how many there are.
        delta: privacy parameter, in (0, 1).
        known: an upper bound on epsilon that is known otherwise.

    Returns:
        The least upper bound that was found, at most `known`: about a hundredth above the true value where the grid
        can be made fine enough.

    Source: Gopi et al. (2021, arXiv 2106.02848), as Opacus implements it, upper end of its error.
    """
    import_opacus()  # takes seconds, and most runs do without
    from opacus.accountants.analysis import prv

    lost, bounds = delta / 1000, [known]
    # Errors: where the noise is too low, or delta, for any grid. Warnings: of tails far out; the bounds hold.
    with suppress(RuntimeError, ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        error = epsilon_error(known)
        while True:  # a bound that was found with a coarse grid says how fine the next should be
            grid = prv.Domain.create_aligned(-reach, reach, error / math.sqrt(releases * math.log(12 / lost) / 2))
            one = prv.discretize(loss_between(grid.t_min, grid.t_max), grid)
            composed = prv.compose_heterogeneous([one], [releases])
            bounds.append(float(composed.compute_epsilon(delta, lost, error)[2]))
            if epsilon_error(min(bounds)) > error / 2:
                break
            error = epsilon_error(min(bounds))
    return max(0.0, min(bound for bound in bounds if math.isfinite(bound)))


def epsilon_error(epsilon: float) -> float:
    """Error that a numerical bound near epsilon may have: of a hundredth, so that the grid stays small."""
    return 0.01 * max(1.0, epsilon)
