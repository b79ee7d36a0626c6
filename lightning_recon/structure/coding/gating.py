# SPDX-License-Identifier: Apache-2.0
"""Gating: measurement directions, and intervals that public images fill evenly, so that few victims share a unit."""

import torch
from torch import Tensor

from lightning_recon.priors.dct import CosineTransform
from lightning_recon.priors.image_statistics import PublicStatistics, synthetic_images

# Coefficients whose two frequencies add up to less than this are measured: few enough to be sent at any useful noise,
# varied enough that images differ in them.
_LOW_FREQUENCY = 6
_SYNTHETIC_SIZE = 32
_SYNTHETIC_COUNT = 4096
# No photograph's measurement exceeds the usual one by more than this factor.
_FARTHEST = 10.0
# Units for each image, their least number, and the factor of both where there is only one direction.
_UNITS_PER_IMAGE, _FEWEST_UNITS, _SINGLE_DIRECTION = 8, 64, 8


def layout(
    batch: int, inputs: int, coefficients: int, units: int | None = None, directions: int | None = None
) -> tuple[int, int]:
    """Numbers of units and of directions, for almost no collisions at a bounded upload.

    A victim's energy is spread over its D rows, and with it the evidence that it is there at all. So at high noise a
    single direction is best, and collisions are avoided by many rows: only few inputs are sent then, and rows of
    few inputs are cheap. At low noise rows are long and evidence is plenty: three directions, in which the victims
    that collide in one are separated by the others, need an eighth of the rows.

    Victims that cannot be separated even without noise: with three directions at most 0.1 % at random occupancy (10⁵
    simulated), and none of 80 000 in random batches of 64 photographs; with one direction 1 − (1 − 1/K)^(B − 1) of
    them, at most 1.6 %, and up to 3 % of those photographs, which fill the intervals less evenly.

    Args:
        batch: Images in an update.
        inputs: How many coefficients are sent.
        coefficients: How many there are.
        units: How many units the user asked for, if any.
        directions: How many directions the user asked for, if any.

    Returns:
        Units and directions: one unit for a single image; 64 an image and one direction, where that is no more
        upload than 8 full-length ones; else 8 an image, at least 64, and three directions. What the user asked for is
        kept; of the defaults, three directions suit any number of units.
    """
    few = max(_FEWEST_UNITS, _UNITS_PER_IMAGE * batch)
    if units is not None or directions is not None:
        units = units or few
        return units, directions or min(3, units)
    if batch == 1:
        return 1, 1
    return (_SINGLE_DIRECTION * few, 1) if _SINGLE_DIRECTION * inputs <= coefficients else (few, 3)


def measurement_directions(statistics: PublicStatistics, count: int) -> Tensor:
    """Random mixtures of the lowest coefficients, each weighted to contribute alike.

    Args:
        statistics: What is public about the images; images of shape (C, H, W).
        count: Number of directions, at least 1.

    Returns:
        Directions in the space of coefficients, shape (count, C, H, W); zero but for low frequencies of luminance and
        of the first chroma channel (which together filled the intervals most evenly on public photographs).
    """
    generator = torch.Generator().manual_seed(2)
    height, width = statistics.variance.shape[1:]
    low = (torch.arange(height)[:, None] + torch.arange(width)) < _LOW_FREQUENCY
    directions = torch.zeros(count, *statistics.variance.shape)
    used = min(2, len(statistics.variance))
    weights = torch.randn(count, used, int(low.sum()), generator=generator)
    directions[:, :used, low] = weights / statistics.variance[:used, low].sqrt()
    return directions


def intervals(statistics: PublicStatistics, directions: Tensor, units: int) -> tuple[Tensor, Tensor, Tensor]:
    """Divide every direction into intervals that public images fill evenly.

    Args:
        statistics: What is public about the images.
        directions: Shape (D, C, H, W), zero but for the lowest frequencies.
        units: Number of units, shared among the directions as evenly as possible; at least D.

    Returns:
        Lower and upper bounds, shape (units,), and the direction each unit measures, shape (units,). The outermost
        intervals of each direction are open, so every image excites exactly one unit per direction.
    """
    height, width = directions.shape[-2:]
    size = min(_SYNTHETIC_SIZE, height, width)
    images = synthetic_images(statistics, _SYNTHETIC_COUNT, size)
    # Low coefficients of a coarse image are those of the fine one but for the scale of the orthonormal transform.
    coarse_mean = torch.nn.functional.interpolate(statistics.mean[None], (size, size), mode="area")[0]
    coarse = CosineTransform(coarse_mean, statistics.colour)
    coefficients = coarse.analyse(images) * (height * width) ** 0.5 / size
    measured = coefficients.flatten(1) @ directions[..., :size, :size].flatten(1).T
    lower, upper, owner = [], [], []
    for direction, values in enumerate(measured.T):
        count = units // len(directions) + (direction < units % len(directions))
        edges = torch.quantile(values, torch.arange(1, count) / count)
        infinity = torch.tensor([torch.inf])
        lower.append(torch.cat([-infinity, edges]))
        upper.append(torch.cat([edges, infinity]))
        owner.append(torch.full((count,), direction))
    return torch.cat(lower), torch.cat(upper), torch.cat(owner)


def scale_down_measurements(
    statistics: PublicStatistics, directions: Tensor, lower: Tensor, upper: Tensor, largest: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Measure the same in so small a unit that what units pass on is hardly noticed; every interval gets a lower end.

    Args:
        statistics: What is public about the images.
        directions: Shape (D, C, H, W).
        lower: Where each unit's interval begins, shape (units,).
        upper: Where it ends, shape (units,).
        largest: How far above the lower end of its interval a photograph's measurement may then be.

    Returns:
        The scaled directions, lower and upper bounds.
    """
    farthest = _FARTHEST * float((directions.square() * statistics.variance).flatten(1).sum(dim=1).max().sqrt())
    scale = largest / (2 * farthest)
    return scale * directions, scale * lower.clamp(min=-farthest), scale * upper
