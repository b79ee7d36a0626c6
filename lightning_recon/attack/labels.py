# SPDX-License-Identifier: Apache-2.0
"""Which classes a batch holds, read from the gradient of the network's last layer."""

import math

import torch
from torch import Tensor

# How many factors are tried, and how far below the largest that fits.
_FACTORS, _SPAN = 400, 20.0


def label_counts(bias_gradient: Tensor, batch: int, prediction: Tensor, noise: float) -> Tensor:
    """The labels of a batch: the counts that explain the last layer's bias gradient best.

    The gradient of the mean loss is prediction − counts/B, times a factor that clipping leaves unknown; the counts are
    whole numbers that add up to B. For every factor on a grid the counts are rounded so, and the factor whose counts
    leave the smallest residual wins. For a single picture this is the sign rule: the class with the most negative
    entry.

    Args:
        bias_gradient: shape (classes,), noisy and scaled by an unknown positive factor.
        batch: pictures in the batch, B.
        prediction: mean probabilities that the server expects of the network, shape (classes,).
        noise: standard deviation of the noise on every entry.

    Returns:
        Labels in ascending order, shape (B,), int64.

    Source: the sign rule is Zhao et al. 2020 (iDLG, arXiv 2001.02610), section 3; counts from the last layer are
    Wainakh et al. 2022 (arXiv 2105.09369); the search over the factor is ours.
    """
    gradient, expected = bias_gradient.detach().cpu().double(), prediction.detach().cpu().double()
    if batch == 1:
        return gradient.argmin().reshape(1)
    # The deepest entry holds at least one picture's share, factor / B, and at most all of them.
    deepest = float((-gradient).max().clamp(min=max(noise, 1e-12)))
    low, high = math.log10(deepest / 2), math.log10(deepest * batch * min(_SPAN, batch))
    factors = torch.logspace(low, high, _FACTORS, dtype=torch.float64)
    counts = _rounded((batch * (expected - gradient / factors[:, None])).clamp(min=0), batch)
    model = expected - counts / batch
    fitted = (model * gradient).sum(1).clamp(min=0) / model.square().sum(1).clamp(min=1e-30)
    residual = (gradient - fitted[:, None] * model).square().sum(1)
    best = counts[residual.argmin()].long()
    return torch.arange(len(best)).repeat_interleave(best)


def _rounded(wanted: Tensor, total: int) -> Tensor:
    """Whole numbers near each row of `wanted` that add up to `total`: the largest remainders are rounded up."""
    scaled = wanted * (total / wanted.sum(1, keepdim=True).clamp(min=1e-30))
    whole = scaled.floor()
    rank = (scaled - whole).argsort(dim=1, descending=True).argsort(dim=1)
    return whole + (rank < total - whole.sum(1, keepdim=True)).to(whole)
