# SPDX-License-Identifier: Apache-2.0
"""Label recovery: the label counts of a batch from the gradient of the network's last layer."""

import math

import torch
from torch import Tensor

# Number of factors on the grid, and its span below the largest factor that fits.
_FACTORS, _SPAN = 400, 20.0
_TRIALS = 8  # simulated batches


def label_counts(bias_gradient: Tensor, batch: int, prediction: Tensor, noise: float) -> Tensor:
    """The labels of a batch: the counts that explain the last layer's bias gradient best.

    The gradient of the mean loss is prediction − counts/B, times a factor that clipping leaves unknown; the counts are
    integers that sum to B. For every factor on a grid the counts are rounded accordingly, and the factor with the
    smallest residual is taken. For a single image this is the sign rule: the class with the most negative entry.

    Args:
        bias_gradient: shape (classes,), noisy and scaled by an unknown positive factor.
        batch: images in the batch, B.
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
    # The most negative entry holds the share of at least one image, factor / B, and at most that of all.
    lowest = float((-gradient).max().clamp(min=max(noise, 1e-12)))
    low, high = math.log10(lowest / 2), math.log10(lowest * batch * min(_SPAN, batch))
    factors = torch.logspace(low, high, _FACTORS, dtype=torch.float64)
    counts = _rounded((batch * (expected - gradient / factors[:, None])).clamp(min=0), batch)
    model = expected - counts / batch
    fitted = (model * gradient).sum(1).clamp(min=0) / model.square().sum(1).clamp(min=1e-30)
    residual = (gradient - fitted[:, None] * model).square().sum(1)
    best = counts[residual.argmin()].long()
    return torch.arange(len(best)).repeat_interleave(best)


def expected_share(bias_gradient: Tensor, batch: int, predictions: Tensor, noise: float, seed: int = 0) -> float:
    """Expected share of a batch's labels that `label_counts` recovers correctly, estimated on simulated batches.

    Labels are drawn, the network's errors follow from its predictions for public images, and noise of the announced
    strength is added to a signal of the update's energy.

    Args:
        bias_gradient: As received, shape (classes,).
        batch: Images in the batch, B.
        predictions: Probabilities for public images, shape (N, classes), those of one batch in a row.
        noise: Standard deviation of the noise on every entry.
        seed: Of labels and noise.

    Returns:
        A mean over simulated batches, in [0, 1].
    """
    generator, shares = torch.Generator().manual_seed(seed), []
    public, classes = predictions.detach().cpu().double(), predictions.shape[1]
    energy = float(bias_gradient.detach().cpu().double().square().sum()) - classes * noise**2
    places = torch.arange(_TRIALS * batch).view(_TRIALS, batch) % len(public)
    for place in places:
        labels = torch.randint(classes, (batch,), generator=generator)
        errors = public[place].mean(0) - labels.bincount(minlength=classes) / batch
        observed = errors * (max(energy, 0.0) ** 0.5 / errors.norm())
        observed = observed + noise * torch.randn(classes, generator=generator, dtype=torch.float64)
        found = label_counts(observed, batch, public.mean(0), noise)
        counts = (one.bincount(minlength=classes) for one in (found, labels))
        shares.append(float(torch.minimum(*counts).sum()) / batch)
    return sum(shares) / len(shares)


def _rounded(wanted: Tensor, total: int) -> Tensor:
    """Integers near each row of `wanted` that sum to `total` (largest remainder method)."""
    scaled = wanted * (total / wanted.sum(1, keepdim=True).clamp(min=1e-30))
    whole = scaled.floor()
    rank = (scaled - whole).argsort(dim=1, descending=True).argsort(dim=1)
    return whole + (rank < total - whole.sum(1, keepdim=True)).to(whole)
