# SPDX-License-Identifier: Apache-2.0
"""From a victim's row to its image: sign and scale from the pilot, contrast from the energy, then Wiener's filter."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Scales are searched this many standard deviations of their prior to either side, at this many points.
_GRID_REACH = 5.0
_GRID_POINTS = 401
# Where the pilot tells the scale to within this share, all points lie within what it leaves open.
_SURE_SCALE = 0.01
# Number of tabulated powers, the least of them as a share of the greatest, and how many of them are pooled.
_RUNGS = 1024
_LEAST_POWER = 1e-12
_POOLED = 8
# Scales less likely than this, relative to the best, are left out.
_NEGLIGIBLE = 1e-9
# A row whose energy is this many standard deviations below the budget shows that the structure had only a part of it.
_BELOW_BUDGET = 3.0


@dataclass(frozen=True)
class RowPrior:
    """The prior of a row.

    Args:
        power: Shape (m,): variance of each image input; Σ = 1 − c² as announced.
        pilot_level: The constant c.
        log_contrast_std: Standard deviation of the logarithm of an image's energy factor κ.
        scale: Typical S: the row is ± e(x)/S.
        log_scale_std: Spread of log S; 0 if S follows from the image, S = scale · √(κ(1 − c²) + c²), as it does when
            each sample is clipped alone and the structure takes the whole budget. A row of clearly less energy shows
            what share of it the structure got.
        mean: Shape (m,): expected image inputs; None: 0, as they are where images are as announced.
    """

    power: Tensor
    pilot_level: float
    log_contrast_std: float
    scale: float
    log_scale_std: float
    mean: Tensor | None = None

    @property
    def zero_mean(self) -> "RowPrior":
        """A prior of mean 0 with the same expected energy of each input."""
        return self if self.mean is None else replace(self, power=self.power + self.mean.square(), mean=None)

    @property
    def budget(self) -> float:
        """Expected energy of the image inputs at a contrast of 1, without that of their mean."""
        return 1 - self.pilot_level**2 if self.mean is None else float(self.power.sum())

    @property
    def fixed(self) -> float:
        """Energy that every image has: of the pilot and of the mean."""
        return self.pilot_level**2 + (0.0 if self.mean is None else float(self.mean.square().sum()))

    def scale_of(self, contrast: Tensor) -> Tensor:
        """The scale S of images of these contrasts κ, where it follows from the image."""
        return self.scale * (contrast * self.budget + self.fixed).sqrt()

    def contrast_of(self, scale: Tensor) -> Tensor:
        """The contrasts κ of images of these scales S, likewise; at most 0 where no image has this scale."""
        return ((scale / self.scale) ** 2 - self.fixed) / self.budget


@dataclass(frozen=True)
class RowPosterior:
    """The posterior of an image's inputs given its row.

    Args:
        inputs: Shape (m,): posterior mean of e(x) = gain · coefficient.
        variance: Shape (m,): posterior variance of each.
        contrast: Posterior mean of the energy factor κ: before the row arrived, the variance was κ p.
        scale: Posterior mean of the signed scale ± S.
    """

    inputs: Tensor
    variance: Tensor
    contrast: float
    scale: float


def decode_row(row: Tensor, pilot: float, noise: float, prior: RowPrior) -> RowPosterior:
    """Posterior mean of the inputs given a noisy row of unknown sign, scale and contrast.

    The row is y = ± e/S + noise with e_k ~ N(m_k, κ p_k), log κ ~ N(−s²/2, s²), and the pilot ± c/S + noise. Its energy
    fixes τ = κ/S², the pilot ± S; the mean over both signs and a grid of scales of Wiener's estimate
    ê = ± S · p τ/(p τ + σ²) · y shrinks to the mean image by itself where the noise hides the sign.

    Args:
        row: Shape (m,): the row's image inputs, divided by the clipping norm.
        pilot: The row's pilot, likewise.
        noise: Noise standard deviation of every entry, in [0, inf).
        prior: What was expected.

    Returns:
        Mean and variance of the inputs; the variance is of order p where nothing was learned.

    Source: Wiener's filter for a Gaussian scale mixture (Portilla et al. 2003).
    """
    power = prior.power.to(row)
    # Float32 rounding is the noise of a noiseless release, and keeps every formula finite.
    variance = noise**2 + 1e-14 * float(row.square().sum() + pilot**2)
    if prior.log_scale_std == 0:
        prior = replace(prior, scale=scale_from_energy(row, pilot, noise, prior.scale))
    scales = _scale_grid(prior, abs(pilot), math.sqrt(variance))
    centre, spread = -(prior.log_contrast_std**2) / 2, max(prior.log_contrast_std, 1e-3)
    if prior.log_scale_std == 0:
        contrast = prior.contrast_of(scales)
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
    return _mixture(row, pilot, variance, power, scales, shares, log_prior, prior.pilot_level, prior.mean)


def scale_from_energy(row: Tensor, pilot: float, noise: float, scale: float) -> float:
    """The scale at which the row has the energy it should have: larger if the network took a part of the budget.

    Clipping leaves e(x) and pilot together the energy 1/scale²; only what noise cannot explain counts as missing.
    """
    entries = row.numel() + 1
    energy = float(row.double().square().sum()) + pilot**2 - entries * noise**2
    deviation = math.sqrt(2 * entries * noise**4 + 4 * max(energy, 0.0) * noise**2)
    if 0 < energy < 1 / scale**2 - _BELOW_BUDGET * deviation:
        return 1 / math.sqrt(energy)
    return scale


def _scale_grid(prior: RowPrior, pilot: float, noise: float) -> Tensor:
    """Scales S to consider, shape (G,), float64."""
    if noise * _GRID_REACH < _SURE_SCALE * pilot:
        # The pilot tells the scale more precisely than the points are apart that the prior spreads out.
        deviations = torch.linspace(-_GRID_REACH, _GRID_REACH, _GRID_POINTS, dtype=torch.float64)
        scales = prior.pilot_level / (pilot + noise * deviations)
        possible = scales if prior.log_scale_std > 0 else scales[prior.contrast_of(scales) > 0]
        if len(possible):
            return possible
    if prior.log_scale_std == 0:
        return prior.scale_of(_contrast_grid(prior))
    reach = _GRID_REACH * prior.log_scale_std
    return prior.scale * torch.linspace(-reach, reach, 4 * _GRID_POINTS, dtype=torch.float64).exp()


def _contrast_grid(prior: RowPrior) -> Tensor:
    """Contrasts κ to consider, shape (G,), float64."""
    reach = _GRID_REACH * (prior.log_contrast_std + 2 * prior.log_scale_std)
    return torch.linspace(-reach, reach, 4 * _GRID_POINTS, dtype=torch.float64).exp()


@dataclass(frozen=True)
class _Levels:
    """Powers of all inputs on a logarithmic ladder: what depends on power alone is computed for its rungs.

    Args:
        power: Shape (L,), float64: the rungs, ascending.
        below: Shape (m,) int64: the rung below each input's power, at most L − 2.
        above: Shape (m,): how far the power is from that rung towards the next, in [0, 1].
    """

    power: Tensor
    below: Tensor
    above: Tensor


def _levels(power: Tensor) -> _Levels:
    ends = power.aminmax()
    low = max(float(ends.min), _LEAST_POWER * float(ends.max))
    # A margin, so that a spectrum of a single power has a ladder too.
    span = math.log(float(ends.max) / low) + 1e-6
    place = (power.clamp(min=low) / low).log() * ((_RUNGS - 1) / span)
    below = place.long().clamp(max=_RUNGS - 2)
    rungs = low * torch.linspace(0, span, _RUNGS, dtype=torch.float64).exp()
    return _Levels(rungs, below, place - below)


def pooled_levels(power: Tensor, sums: Sequence[Tensor]) -> list[Tensor]:
    """Pool inputs of like power.

    Args:
        power: Shape (m,).
        sums: Of shape (m,) each.

    Returns:
        Number of inputs, mean power, and each of the sums, by pool; float64, in host memory.
    """
    pool = torch.div(_levels(power).below, _POOLED, rounding_mode="floor")
    groups = _RUNGS // _POOLED
    count = torch.bincount(pool, minlength=groups).double()
    totals = [torch.bincount(pool, weights=part.double(), minlength=groups) for part in (power, *sums)]
    used = count > 0
    count, level, *totals = (part[used].cpu() for part in (count, *totals))
    return [count, level / count, *totals]


def _energy_likelihood(row: Tensor, power: Tensor, shares: Tensor, variance: float) -> Tensor:
    """Log-likelihood of the row's energies for each τ, shape (G,), float64; inputs of like power are pooled."""
    count, level, energy = pooled_levels(power, [row.square()])
    expected = shares[:, None] * level + variance
    return -0.5 * (energy / expected + count * expected.log()).sum(dim=1)


