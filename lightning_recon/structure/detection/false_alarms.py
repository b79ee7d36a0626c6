# SPDX-License-Identifier: Apache-2.0
"""Hypothesis tests at a given false-alarm rate: row activity, and one sample against a collision of two."""

import torch
from scipy import stats
from torch import Tensor

# Prior standard deviation of the log gradient weights under one clip; the prior counts as two observations.
_LOG_WEIGHT_STD = 0.15
# Relative tolerance for a victim whose energy equals the bound.
_ROUNDING = 1e-3


def active_threshold(weights: Tensor, false_alarm: float) -> float:
    """Weighted energy that pure unit-variance noise exceeds with probability `false_alarm`.

    Args:
        weights: Shape (m,): weight of each squared entry, non-negative.
        false_alarm: Probability, in (0, 1).

    Source: Satterthwaite (1946): a weighted sum of χ²₁ behaves like a scaled χ² of matching mean and variance.
    """
    total, squares = float(weights.sum()), float((weights**2).sum())
    freedom = total**2 / squares
    return float(stats.chi2.isf(false_alarm, freedom)) * squares / total


def bounded(energy: Tensor, variance: Tensor, squares: float, bound: float, false_alarm: float) -> Tensor:
    """Whether each energy is consistent with the clipping bound of a single victim; a pair has about twice that.

    Args:
        energy: Their weighted energies without that of the noise, shape (V,).
        variance: The variance of the noise in each of their inputs, shape (V,).
        squares: Sum of the squared weights.
        bound: Largest energy of a single victim.
        false_alarm: Probability that a victim at the bound is rejected, in (0, 1).

    Returns:
        Shape (V,), bool.
    """
    deviation = (2 * squares * variance**2 + 4 * variance * bound).sqrt()
    return energy <= bound * (1 + _ROUNDING) + float(stats.norm.isf(false_alarm)) * deviation


def typical_weights(log_weights: Tensor, std: Tensor, false_alarm: float) -> Tensor:
    """Whether each gradient weight is consistent with the others; a pair of equal sign has about twice the weight.

    Args:
        log_weights: Logarithms of the absolute gradient weights, shape (V,), V at least 2.
        std: Their standard deviations caused by noise, shape (V,).
        false_alarm: Probability that any weight of a batch is rejected, in (0, 1). Where the weights are several times
            more unequal than expected, the actual rate is two to four times that, and up to ten times among three.

    Returns:
        Shape (V,), bool.

    Source: Student's prediction of each logarithm from the others, with a conjugate prior of their spread.
    """
    count = len(log_weights)
    predicted = (log_weights.sum() - log_weights) / (count - 1)
    scatter = log_weights.square().sum() - log_weights.square() - (count - 1) * predicted.square()
    variance = (2 * _LOG_WEIGHT_STD**2 + scatter.clamp(min=0)) / (count - 1)
    reach = float(stats.t.isf(false_alarm / count, count))
    accepted: Tensor = log_weights - predicted <= reach * torch.sqrt(variance + std.square())
    return accepted
