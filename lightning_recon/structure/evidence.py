# SPDX-License-Identifier: Apache-2.0
"""How strongly rows speak for one common picture: Bayes factors, from inner products of rows alone.

A victim's energy is spread over D rows. Where noise drowns each of them, their mean still stands out, by √D: rows are
therefore judged together. The evidence for "these D rows hold one picture" against "they hold nothing, or each
something of its own" is a Bayes factor, whose false alarms Markov's inequality bounds without further assumptions.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_recon.structure.decoding import RowPrior

# float32 gradients carry rounding of this share of a row's energy even without noise.
_ROUNDING = 1e-6
# Two tuples of rows are as different as their evidence; only so many are carried along while tuples are built.
_CARRIED = 8192
# Only so many of them are held against the intervals.
_JUDGED = 2048
# A tuple whose own measurements belong outside its intervals with more certainty than this holds no single picture.
_CONTRADICTION = 1e-6
# Scales within this many standard deviations of what the pilot says are weighed.
_PILOT_REACH = 5.0
_PILOT_POINTS = 65


@dataclass(frozen=True)
class Rows:
    """The released rows as a decoder sees them, divided by the clipping norm.

    Args:
        inputs: Shape (K, m): what came through the picture inputs.
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


class Evidence:
    """Inner products of released rows, and what follows from them for any combination of rows.

    Combinations are given as `mix`, shape (K, K): residual row i is Σ_k mix_ik · released row k.
    """

    def __init__(self, rows: Rows, prior: RowPrior) -> None:
        """Compute the inner products.

        Args:
            rows: The released rows.
            prior: What is expected of a lone victim's row.
        """
        self.rows, self.prior = rows, prior
        self.count = len(rows.directions)
        strongest = float(rows.inputs.square().sum(dim=1).max())
        self.variance = rows.noise**2 + _ROUNDING * max(strongest, 1e-12) / rows.inputs.shape[1]
        # How much each input tells signal from noise, once the rows of a victim are averaged.
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

    @cached_property
    def whitened(self) -> Tensor:
        """Inner products without noise in which every coefficient counts by its power, shape (K, K), float64.

        Different pictures are orthogonal in them, however alike their broad strokes are.
        """
        power = self.prior.power.to(self.rows.inputs) / self.prior.scale**2
        gain = power / (power + self.variance) ** 2
        noise = float(gain.sum()) * self.variance * torch.eye(len(self.pilot), dtype=torch.float64)
        return ((self.rows.inputs * gain) @ self.rows.inputs.T).double().cpu() - noise

    def single(self) -> Tensor:
        """Log Bayes factor of each row holding one picture, against noise, where there is one direction; shape (K,)."""
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

    def tuples(self, mix: Tensor, heard: Tensor, misfit: float, least: float) -> tuple[Tensor, Tensor]:
        """Tuples of one row a direction with their log Bayes factors, best first; those contradicted are left out.

        Args:
            mix: Shape (K, K).
            heard: Shape (K,), bool: rows to consider.
            misfit: Weighted energy, in units of the noise variance, by which D rows of one picture may scatter.
            least: Log Bayes factors below this are of no interest.

        Returns:
            Rows of each tuple, shape (N, D), int64, and the logarithm of how much more likely the rows are if they hold
            one common picture than if each holds noise, or something of its own; shape (N,).
        """
        inner, doubt = mix @ self.gram @ mix.T, mix @ mix.T
        own = 0.5 * (inner.diagonal() / (doubt.diagonal().clamp(min=1e-3) * self.variance) - self.surprise)
        own = own.clamp(min=0)
        found = torch.zeros(1, 0, dtype=torch.int64)
        # Energy and noise of the tuple's sum, the same summed over its rows, and what each row says on its own.
        energy, share, energies, shares, rivals, score = torch.zeros(6, 1, dtype=torch.float64)
        for size, units in enumerate(self.groups(), start=1):
            group = units[heard[units]]
            cross = inner[found][:, :, group].sum(dim=1), doubt[found][:, :, group].sum(dim=1)
            energy = (energy[:, None] + 2 * cross[0] + inner.diagonal()[group]).flatten()
            share = (share[:, None] + 2 * cross[1] + doubt.diagonal()[group]).flatten()
            energies = (energies[:, None] + inner.diagonal()[group]).flatten()
            shares = (shares[:, None] + doubt.diagonal()[group]).flatten()
            rivals = (rivals[:, None] + own[group]).flatten()
            found = torch.cat([found.repeat_interleave(len(group), dim=0), group.repeat(len(found))[:, None]], dim=1)
            score = 0.5 * (energy / (share.clamp(min=1e-3 * size) * self.variance) - self.surprise) - rivals
            best = score.topk(min(_CARRIED, len(score))).indices
            found = found[best]
            energy, share, energies, shares, rivals, score = (
                part[best] for part in (energy, share, energies, shares, rivals, score)
            )
        scatter, expected = energies - energy / self.count, shares - share / self.count
        score = score + sum(math.log(len(group)) for group in self.groups())
        fits = (scatter <= misfit * self.variance * expected / (self.count - 1)) & (score > least)
        best = torch.nonzero(fits).flatten()[:_JUDGED]
        found, score = found[best], score[best]
        likely = self.cell(mix[found].mean(dim=1), found)
        score = score + likely
        keep = (likely > math.log(_CONTRADICTION)) & (score > least)
        found, score = found[keep], score[keep]
        order = score.argsort(descending=True)
        return found[order], score[order]

    def cell(self, combine: Tensor, held: Tensor) -> Tensor:
        """Log-probability that the picture in each combination belongs into the intervals of the given rows.

        Args:
            combine: Shape (N, K): weights of the released rows.
            held: Shape (N, D): a unit of each direction.

        Returns:
            Shape (N,): sign and scale are averaged over what the pilot leaves open.
        """
        noise = combine.norm(dim=1).clamp(min=1e-6) * math.sqrt(self.variance)
        steps = torch.linspace(-_PILOT_REACH, _PILOT_REACH, _PILOT_POINTS, dtype=torch.float64)
        voice = ((combine @ self.pilot)[:, None] + noise[:, None] * steps) / self.prior.pilot_level
        spread = math.hypot(self.prior.log_contrast_std / 2, self.prior.log_scale_std)
        likely = -(steps**2) / 2 - (voice.abs() * self.prior.scale).clamp(min=1e-12).log() ** 2 / (2 * spread**2)
        voice = torch.where(voice == 0, 1e-12, voice)
        value = (combine @ self.measured)[:, None] / voice[..., None]
        slack = (self.reach * noise[:, None])[:, None] / voice[..., None].abs()
        slack = torch.hypot(slack, 1e-4 * value)
        # Measurements are worth as much as their noise allows against what is usual.
        trust = self.usual / (self.usual + slack**2)
        value, slack = trust * value, slack * trust.sqrt()
        lower, upper = self.lower[held][:, None], self.upper[held][:, None]
        inside = torch.special.ndtr((upper - value) / slack) - torch.special.ndtr((lower - value) / slack)
        inside = inside.clamp(min=1e-30).log().sum(dim=-1)
        return torch.logsumexp(likely + inside, dim=1) - torch.logsumexp(likely, dim=1)
