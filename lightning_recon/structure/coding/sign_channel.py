# SPDX-License-Identifier: Apache-2.0
"""What an entry of ±1 carries through local training, clip, noise and compression.

Under Adam, and under every optimizer whose steps do not depend on the gradient's scale, an entry of the update holds
the sign of its input times a known movement. Sign compression does the same to the release. Either way all inputs of
the structure that are not zero arrive with the same magnitude, so that a code for such clients consists of ±1, and what
the server chooses is how many of them share the clipping norm.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from lightning_recon.structure.coding.channel_code import binary_capacity
from lightning_recon.structure.coding.pulses import pulse_capacity

Method = Literal["all", "signs", "largest", "some"]
# Points and reach, in standard deviations, of the integral over the noise.
_POINTS, _REACH = 801, 8.0
# Largest share of the kept entries that images may use: of more, those of slightly smaller gradients would be lost.
_FILLED = 0.9
# Steps of bisection for thresholds: to a hundred-thousandth of a standard deviation.
_BISECTIONS = 25


@dataclass(frozen=True)
class SignChannel:
    """The way of the entries from the client to the server.

    Args:
        noise: Standard deviation of the noise on every entry, divided by the clipping norm.
        sharers: Number of images that share the clipping norm.
        movement: Movement of an entry before the clip, divided by the clipping norm, root mean square over images; None
            where it always exceeds the clip.
        weakest: Movement of the images that move least, relative to that.
        moved: Number of entries of the network that move by as much.
        method: "signs" if only signs arrive, "largest" if only the largest entries do, "some" if random ones do.
        share: Share of all entries that arrive.
        entries: Number of entries of the network.
    """

    noise: float
    sharers: int = 1
    movement: float | None = None
    weakest: float = 1.0
    moved: int = 0
    method: Method = "all"
    share: float = 1.0
    entries: int = 0

    def amplitude(self, entries: int) -> float:
        """Magnitude of an entry by the noise, of the images that move least, if each image moves so many entries."""
        clipped = 1 / math.sqrt(max(1, self.sharers * entries + self.moved))
        magnitude = clipped if self.movement is None else min(clipped, self.movement)
        return self.weakest * magnitude / max(self.noise, 1e-12)

    def information(self, entries: int, shipped: int, positions: int = 1, repeats: int = 1) -> float:
        """Bits that each bit of a codeword carries at most, in [0, 1]: that is an entry of ±1, or part of a pulse.

        Args:
            entries: Entries that each image moves.
            shipped: Entries of the whole structure.
            positions: Inputs of each pulse, where only the largest entries arrive; 1: every entry is ±1.
            repeats: Entries that hold the same bit, where random ones arrive.
        """
        amplitude = self.amplitude(entries)
        if self.method == "signs":
            return sign_capacity(amplitude)
        if self.method == "some":
            return repeated_capacity(amplitude, self.share, repeats)
        if self.method == "largest":
            total = self.entries + shipped
            excited = min(1.0, self.sharers * entries / total)
            if excited > _FILLED * self.share:
                return 0.0
            threshold = kept_threshold(amplitude, excited, self.share)
            if positions > 1:
                return pulse_capacity(amplitude, threshold, positions)
            return censored_capacity(amplitude, threshold)
        return capacity_of(amplitude)


def capacity_of(amplitude: float) -> float:
    """`binary_capacity` of an amplitude by the noise, from a table."""
    amplitudes, capacities = _table()
    return float(np.interp(amplitude, amplitudes, capacities))


def repeated_capacity(amplitude: float, share: float, repeats: int) -> float:
    """Bits that so many entries of the same sign carry together, if each one arrives with a probability of `share`."""
    return sum(
        math.comb(repeats, arrived)
        * share**arrived
        * (1 - share) ** (repeats - arrived)
        * capacity_of(math.sqrt(arrived) * amplitude)
        for arrived in range(1, repeats + 1)
    )


@lru_cache(maxsize=1)
def _table() -> tuple[np.ndarray, np.ndarray]:
    amplitudes = np.concatenate([[0.0], np.geomspace(1e-2, 10.0, 400)])
    return amplitudes, np.array([binary_capacity(float(amplitude) ** 2) for amplitude in amplitudes])


def sign_capacity(amplitude: float) -> float:
    """Bits that the sign of ±amplitude plus normal noise of variance 1 carries: of a binary symmetric channel."""
    wrong = 0.5 * math.erfc(amplitude / math.sqrt(2))
    if wrong < 1e-300:
        return 1.0
    return 1 + wrong * math.log2(wrong) + (1 - wrong) * math.log1p(-wrong) / math.log(2)


def censored_capacity(amplitude: float, threshold: float) -> float:
    """Bits that ±amplitude plus normal noise of variance 1 carries if what is smaller than a threshold is erased."""
    noise = np.linspace(-_REACH, _REACH, _POINTS)
    weight = np.exp(-0.5 * noise**2)
    received = amplitude + noise
    known = 1 - np.logaddexp2(0.0, -2 * amplitude * received / math.log(2))
    return float((weight * known * (np.abs(received) > threshold)).sum() / weight.sum())


def kept_threshold(amplitude: float, excited: float, share: float) -> float:
    """Magnitude above which the largest entries are kept, in standard deviations of the noise.

    Args:
        amplitude: Magnitude of an excited entry before the noise.
        excited: Share of excited entries; all others hold noise alone.
        share: Share of entries that are kept.
    """

    def tail(threshold: float) -> float:
        return 0.5 * math.erfc(threshold / math.sqrt(2))

    low, high = 0.0, amplitude + _REACH
    for _ in range(_BISECTIONS):
        threshold = (low + high) / 2
        above = excited * (tail(threshold - amplitude) + tail(threshold + amplitude))
        above += (1 - excited) * 2 * tail(threshold)
        low, high = (threshold, high) if above > share else (low, threshold)
    return low
