# SPDX-License-Identifier: Apache-2.0
"""Whether a row divided by its gradient weight is a better estimate of its victim than the public mean image."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recon.priors.image_statistics import PublicStatistics, synthetic_images

_COUNT = 16


def beats_mean_image(
    statistics: PublicStatistics,
    std: Tensor,
    weight_std: Tensor,
    finish: Callable[[Tensor, Tensor], Tensor],
    pooling: int = 1,
    tries: int = 1,
    mixed: int = 1,
) -> Tensor:
    """Try an attack's own decoding on synthetic images, under the noise of each of its rows.

    The published attacks use no prior, so under strong noise their images are worse than no attack at all. This
    decision needs no ground truth: it compares the expected error of a row with the expected error of the public mean
    image, both by public statistics.

    Args:
        statistics: What is public about the images.
        std: Standard deviation of the noise of each row, divided by its gradient weight, shape (M,).
        weight_std: Standard deviation of the relative error of each row's gradient weight, shape (M,).
        finish: What the attack does with divided rows: from noisy images (N, C, h, w) and the standard deviation of
            their noise, shape (N, 1, 1, 1), to images (N, C, H, W).
        pooling: The attack's images are averages over squares of this width: H = pooling · h.
        tries: Each row was chosen among this many of the same victim, as that with the largest image, that is, with the
            most underestimated gradient weight.
        mixed: How many victims activate a row. Under noise that hides which rows hold one victim alone, a row is the
            average of as many images.

    Returns:
        Shape (M,), bool.
    """
    size = min(statistics.mean.shape[1:]) // pooling * pooling
    truth = synthetic_images(statistics, _COUNT, size)
    mixture = torch.stack([truth.roll(shift, dims=0) for shift in range(mixed)]).mean(dim=0)
    sent = F.avg_pool2d(mixture, pooling)
    noise = torch.randn(sent.shape, generator=torch.Generator().manual_seed(5))
    # The weight's error scales a whole image. Equally likely values of the largest of some normals, one for each image.
    places = (torch.arange(_COUNT, dtype=torch.float64) + 0.5) / _COUNT
    errors_of_weight = torch.special.ndtri(places ** (1 / tries)).float()[:, None, None, None]
    limit = float(statistics.variance.mean())
    better = []
    for level, relative in zip(std.tolist(), weight_std.tolist(), strict=True):
        noisy = sent * (1 + relative * errors_of_weight) + level * noise
        error = (finish(noisy, torch.full((_COUNT, 1, 1, 1), level)) - truth).square().mean()
        better.append(float(error) < limit)
    return torch.tensor(better, dtype=torch.bool)
