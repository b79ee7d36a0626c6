# SPDX-License-Identifier: Apache-2.0
"""Inputs of ±1 in Laplace noise: their capacity, and what the channel code needs there.

At low signal-to-noise ratios an input carries more bits than in Gaussian noise of the same variance, at high ones
fewer. What a code needs follows from that: codewords come through at about the same mutual information in both kinds
of noise.
"""

import math
from functools import lru_cache

import numpy as np

from lightning_recon.structure.coding.channel_code import binary_capacity, needed_snr

# Signal-to-noise ratios between which the one of a capacity is interpolated: three digits of a decibel.
_SNRS = np.geomspace(1e-3, 1e3, 600)


def laplace_capacity(snr: float) -> float:
    """Bits that one ±1 input can carry at most in Laplace noise, in [0, 1].

    Args:
        snr: Power of the input by the variance of its noise.

    Returns:
        1 - E[log2(1 + exp(-L))], where L is the log-likelihood ratio of what was sent: t with probability 1/2, -t with
        probability exp(-t)/2, and otherwise in between, for t = 2 sqrt(2 snr).
    """
    limit = 2 * math.sqrt(2 * snr)
    half = math.exp(-limit / 2)
    lost = math.log1p(math.exp(-limit)) + half * (math.pi / 2 - 2 * math.atan(half))
    return max(0.0, 1 - lost / math.log(2))


def laplace_needed_snr(rung: int, inputs: int) -> float:
    """Signal-to-noise ratio of each input in Laplace noise at which a few codewords in a thousand are lost.

    Args:
        rung: Place on the ladder.
        inputs: Length of the codeword.
    """
    capacity = binary_capacity(needed_snr(rung, inputs))
    return float(np.exp(np.interp(capacity, _capacities(), np.log(_SNRS))))


@lru_cache(maxsize=1)
def _capacities() -> np.ndarray:
    return np.array([laplace_capacity(snr) for snr in _SNRS.tolist()])
