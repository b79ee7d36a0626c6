# SPDX-License-Identifier: Apache-2.0
"""Bayes factors for "these rows hold one common image", computed from inner products of rows.

A victim's energy is spread over D rows. Where each row is below the noise, the signal-to-noise ratio of their mean is
still larger by √D. Rows are therefore tested jointly. The evidence for "these D rows hold one image" against "they
hold nothing, or each something of its own" is a Bayes factor, whose false alarms Markov's inequality bounds without
further assumptions.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_recon.structure.detection.wiener import RowPrior

# float32 gradients carry rounding of this share of a row's energy even without noise.
_ROUNDING = 1e-6
# Most partial tuples that are kept while tuples are built, by their evidence.
_CARRIED = 8192
# Most tuples that are compared with the intervals.
_JUDGED = 2048
# A part of a tuple may be this many standard deviations below the energy that the whole needs.
_PART_REACH = 5.0
# A tuple whose own measurements belong outside its intervals with more certainty than this holds no single image.
_CONTRADICTION = 1e-6
# Scales within this many standard deviations of the pilot's estimate are weighed.
_PILOT_REACH = 5.0
_PILOT_POINTS = 65


@dataclass(frozen=True)
class Rows:
    """The released rows as a decoder sees them, divided by the clipping norm.

    Args:
        inputs: Shape (K, m): what came through the image inputs.
        pilot: Shape (K,): what came through the constant input.
        noise: Noise standard deviation of every entry.
        directions: Shape (D, m): the units' measurement directions.
        unit_direction: Shape (K,) int64: which direction each unit measures.
        lower: Shape (K,): where each unit's interval begins.
        upper: Shape (K,): where it ends.
    """

    inputs: Tensor
    pilot: Tensor
    noise: float
    directions: Tensor
    unit_direction: Tensor
    lower: Tensor
    upper: Tensor


@dataclass(frozen=True)
class Residual:
    """The rows after victims were subtracted: row i is Σ_k mix_ik · released row k.

    Args:
        mix: Shape (K, K), float64.
        energy: Weighted inner products of these rows, noise included, shape (K, K).
        doubt: Those of their noise, in units of its variance, shape (K, K).
        overlap: Their inner products without noise in which every coefficient counts by its power, shape (K, K).
    """

    mix: Tensor
    energy: Tensor
    doubt: Tensor
    overlap: Tensor

    def without(self, held: list[int], alike: list[int]) -> "Residual":
        """Subtract the mean of the rows `alike` from each of the rows `held`."""
        mix, *products = (part.clone() for part in (self.mix, self.energy, self.doubt, self.overlap))
        mix[held] -= mix[alike].mean(dim=0)
        for product in products:
            product[held] -= product[alike].mean(dim=0)
            product[:, held] -= product[:, alike].mean(dim=1, keepdim=True)
        return Residual(mix, *products)


class Evidence:
    """Inner products of released rows, and what follows from them for any combination of rows."""

    def __init__(self, rows: Rows, prior: RowPrior) -> None:
        """Compute the inner products.

        Args:
            rows: The released rows.
            prior: What is expected of the row of a single victim.
        """
        self.rows, self.prior = rows, prior
        self.count = len(rows.directions)
        strongest = float(rows.inputs.square().sum(dim=1).max())
        self.variance = rows.noise**2 + _ROUNDING * max(strongest, 1e-12) / rows.inputs.shape[1]
        # Weight of each input in the test of signal against noise, once the rows of a victim are averaged.
        expected = torch.cat(
            [prior.power.to(rows.inputs), prior.power.new_tensor([prior.pilot_level**2]).to(rows.inputs)]
        )
        expected = expected * (self.count / prior.scale**2)
        self.weights = expected / (expected + self.variance)
        self.surprise = float(torch.log1p(expected.double() / self.variance).sum())
        self.extended = torch.cat([rows.inputs, rows.pilot[:, None]], dim=1)
        self.measured = (rows.inputs @ rows.directions.T).double().cpu()
        self.pilot = rows.pilot.double().cpu()
        self.owner = rows.unit_direction.cpu()
        self.lower, self.upper = rows.lower.double().cpu(), rows.upper.double().cpu()
        self.reach = rows.directions.norm(dim=1).double().cpu()
        variance = (rows.directions.square() @ prior.power.to(rows.directions)).double().cpu()
        self.usual = variance.clamp(min=1e-30)

    @cached_property
    def gram(self) -> Tensor:
        """Weighted inner products of the released rows, pilots included, shape (K, K), float64."""
        return ((self.extended * self.weights) @ self.extended.T).double().cpu()

    def released(self) -> Residual:
        """The released rows themselves."""
        power = self.prior.power.to(self.rows.inputs) / self.prior.scale**2
        # Different images are orthogonal where every coefficient counts by its power, however alike their broad
        # strokes are.
        gain = power / (power + self.variance) ** 2
        same = torch.eye(len(self.pilot), dtype=torch.float64)
        overlap = ((self.rows.inputs * gain) @ self.rows.inputs.T).double().cpu()
        return Residual(same, self.gram, same, overlap - float(gain.sum()) * self.variance * same)

    def single(self) -> Tensor:
        """Log Bayes factor of each row holding one image, against noise, where there is one direction; shape (K,)."""
        energy = (self.extended.square() @ self.weights).double().cpu()
        score = 0.5 * (energy / self.variance - self.surprise)
        best = score.topk(min(_JUDGED, len(score))).indices
        ones = torch.zeros(len(best), len(score), dtype=torch.float64)
        ones[torch.arange(len(best)), best] = 1.0
        likely = self.cell(ones, best[:, None])
        judged = torch.full_like(score, -torch.inf)
        judged[best] = torch.where(
            likely > math.log(_CONTRADICTION), score[best] + likely + math.log(len(score)), -torch.inf
        )
        return judged

    def groups(self) -> list[Tensor]:
        """Units of each direction."""
        return [torch.nonzero(self.owner == direction).flatten() for direction in range(self.count)]

    def tuples(self, residual: Residual, misfit: float, least: float) -> tuple[Tensor, Tensor]:
        """Tuples of one row a direction with their log Bayes factors, best first; those contradicted are left out.

        Args:
            residual: The rows.
            misfit: Weighted energy, in units of the noise variance, by which D rows of one image may scatter.
            least: Log Bayes factors below this are of no interest.

        Returns:
            Rows of each tuple, shape (N, D), int64, and the logarithm of how much more likely the rows are if they hold
            one common image than if each holds noise, or something of its own; shape (N,).
        """
        inner, doubt = residual.energy, residual.doubt
        ways = sum(math.log(len(group)) for group in self.groups())
        energy_ratio = inner.diagonal() / (doubt.diagonal().clamp(min=1e-3) * self.variance)
        own = 0.5 * (energy_ratio - self.surprise).clamp(min=0)
        needed = self.surprise + 2 * (least - ways)
        candidates = self._may_grow(energy_ratio, needed + 2 * own, 1)
        # Rows added to a tuple only add to its scatter: what is too much for a whole tuple is so for a part of it.
        bound = misfit * self.variance / (self.count - 1)
        most = bound * self.count * float(doubt.diagonal().max())
        found = torch.zeros(1, 0, dtype=torch.int64)
        # Energy and noise of the tuple's sum, the same summed over its rows, and the evidence of each row on its own.
        energy, share, energies, shares, alternatives, score = torch.zeros(6, 1, dtype=torch.float64)
        for size, units in enumerate(self.groups(), start=1):
            group = units[candidates[units]]
            cross = inner[:, group][found].sum(dim=1), doubt[:, group][found].sum(dim=1)
            # One row of these for each part of a tuple, one column for each unit that may come next.
            grown = energy[:, None] + 2 * cross[0] + inner.diagonal()[group]
            blurred = share[:, None] + 2 * cross[1] + doubt.diagonal()[group]
            total = energies[:, None] + inner.diagonal()[group]
            energy_ratio = grown / (blurred.clamp(min=1e-3 * size) * self.variance)
            least_energy = needed + 2 * (alternatives[:, None] + own[group])
            score = (0.5 * (energy_ratio - least_energy)).flatten()
            fits = self._may_grow(energy_ratio, least_energy, size) & (total - grown / size <= most)
            close = torch.nonzero(fits.flatten()).flatten()
            best = close[score[close].topk(min(_CARRIED, len(close))).indices]
            part, unit = best // max(1, len(group)), group[best % max(1, len(group))]
            found = torch.cat([found[part], unit[:, None]], dim=1)
            energy, share, energies = grown.flatten()[best], blurred.flatten()[best], total.flatten()[best]
            shares, alternatives, score = (
                shares[part] + doubt.diagonal()[unit],
                alternatives[part] + own[unit],
                score[best],
            )
        scatter, expected = energies - energy / self.count, shares - share / self.count
        score = score + least
        fits = (scatter <= bound * expected) & (score > least)
        best = torch.nonzero(fits).flatten()[:_JUDGED]
        found, score = found[best], score[best]
        likely = self.cell(residual.mix[found].mean(dim=1), found)
        score = score + likely
        keep = (likely > math.log(_CONTRADICTION)) & (score > least)
        found, score = found[keep], score[keep]
        order = score.argsort(descending=True)
        return found[order], score[order]

    def _may_grow(self, energy_ratio: Tensor, needed: Tensor, size: int) -> Tensor:
        """Whether `size` rows, with this much energy together, may belong to D rows that have the energy required."""
        noise, squares = float(self.weights.sum()), float(self.weights.square().sum())
        # The energy of one image's rows above the noise grows with their number.
        excess = energy_ratio - noise
        excess = excess + _PART_REACH * (2 * squares + 4 * excess.clamp(min=0)).sqrt()
        return noise + excess * (self.count / size) >= needed

    def cell(self, combine: Tensor, held: Tensor) -> Tensor:
        """Log-probability that the image in each combination belongs into the intervals of the given rows.

        Args:
            combine: Shape (N, K): weights of the released rows.
            held: Shape (N, D): a unit of each direction.

        Returns:
            Shape (N,): sign and scale are averaged over what the pilot leaves open; 0 without a pilot, which leaves
            open what any row measured.
        """
        if self.prior.pilot_level == 0:
            return torch.zeros(len(combine), dtype=torch.float64)
        noise = combine.norm(dim=1).clamp(min=1e-6) * math.sqrt(self.variance)
        steps = torch.linspace(-_PILOT_REACH, _PILOT_REACH, _PILOT_POINTS, dtype=torch.float64)
        weight = ((combine @ self.pilot)[:, None] + noise[:, None] * steps) / self.prior.pilot_level
        spread = math.hypot(self.prior.log_contrast_std / 2, self.prior.log_scale_std)
        likely = -(steps**2) / 2 - (weight.abs() * self.prior.scale).clamp(min=1e-12).log() ** 2 / (2 * spread**2)
        weight = torch.where(weight == 0, 1e-12, weight)
        value = (combine @ self.measured)[:, None] / weight[..., None]
        slack = (self.reach * noise[:, None])[:, None] / weight[..., None].abs()
        slack = torch.hypot(slack, 1e-4 * value)
        # Wiener weights of the measurements: their usual variance against that of their noise.
        trust = self.usual / (self.usual + slack**2)
        value, slack = trust * value, slack * trust.sqrt()
        lower, upper = self.lower[held][:, None], self.upper[held][:, None]
        inside = torch.special.ndtr((upper - value) / slack) - torch.special.ndtr((lower - value) / slack)
        inside = inside.clamp(min=1e-30).log().sum(dim=-1)
        return torch.logsumexp(likely + inside, dim=1) - torch.logsumexp(likely, dim=1)
