# SPDX-License-Identifier: Apache-2.0
"""The share of victims that collisions lose for any decoder: they share every row with other lost victims."""

from functools import cache

import numpy as np

TRIALS = 4000


@cache
def lost_share(units: int, directions: int, batch: int) -> float:
    """Share of victims that peeling leaves unresolved, on average over random occupancy.

    Every victim falls into one of units/directions equally likely rows in each direction. A row that holds one victim
    gives it away; it is taken off its other rows; and so on.

    Args:
        units: Rows, shared evenly among the directions.
        directions: Measurement directions.
        batch: Victims.

    Returns:
        A number in [0, 1].

    Source: Liva (IEEE Trans. Commun. 59, 2011), coded slotted ALOHA, without noise and with slots of their own for
    each of a sender's copies.
    """
    generator = np.random.default_rng(0)
    width = max(1, units // directions)
    rows = generator.integers(width, size=(TRIALS, batch, directions))
    rows += width * (np.arange(directions) + directions * np.arange(TRIALS)[:, None, None])
    hidden = np.ones((TRIALS, batch), dtype=bool)
    while True:
        voices = np.bincount(rows[hidden].ravel(), minlength=TRIALS * directions * width)
        found = hidden & (voices[rows] == 1).any(axis=2)
        if not found.any():
            return float(hidden.mean())
        hidden &= ~found
