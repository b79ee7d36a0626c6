# SPDX-License-Identifier: Apache-2.0
"""Whether clients cut subjects out on black, as the images that an update shows tell.

A decoder that believes the protocol in spite of what it received shows less than a server could see. Subjects on black
differ from photographs above all at the corners, which are mostly black. The brightness of four corners and of the
centre, as the lowest coefficients show it, is compared with that of synthetic images of either kind.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recon.priors.dct import CosineTransform
from lightning_recon.priors.image_statistics import PublicStatistics, synthetic_images
from lightning_recon.structure.detection.wiener import RowPosterior

# Odds at which an announcement is trusted before the update arrived.
_TRUST = 100.0
# Largest log Bayes factor of one image: a photograph may have black corners, and a subject may fill the image.
_MOST_OF_ONE = 4.0
# Luminance coefficients whose two frequencies add up to less than this are compared.
_LOW_FREQUENCY = 6
_COUNT, _SIZE = 2048, 32
# Bandwidth of the density of synthetic images, in brightness; share and density of images unlike them.
_BANDWIDTH = 0.05
_OUTLIERS, _OUTLYING = 0.02, 1 / 32


def subjects_evidence(
    rows: Sequence[tuple[Tensor, float, float]],
    decoded: Sequence[RowPosterior],
    shipped: Mapping[str, Tensor],
    announced: PublicStatistics,
    other: PublicStatistics,
) -> float:
    """Log Bayes factor of another kind of images than announced, from all victims of an update.

    Args:
        rows: Each victim's inputs, shape (m,), its pilot, and the noise of every entry.
        decoded: The same after decoding.
        shipped: Tensors of the payload.
        announced: Statistics of the announced kind.
        other: Those of the other kind.
    """
    height, width = announced.variance.shape[1:]
    low = (torch.arange(height)[:, None] + torch.arange(width)).flatten() < _LOW_FREQUENCY
    # The first axis of the channels is luminance, or what stands for it.
    places = torch.nonzero(low[shipped["index"].clamp(max=height * width - 1)] & (shipped["index"] < height * width))
    places = places.flatten()
    if not len(places):
        return 0.0
    coefficients, gain = shipped["index"][places], shipped["gain"][places].double()
    channels = len(announced.variance)
    units = torch.zeros(len(places), channels * height * width)
    units[torch.arange(len(places)), coefficients] = 1.0
    transform = CosineTransform(torch.zeros_like(shipped["mean"]), shipped["colour"])
    brightness = _brightness(transform.synthesise(units.view(-1, channels, height, width))).double()
    kinds = [_low_coefficients(kind, announced)[:, coefficients].double() @ brightness for kind in (other, announced)]
    total = 0.0
    for (row, _, noise), one in zip(rows, decoded, strict=True):
        observed = (one.scale * row[places].double().cpu() / gain) @ brightness
        blur = (one.scale * noise / gain)[:, None] * brightness
        covariance = blur.T @ blur + _BANDWIDTH**2 * torch.eye(brightness.shape[1], dtype=torch.float64)
        densities = [_density(observed, kind, covariance) for kind in kinds]
        total += max(-_MOST_OF_ONE, min(_MOST_OF_ONE, math.log(densities[0] / densities[1])))
    return total


def likelier(evidence: float, announced: bool) -> bool:
    """Whether a log Bayes factor is enough to take another hypothesis for true.

    Args:
        evidence: From `subjects_evidence`.
        announced: Whether the first hypothesis was announced, and so is trusted more than the other.
    """
    return evidence > (math.log(_TRUST) if announced else 0.0)


def _density(observed: Tensor, synthetic: Tensor, covariance: Tensor) -> float:
    """Density at a point, shape (n,), of synthetic ones, shape (N, n), blurred by a covariance."""
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (synthetic - observed).T, upper=False)
    constant = math.sqrt(float(torch.linalg.det(2 * math.pi * covariance)))
    known = float((-0.5 * white.square().sum(dim=0)).exp().mean()) / constant
    return (1 - _OUTLIERS) * known + _OUTLIERS * _OUTLYING


def _brightness(images: Tensor) -> Tensor:
    """Brightness of four corners and of the centre, shape (N, 5)."""
    blocks = F.adaptive_avg_pool2d(images.mean(dim=1, keepdim=True), 4)[:, 0]
    corners = blocks[:, ::3, ::3].flatten(1)
    return torch.cat([corners, blocks[:, 1:3, 1:3].mean(dim=(1, 2))[:, None]], dim=1)


@lru_cache(maxsize=4)
def _low_coefficients(kind: PublicStatistics, announced: PublicStatistics) -> Tensor:
    """Coefficients of synthetic images of a kind, relative to the announced mean, shape (N, C H W); only low ones."""
    height, width = announced.variance.shape[1:]
    size = min(_SIZE, height, width)
    images = synthetic_images(kind, _COUNT, size)
    coarse_mean = F.interpolate(announced.mean[None], (size, size), mode="area")[0]
    found = CosineTransform(coarse_mean, announced.colour).analyse(images) * math.sqrt(height * width) / size
    side = min(_LOW_FREQUENCY, size)
    low = torch.zeros(_COUNT, 1, height, width)
    low[..., :side, :side] = found[:, :1, :side, :side]
    return low.flatten(1)