def _mean_likelihood(
    row: Tensor, power: Tensor, expected: Tensor, signed: Tensor, shares: Tensor, variance: float
) -> Tensor:
    """What the row's mean adds to the log-likelihood of each signed scale, shape (G,)."""
    _, level, cross, squares = pooled_levels(power, [row * expected, expected.square()])
    spread = shares[:, None] * level + variance
    return (cross / spread).sum(dim=1) / signed - 0.5 * (squares / spread).sum(dim=1) / signed.square()


def _mixture(
    row: Tensor,
    pilot: float,
    variance: float,
    power: Tensor,
    scales: Tensor,
    shares: Tensor,
    log_prior: Tensor,
    level: float,
    expected: Tensor | None,
) -> RowPosterior:
    """Average Wiener's estimate over signs and scales, weighted by prior and pilot."""
    signed = torch.cat([scales, -scales])
    log_weight = log_prior.repeat(2) - (pilot - level / signed) ** 2 / (2 * variance)
    if expected is not None:
        log_weight = log_weight + _mean_likelihood(row, power, expected.to(row), signed, shares.repeat(2), variance)
    weight = (log_weight - log_weight.max()).exp()
    # Nearly all of the weight sits on few points; the rest would only cost time.
    points = weight > _NEGLIGIBLE
    weight, signed, shares = weight[points] / weight[points].sum(), signed[points], shares.repeat(2)[points]
    levels = _levels(power)
    gain = levels.power * shares[:, None] / (levels.power * shares[:, None] + variance)
    mean = (weight * signed) @ gain
    # The estimate's variance: what the scales disagree about, and what noise leaves open at each of them.
    disagreement = (weight[:, None] * (signed[:, None] * gain - mean).square()).sum(dim=0)
    open_question = (weight * signed.square()) @ gain * variance
    filtered, scatter, remaining = (
        torch.lerp(rungs.to(row)[levels.below], rungs.to(row)[levels.below + 1], levels.above)
        for rungs in (mean, disagreement, open_question)
    )
    contrast, scale = float((weight * shares * signed.square()).sum()), float((weight * signed).sum())
    if expected is not None:
        # What the filter does not take from the row it takes from the prior.
        rungs = (weight @ gain).to(row)
        kept = torch.lerp(rungs[levels.below], rungs[levels.below + 1], levels.above)
        inputs = filtered * row + (1 - kept) * expected.to(row)
        return RowPosterior(inputs, scatter * row.square() + remaining, contrast, scale)
    return RowPosterior(filtered * row, scatter * row.square() + remaining, contrast, scale)
