# SPDX-License-Identifier: Apache-2.0
"""Tests with a stated rate of false alarms: does a row hold anything, and is a victim one picture or two."""

import torch
from scipy import stats
from torch import Tensor

# Spread of the logarithm of victims' voices that is expected under one clip: a belief worth two voices.
_VOICE_STD = 0.15
# Rounding of a victim whose energy is exactly at its bound.
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
    """Whether victims have no more energy than clipping leaves a lone one; a pair has about twice that.

    Args:
        energy: Their weighted energies without that of the noise, shape (V,).
        variance: The variance of the noise in each of their inputs, shape (V,).
        squares: Sum of the squared weights.
        bound: The most energy of a lone victim.
        false_alarm: Probability that one at the bound seems above it, in (0, 1).

    Returns:
        Shape (V,), bool.
    """
    deviation = (2 * squares * variance**2 + 4 * variance * bound).sqrt()
    return energy <= bound * (1 + _ROUNDING) + float(stats.norm.isf(false_alarm)) * deviation


def usual_voices(voices: Tensor, doubt: Tensor, false_alarm: float) -> Tensor:
    """Whether victims are no louder than the others let expect; a pair of like voices is twice as loud.

    Args:
        voices: Logarithms of the voices, shape (V,), V at least 2.
        doubt: Their standard deviations by noise, shape (V,).
        false_alarm: Probability that any voice of a batch seems too loud, in (0, 1). Where voices are several times
            more unequal than expected it is two to four times that, and up to ten times among three voices.

    Returns:
        Shape (V,), bool.

    Source: Student's prediction of each logarithm from the others, with a conjugate prior of their spread.
    """
    count = len(voices)
    usual = (voices.sum() - voices) / (count - 1)
    scatter = voices.square().sum() - voices.square() - (count - 1) * usual.square()
    variance = (2 * _VOICE_STD**2 + scatter.clamp(min=0)) / (count - 1)
    reach = float(stats.t.isf(false_alarm / count, count))
    usual_ones: Tensor = voices - usual <= reach * torch.sqrt(variance + doubt.square())
    return usual_ones
