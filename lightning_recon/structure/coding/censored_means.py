# SPDX-License-Identifier: Apache-2.0
"""Means of several updates of each of which only the entries beyond a threshold arrived.

In a round an entry is its amplitude plus normal noise, or 0 where that stays below the threshold. The distribution of
the sum over rounds is that of one round convolved with itself.
"""

import math

import numpy as np
from scipy import stats
from scipy.optimize import brentq

# Spacing of the grid, and how far it reaches, in standard deviations of one round's noise; most of its points.
_STEP, _REACH, _MOST_POINTS = 0.02, 8.0, 1 << 22
# Densities below this share of the largest one are rounding of the convolution.
_FLOOR = 1e-13
_LEAST = 1e-300


class CensoredMean:
    """The distribution of the mean of an entry over several rounds."""

    def __init__(self, amplitude: float, noise: float, threshold: float, rounds: int) -> None:
        """Convolve.

        Args:
            amplitude: Of the entry.
            noise: Standard deviation of the noise in one round.
            threshold: Magnitude from which an entry arrives in a round.
            rounds: Number of rounds.
        """
        self.rounds, reach = rounds, (max(abs(amplitude), threshold) + _REACH * noise) * rounds
        step = max(_STEP * noise, 2 * reach / _MOST_POINTS)
        half = math.ceil(reach / step)
        size = 1 << (2 * half).bit_length()
        values = step * ((np.arange(size) + size // 2) % size - size // 2)
        density = stats.norm.pdf(values, amplitude, noise) * (np.abs(values) > threshold)
        lost = stats.norm.cdf(threshold, amplitude, noise) - stats.norm.cdf(-threshold, amplitude, noise)
        once = density * step
        once[0] += lost
        total = np.fft.irfft(np.fft.rfft(once) ** rounds, size)
        total[0] -= lost**rounds
        order = values.argsort()
        self._values, self._density = values[order], np.maximum(total[order] / step, _FLOOR / noise)
        self._nothing = rounds * math.log(max(lost, _LEAST))

    def log_likelihood(self, means: np.ndarray) -> np.ndarray:
        """Of means over the rounds: log densities; log probabilities where nothing arrived in any round."""
        found = np.log(np.interp(self.rounds * means, self._values, self._density))
        return np.where(means == 0, self._nothing, found)


def censored_amplitude(mean: float, noise: float, threshold: float) -> float:
    """The amplitude at which an entry has this mean, at least 0: the inverse of what the threshold takes off.

    Args:
        mean: Of what arrives, zeros included.
        noise: Standard deviation of the noise in one round.
        threshold: Magnitude from which an entry arrives in a round.
    """

    def excess(amplitude: float) -> float:
        low, high = (threshold - amplitude) / noise, (threshold + amplitude) / noise
        beyond = stats.norm.sf(low) + stats.norm.sf(high)
        return float(amplitude * beyond + noise * (stats.norm.pdf(low) - stats.norm.pdf(high))) - mean

    return float(brentq(excess, 0.0, mean + threshold + _REACH * noise)) if mean > 0 else 0.0
