# SPDX-License-Identifier: Apache-2.0
"""What anyone knows about photographs before seeing a client's: mean, colour axes, spectrum, spread of contrast."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from lightning_recon.structure.transform import synthesise

# Natural-log amplitude and DC variance at 64 x 64, one per decorrelated colour channel, pixel values in [0, 1].
_SIZE = 64
_EXPONENT = 2.6
_LOG_AMPLITUDE = (5.3, 2.9, 1.2)
# The law overstates the very lowest frequencies several times over: it is taken for flat there.
_FLAT_BELOW = 2.0
_DC_VARIANCE = (205.0, 31.0, 6.7)
_MEAN = (0.49, 0.46, 0.41)
_COLOUR = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))
# Standard deviation of log(energy of a photograph / mean energy), as the structure weighs that energy.
_LOG_CONTRAST_STD = 0.55
# Subjects: share of the picture that a centred ellipse covers, spread of its shape and of its place.
_SUBJECT_SHARE = (0.08, 0.9)
_SUBJECT_SHAPE_STD = 0.4
_SUBJECT_PLACE_STD = 0.08


@dataclass(frozen=True)
class PublicStatistics:
    """First and second moments of photographs, in the basis where they are uncorrelated.

    Args:
        name: Provenance, as written to `results.json`.
        mean: Mean image, shape (3, H, W), values in [0, 1].
        colour: Orthonormal colour axes as rows, shape (3, 3).
        variance: Variance of each coefficient of `transform.analyse`, shape (3, H, W).
        log_contrast_std: Standard deviation of log(energy of a photograph / mean energy).
        subjects: Whether clients cut the subject out on black before they train.
    """

    name: str
    mean: Tensor
    colour: Tensor
    variance: Tensor
    log_contrast_std: float
    subjects: bool


@lru_cache(maxsize=8)  # asked for at every score, and always the same
def public_statistics(height: int, width: int, subjects: bool) -> PublicStatistics:
    """Statistics of photographs, or of subjects cut out of them, that need no data at all.

    Photographs follow a radial power law with one amplitude per colour channel. Subjects keep that spectrum; their
    mean is the mean photograph under the average of random centred ellipses.

    Args:
        height: Image height in pixels.
        width: Image width in pixels.
        subjects: Whether clients cut the subject out on black before they train.

    Returns:
        The statistics, float32.

    Source: amplitudes fitted on public photographs at 64 x 64; the law of natural image spectra is Field (1987).
    """
    photographs = _power_law(height, width)
    if not subjects:
        return photographs
    generator = torch.Generator().manual_seed(0)
    share = torch.stack([_ellipses(1, height, width, generator)[0] for _ in range(512)]).mean(dim=0)
    return replace(photographs, name="power-law v1, elliptic subjects", mean=photographs.mean * share, subjects=True)


def synthetic_pictures(statistics: PublicStatistics, count: int, size: int) -> Tensor:
    """Random pictures with the public statistics: what stands in for data when thresholds are chosen.

    Args:
        statistics: Which kind of pictures.
        count: How many.
        size: Height and width in pixels.

    Returns:
        Shape (count, 3, size, size), values in [0, 1]; the same on every call.
    """
    generator = torch.Generator().manual_seed(1)
    law = _power_law(size, size)
    spread = law.log_contrast_std
    contrast = (spread * torch.randn(count, 1, 1, 1, generator=generator) - spread**2 / 2).exp()
    noise = torch.randn(count, 3, size, size, generator=generator)
    pictures = synthesise((contrast * law.variance).sqrt() * noise, law.mean, law.colour).clamp(0, 1)
    return pictures * _ellipses(count, size, size, generator) if statistics.subjects else pictures


def _power_law(height: int, width: int) -> PublicStatistics:
    size = math.sqrt(height * width)
    rows = torch.arange(height, dtype=torch.float64) * (size / height)
    columns = torch.arange(width, dtype=torch.float64) * (size / width)
    radius = torch.hypot(rows[:, None], columns[None, :])
    radius = radius.clamp(min=_FLAT_BELOW)
    # The orthonormal transform of a picture twice as fine has twice the amplitude at the same frequency.
    scale = (size / _SIZE) ** 2
    amplitude = torch.tensor(_LOG_AMPLITUDE, dtype=torch.float64).exp() * scale
    variance = amplitude[:, None, None] * radius**-_EXPONENT
    variance[:, 0, 0] = torch.tensor(_DC_VARIANCE, dtype=torch.float64) * scale
    colour = torch.tensor(_COLOUR)
    return PublicStatistics(
        name="power-law v1",
        mean=torch.tensor(_MEAN)[:, None, None].expand(3, height, width).contiguous(),
        colour=colour / colour.norm(dim=1, keepdim=True),
        variance=variance.float(),
        log_contrast_std=_LOG_CONTRAST_STD,
        subjects=False,
    )


def _ellipses(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Random centred ellipses as masks, shape (count, 1, height, width), values 0 and 1."""
    low, high = _SUBJECT_SHARE
    area = low + (high - low) * torch.rand(count, 1, 1, generator=generator) ** 1.5
    aspect = (_SUBJECT_SHAPE_STD * torch.randn(count, 1, 1, generator=generator)).exp()
    angle = math.pi * torch.rand(count, 1, 1, generator=generator)
    place = _SUBJECT_PLACE_STD * torch.randn(2, count, 1, 1, generator=generator)
    x = (torch.arange(width) + 0.5) / width - 0.5 - place[0]
    y = ((torch.arange(height) + 0.5) / height - 0.5)[:, None] - place[1]
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    radius = (area / math.pi).sqrt()
    inside = (along / radius) ** 2 / aspect + (across / radius) ** 2 * aspect < 1
    return inside.float()[:, None]
