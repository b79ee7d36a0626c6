# SPDX-License-Identifier: Apache-2.0
"""A linear code of ±1: signs of coefficients plus public dithers, whose mean is linear in the coefficient.

For a dither d that is uniform on [-1, 1], E sign(x + d) = x as long as |x| <= 1. So a coefficient crosses a channel
that carries signs alone, at a precision that grows with the number of its repetitions: each has a dither of its own,
and those of one coefficient are spread evenly, so that many repetitions count where x lies among them.

Source: Roberts, "Picture coding using pseudo-random noise" (1962); the allocation is water-filling over repetitions.
"""

import torch
from torch import Tensor

from lightning_recon.structure.coding.power_allocation import water_filling
from lightning_recon.structure.detection.wiener import RowPosterior

# Coefficients of this many standard deviations reach the ends of the dithers; larger ones are cut off there.
REACH = 2.5
# Least and greatest energy of an image, relative to the expected one, that its signs may show.
_CONTRASTS = (0.05, 10.0)


def repetitions(variance: Tensor, count: int, snr: float) -> Tensor:
    """How often to send each coefficient.

    A coefficient of variance λ that was sent r times has the error λ / (1 + r/q) with q = REACH² (1 + 1/snr), of which
    1 is what a dithered sign varies by itself.

    Args:
        variance: Variances of the coefficients, shape (m,), positive.
        count: Signs to send in total, about.
        snr: Power of a sign by the variance of its noise.

    Returns:
        Shape (m,), int64.
    """
    often = REACH**2 * (1 + 1 / max(snr, 1e-12))
    return (often * water_filling(variance, 1.0, count / often)).round().long()


def dithers(repeats: Tensor) -> tuple[Tensor, Tensor]:
    """The coefficient of each sign, shape (L,), int64, and its dither in [-1, 1], shape (L,).

    Args:
        repeats: From `repetitions`, of sum L.
    """
    coefficient = torch.arange(len(repeats)).repeat_interleave(repeats)
    place = torch.arange(len(coefficient)) - (repeats.cumsum(0) - repeats)[coefficient]
    offset = torch.rand(len(repeats), generator=torch.Generator().manual_seed(8))
    return coefficient, 2 * (place + offset[coefficient]) / repeats[coefficient] - 1


def dithered_signs(values: Tensor, coefficient: Tensor, dither: Tensor) -> Tensor:
    """Signs of coefficients plus dithers, shape (B, L); never 0.

    Args:
        values: Coefficients by their reach, shape (B, m).
        coefficient: From `dithers`.
        dither: Likewise.
    """
    return torch.where(values[:, coefficient] + dither >= 0, 1.0, -1.0).to(values)


def decode_dithered(signs: Tensor, noise: float, coefficient: Tensor, count: int, scale: float = 1.0) -> RowPosterior:
    """Posterior mean of coefficients by their reach.

    Args:
        signs: What arrived of the signs, scaled to an amplitude of 1, shape (L,); 0 where nothing arrived.
        noise: Standard deviation of the noise on each.
        coefficient: From `dithers`.
        count: Number of coefficients, m.
        scale: Of the row, for the record.

    Returns:
        Mean and variance of the coefficients by their reach, shape (m,).
    """
    arrived = (signs != 0).to(signs)
    repeats = torch.zeros(count).to(signs).index_add(0, coefficient, arrived).clamp(min=1e-6)
    mean = torch.zeros(count).to(signs).index_add(0, coefficient, signs) / repeats
    variance = (noise**2 + (1 - REACH**-2) / repeats.clamp(min=1)) / repeats
    weight = 1 / (REACH**-2 + variance).square()
    contrast = float(((mean.square() - variance) * weight).sum() * REACH**2 / weight.sum())
    contrast = min(max(contrast, _CONTRASTS[0]), _CONTRASTS[1])
    prior = contrast / REACH**2
    gain = prior / (prior + variance)
    return RowPosterior(gain * mean, gain * variance, contrast, scale)
