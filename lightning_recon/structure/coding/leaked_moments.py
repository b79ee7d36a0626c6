# SPDX-License-Identifier: Apache-2.0
"""Mean, variance and total variation of each channel: the statistics that the seed paper leaks beside the pixels."""

import torch
from torch import Tensor

# Name of each statistic, and its weight, which gives it the energy of a few pixels.
MOMENTS = {"mean": 1.0, "variance": 10.0, "total_variation": 1e-3}


def moments(images: Tensor) -> Tensor:
    """Weighted statistics of each channel.

    Args:
        images: Shape (B, C, H, W), values in [0, 1].

    Returns:
        Shape (B, 3 statistics, C channels): mean, 10 x variance, 0.001 x total variation (sum of absolute differences
        of neighbours).

    Source: You et al. (2025), released example: the statistics channel and its weights.
    """
    variation = images.diff(dim=-1).abs().sum(dim=(-2, -1)) + images.diff(dim=-2).abs().sum(dim=(-2, -1))
    values = [images.mean(dim=(-2, -1)), images.var(dim=(-2, -1)), variation]
    return torch.stack([w * v for w, v in zip(MOMENTS.values(), values, strict=True)], dim=1)
