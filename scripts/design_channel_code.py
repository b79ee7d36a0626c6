# SPDX-License-Identifier: Apache-2.0
"""Degrees of irregular repeat-accumulate codes, by linear programming on EXIT curves.

    python scripts/design_channel_code.py --rate 0.07 --group 2 --most 220

Prints the distribution of least signal-to-noise ratio whose curves do not cross, in decibels above capacity, and the
share of the repeated bits that each degree has. Messages to checks are taken as Gaussian; parities are exact. At low
rates the result is optimistic, even below 0: `scripts/channel_code.py` measures what a code really needs.

Source: ten Brink, Kramer and Ashikhmin, "Design of low-density parity-check codes for modulation and detection" (2004).
"""

import argparse
import math
from itertools import pairwise

import numpy as np
from scipy.optimize import linprog

from lightning_recon.structure.coding.channel_code import capacity_snr

DEGREES = (3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 20, 25, 30, 40, 50, 60, 80, 100, 130, 170, 220, 300, 400)
# Variances of log-likelihood ratios between which curves are interpolated, and quadrature over a normal variable.
VARIANCES = np.geomspace(1e-5, 1e4, 700)
NORMAL = np.linspace(-9, 9, 901)
DENSITY = np.exp(-(NORMAL**2) / 2) / np.exp(-(NORMAL**2) / 2).sum()
# Orders of moments of tanh(L/2)² between which the series of the mutual information is interpolated, and its last one.
LAST = 4000
ORDERS = np.unique(np.geomspace(1, LAST, 60).round())
# Mutual information of messages to checks at which curves are compared.
GRID = np.unique(np.concatenate([[0.0], np.geomspace(1e-3, 0.5, 40), 1 - np.geomspace(0.5, 1e-4, 40)]))
# Above this, the curves need only come this much closer to 1.
_ENOUGH = 0.999
_SWEEPS, _SAME, _BISECTIONS = 3000, 1e-7, 12


def _information() -> np.ndarray:
    lengths = VARIANCES[:, None] / 2 + np.sqrt(VARIANCES)[:, None] * NORMAL
    information: np.ndarray = 1 - np.logaddexp(0, -lengths) @ DENSITY / math.log(2)
    return information


def _moments() -> np.ndarray:
    rows = []
    for variance in VARIANCES:
        size = np.abs(np.tanh((variance / 2 + math.sqrt(variance) * NORMAL) / 2))
        rows.append(np.exp(2 * ORDERS[:, None] * np.log(np.maximum(size, 1e-300))) @ DENSITY)
    return np.array(rows)


def _series() -> np.ndarray:
    """Weights of the moments: I = Σ E[tanh(L/2)^2k] / (2k (2k - 1) ln 2), interpolated between orders."""
    orders = np.arange(1, LAST + 1)
    share, places = 1 / (2 * orders * (2 * orders - 1) * math.log(2)), np.log(ORDERS)
    weights = np.zeros(len(ORDERS))
    for place, (low, high) in enumerate(pairwise(places)):
        inside = (np.log(orders) >= low) & (np.log(orders) < high)
        part = (np.log(orders[inside]) - low) / (high - low)
        weights[place] += share[inside] @ (1 - part)
        weights[place + 1] += share[inside] @ part
    weights[-1] += 1 - weights.sum()
    return weights


INFORMATION, MOMENTS, SERIES = _information(), _moments(), _series()


def information_of(variance: np.ndarray) -> np.ndarray:
    """J: mutual information of a bit and its Gaussian log-likelihood ratio of this variance."""
    return np.interp(np.log(np.maximum(variance, VARIANCES[0])), np.log(VARIANCES), INFORMATION)


def variance_of(information: np.ndarray | float) -> np.ndarray:
    """The inverse of J."""
    return np.exp(np.interp(information, INFORMATION, np.log(VARIANCES)))


def moments_of(variance: float) -> np.ndarray:
    """E[tanh(L/2)^2k] for all orders k: those of a parity's message are products of those that enter it."""
    place = float(np.interp(math.log(variance), np.log(VARIANCES), np.arange(len(VARIANCES))))
    below = min(int(place), len(VARIANCES) - 2)
    mixed: np.ndarray = MOMENTS[below] + (place - below) * (MOMENTS[below + 1] - MOMENTS[below])
    return mixed


def from_checks(information: float, snr: float, group: int) -> float:
    """Mutual information that parities and their running sum return to each message bit.

    Args:
        information: Of messages to parities.
        snr: Power of an input by the variance of its noise.
        group: Message bits that a parity adds up.
    """
    entering = moments_of(max(float(variance_of(information)), VARIANCES[0]))
    channel = along = 4 * snr
    for _ in range(_SWEEPS):
        new = channel + float(variance_of(SERIES @ (moments_of(along) * entering**group)))
        if abs(new - along) < _SAME * along:
            break
        along = new
    return float(SERIES @ (moments_of(along) ** 2 * entering ** (group - 1)))


def best(snr: float, group: int, most: int) -> tuple[float, dict[int, float]] | None:
    """The highest rate at which the curves do not cross, and its degrees; None if they always do.

    Args:
        snr: Power of an input by the variance of its noise.
        group: Message bits that a parity adds up.
        most: Largest degree.
    """
    degrees = np.array([degree for degree in DEGREES if degree <= most])
    received = variance_of(np.array([from_checks(one, snr, group) for one in GRID]))
    sent = information_of(4 * snr + (degrees - 1) * received[:, None])
    needed = np.minimum(GRID, 1 - (1 - GRID) * _ENOUGH)
    found = linprog(-1 / degrees, A_ub=-sent, b_ub=-needed, A_eq=np.ones((1, len(degrees))), b_eq=[1])
    if found.status:
        return None
    ratio = -group * found.fun
    shares = {int(degree): round(float(share), 3) for degree, share in zip(degrees, found.x, strict=True)}
    return ratio / (1 + ratio), {degree: share for degree, share in shares.items() if share > 0}


def main() -> None:
    """Print the code of least need."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, required=True, help="message bits an input")
    parser.add_argument("--group", type=int, required=True, help="message bits that a parity adds up")
    parser.add_argument("--most", type=int, default=400, help="largest degree")
    chosen = parser.parse_args()
    low, high, kept = -0.3, 2.0, None
    for _ in range(_BISECTIONS):
        gap = (low + high) / 2
        found = best(capacity_snr(chosen.rate) * 10 ** (gap / 10), chosen.group, chosen.most)
        if found and found[0] >= chosen.rate:
            high, kept = gap, found[1]
        else:
            low = gap
    print(f"{high:.3f} dB above capacity: {kept}" if kept else "no degrees suffice within 2 dB of capacity")


if __name__ == "__main__":
    main()
