# SPDX-License-Identifier: Apache-2.0
"""From a victim's row to its picture: sign and scale from the pilot, contrast from the energy, then Wiener's filter."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Scales are searched this many standard deviations of their prior to either side, at this many points.
_GRID_REACH = 5.0
_GRID_POINTS = 401


@dataclass(frozen=True)
class RowPrior:
    """What the server expects of a row before it arrives.

    Args:
        power: Shape (m,): expected energy of each picture input, Σ = 1 − c².
        pilot_level: The constant c.
        log_contrast_std: Standard deviation of the logarithm of a picture's energy factor κ.
        scale: Typical S: the row is ± e(x)/S.
        log_scale_std: Spread of log S; 0 if S follows from the picture, S = scale · √(κ(1 − c²) + c²), as it does when
            each sample is clipped alone.
    """

    power: Tensor
    pilot_level: float
    log_contrast_std: float
    scale: float
    log_scale_std: float


@dataclass(frozen=True)
class RowPosterior:
    """What is known of a picture's inputs once its row is decoded.

    Args:
        inputs: Shape (m,): posterior mean of e(x) = gain · coefficient.
        variance: Shape (m,): posterior variance of each.
        contrast: Posterior mean of the energy factor κ: before the row arrived, the variance was κ p.
    """

    inputs: Tensor
    variance: Tensor
    contrast: float


def decode_row(row: Tensor, pilot: float, noise: float, prior: RowPrior) -> RowPosterior:
    """Posterior mean of the inputs given a noisy row of unknown sign, scale and contrast.

    The row is y = ± e/S + noise with e_k ~ N(0, κ p_k), log κ ~ N(−s²/2, s²), and the pilot ± c/S + noise. Its energy
    fixes τ = κ/S², the pilot ± S; the mean over both signs and a grid of scales of Wiener's estimate
    ê = ± S · p τ/(p τ + σ²) · y shrinks to the mean image by itself where the noise hides the sign.

    Args:
        row: Shape (m,): the row's picture inputs, divided by the clipping norm.
        pilot: The row's pilot, likewise.
        noise: Noise standard deviation of every entry, in [0, inf).
        prior: What was expected.

    Returns:
        Mean and variance of the inputs; the variance is of order p where nothing was learned.

    Source: Wiener's filter for a Gaussian scale mixture (Portilla et al. 2003); pilot of method (d).
    """
    power = prior.power.to(row)
    # Float32 rounding is the noise of a noiseless release, and keeps every formula finite.
    variance = noise**2 + 1e-14 * float(row.square().sum() + pilot**2)
    scales = _scale_grid(prior)
    centre, spread = -(prior.log_contrast_std**2) / 2, max(prior.log_contrast_std, 1e-3)
    budget = 1 - prior.pilot_level**2
    if prior.log_scale_std == 0:
        contrast = ((scales / prior.scale) ** 2 - prior.pilot_level**2) / budget
        shares = contrast / scales**2
        log_prior = -((contrast.log() - centre) ** 2) / (2 * spread**2)
        log_prior = log_prior + _energy_likelihood(row, power, shares, variance)
    else:
        shares = _contrast_grid(prior) / prior.scale**2
        evidence = _energy_likelihood(row, power, shares, variance)
        log_ratio = (shares * prior.scale**2).log() - centre
        total = spread**2 + 4 * prior.log_scale_std**2
        share = shares[(evidence - log_ratio**2 / (2 * total)).argmax()]
        contrast = share * scales**2
        log_prior = -((contrast.log() - centre) ** 2) / (2 * spread**2)
        log_prior = log_prior - (scales / prior.scale).log() ** 2 / (2 * prior.log_scale_std**2)
        shares = share.expand_as(scales)
    return _mixture(row, pilot, variance, power, scales, shares, log_prior, prior.pilot_level)


def _scale_grid(prior: RowPrior) -> Tensor:
    """Scales S to consider, shape (G,), float64."""
    if prior.log_scale_std == 0:
        contrast, level = _contrast_grid(prior), prior.pilot_level**2
        return prior.scale * (contrast * (1 - level) + level).sqrt()
    reach = _GRID_REACH * prior.log_scale_std
    return prior.scale * torch.linspace(-reach, reach, 4 * _GRID_POINTS, dtype=torch.float64).exp()


def _contrast_grid(prior: RowPrior) -> Tensor:
    """Contrasts κ to consider, shape (G,), float64."""
    reach = _GRID_REACH * (prior.log_contrast_std + 2 * prior.log_scale_std)
    return torch.linspace(-reach, reach, 4 * _GRID_POINTS, dtype=torch.float64).exp()


def _energy_likelihood(row: Tensor, power: Tensor, shares: Tensor, variance: float) -> Tensor:
    """Log-likelihood of the row's energies for each τ, shape (G,), float64; inputs of like power are pooled."""
    order = power.argsort(descending=True)
    groups = torch.unique((torch.arange(1, len(order) + 1, dtype=torch.float64).log2() * 8).long())
    label = (torch.arange(1, len(order) + 1, dtype=torch.float64).log2() * 8).long()
    label = torch.searchsorted(groups, label).to(row.device)
    count = torch.zeros(len(groups), dtype=torch.float64, device=row.device)
    level, energy = count.clone(), count.clone()
    count.index_add_(0, label, torch.ones_like(label, dtype=torch.float64))
    level.index_add_(0, label, power[order].double())
    energy.index_add_(0, label, row[order].double().square())
    expected = shares[:, None] * (level / count).cpu() + variance
    return -0.5 * (energy.cpu() / expected + count.cpu() * expected.log()).sum(dim=1)


def _mixture(
    row: Tensor,
    pilot: float,
    variance: float,
    power: Tensor,
    scales: Tensor,
    shares: Tensor,
    log_prior: Tensor,
    level: float,
) -> RowPosterior:
    """Average Wiener's estimate over signs and scales, weighted by prior and pilot."""
    signed = torch.cat([scales, -scales])
    log_weight = log_prior.repeat(2) - (pilot - level / signed) ** 2 / (2 * variance)
    weight = (log_weight - log_weight.max()).exp()
    weight, shares = weight / weight.sum(), shares.repeat(2)
    mean, second = torch.zeros_like(row), torch.zeros_like(row)
    # Nearly all of the weight sits on few points; the rest would only cost time.
    points = weight.argsort(descending=True)
    points = points[: int((weight[points].cumsum(0) < 1 - 1e-6).sum()) + 1]
    step = max(1, len(points) // 64)
    for chunk in points.split(step):
        mass = float(weight[chunk].sum())
        scale = float((weight[chunk] * signed[chunk]).sum()) / mass
        square = float((weight[chunk] * signed[chunk] ** 2).sum()) / mass
        share = float((weight[chunk] * shares[chunk]).sum()) / mass
        gain = power * share / (power * share + variance)
        mean += mass * scale * gain * row
        second += mass * square * (gain * row.square() * gain + gain * variance)
    contrast = float((weight * shares * signed.square()).sum())
    return RowPosterior(mean, (second - mean.square()).clamp(min=0), contrast)
