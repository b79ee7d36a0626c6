# SPDX-License-Identifier: Apache-2.0
"""How far a mean over victims may be from the mean over all such images."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

CONFIDENCE = 0.95
_RESAMPLES = 10_000
_COUNTS = 10_000_000  # that are held in memory at once
_SEED = 0


def bootstrap_interval(
    values: Mapping[object, Sequence[float]], confidence: float = CONFIDENCE
) -> tuple[float, float] | tuple[None, None]:
    """Percentile bootstrap interval of a mean over images.

    Images are drawn with replacement; the noise draws of one image are correlated, so they stay together and count with
    their mean.

    Args:
        values: measured values of every draw, by image.
        confidence: probability that the interval contains the mean over all such images, in (0, 1).

    Returns:
        Lower and upper end, in the unit of the values, the same on every call; None and None for fewer than two images.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.
    """
    means = np.array([fmean(draws) for draws in values.values()])
    if len(means) < 2:
        return None, None
    generator = np.random.default_rng(_SEED)
    # Only how often each image is drawn matters, not the order. In parts, which draw the same numbers as the whole.
    part, shares = max(1, _COUNTS // len(means)), np.full(len(means), 1 / len(means))
    sizes = [min(part, _RESAMPLES - first) for first in range(0, _RESAMPLES, part)]
    resampled = [generator.multinomial(len(means), shares, size=size) @ means / len(means) for size in sizes]
    low, high = np.quantile(np.concatenate(resampled), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
