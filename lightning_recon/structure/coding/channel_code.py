# SPDX-License-Identifier: Apache-2.0
"""A channel code within half a decibel of capacity: irregular repeat-accumulate codes and belief propagation.

Message bits are repeated, some often and most seldom, shuffled, and added up in small groups; the running sum of the
groups is the parity. Whole images are one long codeword, and long random codes of this kind come close to capacity at
every rate.

Source: Jin, Khandekar and McEliece, "Irregular repeat-accumulate codes" (2000). The degrees below were found by
linear programming on their EXIT curves (ten Brink and others, 2004), see `scripts/design_channel_code.py`.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recon.structure.coding.belief_propagation import propagate


@dataclass(frozen=True)
class Rung:
    """One rate of the ladder.

    Args:
        rate: Message bits an input, in (0, 1).
        capacity_db: Signal-to-noise ratio (power of an input by the variance of its noise) at which ±1 inputs can
            carry just that, in decibels.
        group: How many repeated message bits each parity bit adds up.
        repetitions: Share of the repeated bits that belong to message bits repeated so often.
    """

    rate: float
    capacity_db: float
    group: int
    repetitions: dict[int, float]


LADDER = (
    Rung(0.07, -9.92, 2, {3: 0.055, 10: 0.030, 12: 0.095, 40: 0.135, 50: 0.120, 220: 0.565}),
    Rung(0.10, -8.28, 2, {3: 0.085, 10: 0.045, 12: 0.142, 30: 0.021, 40: 0.272, 100: 0.065, 130: 0.370}),
    Rung(0.15, -6.36, 3, {3: 0.092, 10: 0.074, 12: 0.116, 30: 0.105, 40: 0.154, 80: 0.196, 170: 0.263}),
    Rung(0.20, -4.94, 4, {3: 0.101, 10: 0.084, 12: 0.121, 30: 0.071, 40: 0.234, 170: 0.389}),
    Rung(0.25, -3.80, 4, {3: 0.141, 10: 0.118, 12: 0.145, 25: 0.105, 30: 0.108, 80: 0.383}),
    Rung(0.30, -2.83, 4, {3: 0.189, 8: 0.188, 30: 0.623}),
    Rung(0.35, -1.97, 5, {3: 0.196, 10: 0.150, 12: 0.206, 30: 0.177, 60: 0.272}),
    Rung(0.40, -1.20, 5, {3: 0.256, 10: 0.326, 12: 0.031, 30: 0.387}),
    Rung(0.45, -0.48, 6, {3: 0.268, 10: 0.335, 30: 0.397}),
    Rung(0.50, 0.19, 7, {3: 0.289, 10: 0.341, 30: 0.370}),
    Rung(0.55, 0.84, 8, {3: 0.320, 10: 0.292, 12: 0.082, 30: 0.306}),
    Rung(0.60, 1.47, 10, {3: 0.318, 8: 0.027, 10: 0.281, 30: 0.374}),
    Rung(0.65, 2.10, 12, {3: 0.338, 10: 0.302, 30: 0.360}),
    Rung(0.70, 2.73, 14, {3: 0.374, 10: 0.205, 12: 0.148, 30: 0.273}),
    Rung(0.75, 3.38, 17, {3: 0.410, 10: 0.026, 12: 0.367, 30: 0.197}),
    Rung(0.80, 4.08, 22, {3: 0.430, 12: 0.389, 30: 0.181}),
    Rung(0.85, 4.84, 30, {3: 0.454, 12: 0.369, 25: 0.171, 30: 0.006}),
    Rung(0.90, 5.74, 40, {3: 0.570, 12: 0.430}),
)

NAME = "irregular repeat-accumulate"

# Decibels above capacity at which a few in a thousand of very long codewords are lost, and what short ones need more,
# by the root of their bits: fitted to `results/channel_code.csv`.
_LONG_GAP, _SHORT_GAP = 0.2, 42.0
# The number of parities is a multiple of this: part of the code, so that released payloads stay readable.
_MULTIPLE = 40
# Every `_LAYERS`-th parity bit belongs to the same layer. More layers take fewer sweeps, but each step works on less
# than it costs to start it. 20 took less time, but near capacity so many sweeps that codewords were given up.
_LAYERS = 40
# Repeated bits that meet in one group cancel, and a bit that changes few parities is easily mistaken; this many rounds
# of swapping separate them.
_SWAPS = 20
# The bits repeated least change at least this share of the parities.
_CHANGED = 0.1
# Points of Gauss's quadrature for the capacity: six digits.
_POINTS = 100
# Signal-to-noise ratios between which the rate that they carry is interpolated: three digits of a decibel.
_SNRS = np.geomspace(1e-3, 1e2, 400)


def message_bits(rung: int, inputs: int) -> int:
    """Number of message bits of a codeword; the number of parities is a multiple of `_MULTIPLE`."""
    return inputs - _MULTIPLE * round((1 - LADDER[rung].rate) * inputs / _MULTIPLE)


def binary_capacity(snr: float) -> float:
    """Bits that one ±1 input can carry at most, in [0, 1].

    Args:
        snr: Power of the input by the variance of its noise.

    Returns:
        1 - E[log2(1 + exp(-L))], where L, the log-likelihood of what was sent, is normal with mean 2 snr and variance
        4 snr.

    Source: Shannon (1948) for inputs of ±1 in white Gaussian noise.
    """
    points, weights = _quadrature()
    lost = np.logaddexp2(0.0, -(2 * snr + 2 * math.sqrt(snr) * points) / math.log(2))
    return float(1 - weights @ lost / weights.sum())


@lru_cache(maxsize=1)
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    points, weights = np.polynomial.hermite_e.hermegauss(_POINTS)
    return points, weights


@lru_cache(maxsize=1)
def _capacities() -> np.ndarray:
    return np.array([binary_capacity(snr) for snr in _SNRS.tolist()])


def capacity_snr(rate: float) -> float:
    """Signal-to-noise ratio at which ±1 inputs can carry just this many bits each, the inverse of `binary_capacity`.

    Args:
        rate: In (0.001, 0.999).
    """
    return float(np.exp(np.interp(rate, _capacities(), np.log(_SNRS))))


def needed_snr(rung: int, inputs: int) -> float:
    """Signal-to-noise ratio of each input at which a few codewords in a thousand are lost.

    Short ones need more, since chance averages out with the square root of the length.

    Args:
        rung: Place on the ladder.
        inputs: Length of the codeword.
    """
    bits = max(1, message_bits(rung, inputs))
    gap = _LONG_GAP + _SHORT_GAP / math.sqrt(bits)
    return float(10 ** (gap / 10)) * capacity_snr(bits / max(1, inputs))


def encode(bits: Tensor, rung: int, inputs: int) -> Tensor:
    """Protect bits.

    Args:
        bits: Shape (`message_bits`,), int64, zeros and ones.
        rung: Place on the ladder.
        inputs: Length of the codeword.

    Returns:
        Shape (inputs,), int64: the message, then its parities.
    """
    groups = _groups(rung, inputs).to(bits.device)
    sums = bits.index_select(0, groups.flatten()).view(groups.shape).sum(dim=1)
    return torch.cat([bits, sums.T.flatten().cumsum(dim=0) % 2])


def parity_groups(rung: int, inputs: int) -> Tensor:
    """The message bits that each parity bit adds up, shape (layers, group, lanes), int32."""
    return _groups(rung, inputs)


def decode(beliefs: Tensor, rung: int, iterations: int = 400) -> Tensor | None:
    """Belief propagation for one codeword.

    Args:
        beliefs: Shape (inputs,), float32: log-likelihood of 0 against 1 for each bit of the codeword; 0 for a bit that
            did not arrive.
        rung: Place on the ladder.
        iterations: Most iterations; decoding stops sooner if they bring no more progress.

    Returns:
        The message, shape (`message_bits`,), int64; None if its parities contradict the channel.
    """
    return decode_batch(beliefs[None], rung, iterations)[0]


def decode_batch(beliefs: Tensor, rung: int, iterations: int = 400) -> list[Tensor | None]:
    """Belief propagation for several codewords of the same rate, with the results of `decode` for each.

    Args:
        beliefs: Shape (V, inputs), float32, see `decode`.
        rung: Place on the ladder.
        iterations: Most iterations of each.
    """
    found = propagate(beliefs, _groups(rung, beliefs.shape[1]).to(beliefs.device), iterations)
    if LADDER[rung].group % 2:
        return found
    # A parity of an even number of bits is the same for the complement of a message, which belief propagation may take
    # for a short one: the channel says about the bits themselves which of both was sent.
    return [
        bits if bits is None or float((own[: len(bits)] * (1 - 2 * bits)).sum()) >= 0 else 1 - bits
        for own, bits in zip(beliefs, found, strict=True)
    ]


@lru_cache(maxsize=len(LADDER))
def _groups(rung: int, inputs: int) -> Tensor:
    """The message bits that each parity adds up: random, but always the same.

    Parities along the running sum go to the layers in turn.

    Returns:
        Shape (layers, group, lanes), int32.
    """
    code, messages = LADDER[rung], message_bits(rung, inputs)
    parities, generator = inputs - messages, torch.Generator().manual_seed(6)
    often = torch.tensor(sorted(code.repetitions))
    nodes = torch.tensor([code.repetitions[int(times)] for times in often]) / often
    last = (nodes.cumsum(0) / nodes.sum() * messages).round().long()
    degree = often.repeat_interleave(last.diff(prepend=last.new_zeros(1)))
    # The number of sockets must be exact: the bits that are repeated often absorb the rounding.
    excess, busiest = parities * code.group - int(degree.sum()), int((degree > often[0]).sum())
    degree[-busiest:] += excess // busiest
    degree[len(degree) - excess % busiest :] += 1
    sockets = torch.arange(messages, dtype=torch.int32).repeat_interleave(degree)
    sockets = sockets[torch.randperm(len(sockets), generator=generator)]
    for _ in range(_SWAPS):
        ordered, place = sockets.view(parities, code.group).sort(dim=1)
        row, column = torch.nonzero(ordered[:, 1:] == ordered[:, :-1], as_tuple=True)
        weak = _weak(sockets, int(often[0]), int(last[0]), code.group)
        here = torch.cat([row * code.group + place[row, column], weak])
        if not len(here):
            break
        there = torch.randint(len(sockets), (len(here),), generator=generator)
        both = torch.tensor(sorted({*here.tolist(), *there.tolist()}))
        sockets[both] = sockets[both[torch.randperm(len(both), generator=generator)]]
    return sockets.view(-1, _LAYERS, code.group).permute(1, 2, 0).contiguous()


def _weak(sockets: Tensor, times: int, bits: int, group: int) -> Tensor:
    """Places of the repeated bits, one each, whose change would change too few parities.

    A bit changes the running sum between its first two places, and again from the third to the fourth, or to the end.

    Args:
        sockets: Shape (parities * group,), int32: the message bits along the running sum.
        times: How often each of the first bits is repeated.
        bits: How many are repeated so often.
        group: How many bits a parity adds up.
    """
    places = torch.nonzero(sockets < bits).flatten()
    places = places[sockets[places].argsort(stable=True)].view(bits, times)
    along = F.pad(places // group, (0, times % 2), value=len(sockets) // group)
    changed = (along[:, 1::2] - along[:, ::2]).sum(dim=1)
    return places[changed < _CHANGED * (len(sockets) // group), 0]
