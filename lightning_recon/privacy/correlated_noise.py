# SPDX-License-Identifier: Apache-2.0
"""Noise that is correlated over rounds, as in DP-FTRL: the banded matrix mechanism, as pure functions.

The noise of round t is sum_j c_j Z_{t-j} with independent normal Z and c_0 = 1: each round takes back a part of the
noise of the rounds before it, so that sums over rounds, which a training uses, have less noise. The matrix of these
coefficients over all rounds is the inverse of the strategy matrix C of the matrix mechanism. Whoever knows them can
multiply the rounds by C, which makes the noise white again.

Source: Kairouz et al., "Practical and Private (Deep) Learning Without Sampling or Shuffling" (arXiv 2103.00039);
Denisov et al., "Improved Differential Privacy for SGD via Optimal Private Linear Operators on Adaptive Streams" (arXiv
2202.08312); Fichtenberger, Henzinger and Upadhyay, "Constant matters" (arXiv 2202.11205), for the square root.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def noise_coefficients(bands: int) -> tuple[float, ...]:
    """The coefficients c_0 = 1, c_1 = -1/2, c_2 = -1/8, ... of the noise of a round.

    Args:
        bands: How many rounds' Z a round's noise is made of, >= 1; 1: independent noise.

    Returns:
        The first coefficients of the power series of sqrt(1 - x), which are the inverse of the square root of the
        matrix of prefix sums.
    """
    found = [1.0]
    for order in range(1, bands):
        found.append(found[-1] * (order - 1.5) / order)
    return tuple(found)


@lru_cache(maxsize=64)
def strategy_column(bands: int, rounds: int) -> NDArray[np.float64]:
    """First column of the strategy matrix C, which is lower triangular and Toeplitz; no entry is negative."""
    coefficients = np.zeros(rounds)
    kept = noise_coefficients(min(bands, rounds))
    coefficients[: len(kept)] = kept
    column = np.zeros(rounds)
    column[0] = 1.0
    for number in range(1, rounds):
        column[number] = -coefficients[1 : number + 1] @ column[number - 1 :: -1][:number]
    column.setflags(write=False)
    return column


def sensitivity(bands: int, rounds: int) -> float:
    """Norm of C times the rounds of a record that is in all of them, in clipping norms.

    No entry of C is negative, so that the worst record sends the same clipped vector in every round.
    """
    return math.sqrt(float(np.square(np.cumsum(strategy_column(bands, rounds))).sum()))


def equivalent_multiplier(noise_multiplier: float, bands: int, rounds: int) -> float:
    """Noise multiplier of independent noise in as many rounds with the same guarantee for all of them together.

    It is also what whitening leaves: the best linear estimate of what all rounds have in common has the variance that
    their mean has under such noise.

    Args:
        noise_multiplier: Standard deviation of Z divided by the clipping norm.
        bands: See `noise_coefficients`.
        rounds: Releases of the same record.
    """
    return noise_multiplier * math.sqrt(rounds) / sensitivity(bands, rounds) if bands > 1 else noise_multiplier


def round_weights(bands: int, rounds: int) -> tuple[float, ...]:
    """Weights of the rounds in the best linear unbiased estimate of what they have in common; their sum is 1.

    Source: generalized least squares; the inverse of the noise's covariance is C^T C.
    """
    column = strategy_column(bands, rounds)
    whitened = np.cumsum(column)  # C times ones
    weights = np.array([column[: rounds - number] @ whitened[number:] for number in range(rounds)])
    return tuple(float(weight) for weight in weights / weights.sum())
