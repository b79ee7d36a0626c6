# SPDX-License-Identifier: Apache-2.0
"""Peeling: find victims by their rows' joint evidence, subtract them, and find those that shared rows with them.

Every victim activates one row per measurement direction, always with the same contribution u = δ · e(x). Rows that
agree on one victim are found by their joint evidence; subtracting what they hold uncovers victims that share rows. A
row that holds a single victim also predicts which other rows hold it, which resolves collisions: this is coded slotted
ALOHA with images for packets.

Source: Liva, "Graph-based analysis and optimization of contention resolution diversity slotted ALOHA" (2011).
"""

import math

import torch
from torch import Tensor

from lightning_recon.structure.detection.bayes_factors import Evidence, Residual
from lightning_recon.structure.detection.false_alarms import active_threshold, bounded, typical_weights

# A row counts as holding a victim's content if their whitened inner product is this share of the content's energy:
# it is 1 if it does, 1/2 for the mean of two equals, which is no victim's content.
_MIN_OVERLAP = 0.75
# How many standard deviations a predicted measurement may miss an interval by.
_REACH = 4.0
# Where no rows agree, this many candidates per row are followed up, and this many in total.
_BRANCHES = 3
_FOLLOWED = 24
# Standard deviations by which a victim's contrast may be below the usual one for it to be noticed at all.
_LEAST_CONTRAST = 3.0
# Noise of a victim's inputs, relative to their norm, up to which the announced victims alone leave no row unexplained.
_RELIABLE = 0.014
# Posterior odds of a victim against noise, once the update certainly holds victims.
_ODDS = 9.0


class Peeling:
    """Find victims and subtract them from the rows until nothing is left."""

    def __init__(
        self,
        evidence: Evidence,
        victims: int,
        false_alarm: float,
        single_energy: float | None,
        limit: int,
        exceeded: bool = False,
    ) -> None:
        """Set the thresholds.

        Args:
            evidence: The rows.
            victims: This and the following are those of `separation.separate`.
            false_alarm: Likewise.
            single_energy: Likewise.
            limit: Likewise.
            exceeded: Whether to take for granted that there are more victims than announced.
        """
        self.evidence, self.victims, self.limit = evidence, victims, max(victims, limit)
        self.false_alarm, self.single_energy = false_alarm, single_energy
        self.total, self.squares = float(evidence.weights.sum()), float(evidence.weights.square().sum())
        units = len(evidence.pilot)
        threshold = active_threshold(evidence.weights, false_alarm / (2 * units))
        self.spread = (threshold - self.total) * evidence.variance
        others = max(1, evidence.count - 1)
        self.misfit = active_threshold(evidence.weights.repeat(others), false_alarm / (2 * units))
        # Markov's inequality: averaged over all tuples, a Bayes factor seldom exceeds 1/α where there is no image.
        tuples = sum(math.log(len(group)) for group in evidence.groups())
        self.convincing = tuples + math.log(2 / false_alarm)
        # Once the update certainly holds victims, their announced number is the prior of further ones up to there.
        self.likely = tuples - math.log(victims) + math.log(_ODDS)
        self.followed, self.exceeded = 0, exceeded or self._too_energetic()
        # What is left of a subtracted image looks like further ones, so that only rows as they were released show more
        # than the announced number. Where there is one direction, nothing is subtracted.
        if len(evidence.reach) > 1 and not self.exceeded:
            self.limit = victims

    def energies(self, mix: Tensor) -> Tensor:
        """Signal energy of each combination of rows, shape (V,): what noise would bring is taken off."""
        noise = self.total * self.evidence.variance * mix.square().sum(dim=1)
        if len(self.evidence.reach) == 1:
            combined = mix.to(self.evidence.extended) @ self.evidence.extended
            return (combined.square() @ self.evidence.weights).double().cpu() - noise
        return ((mix @ self.evidence.gram) * mix).sum(dim=1) - noise

    def _too_energetic(self) -> bool:
        """Whether all rows together have more energy than clipping leaves the announced victims."""
        if self.single_energy is None:
            return False
        entries, variance = self.evidence.extended.numel(), self.evidence.variance
        energy = float(self.evidence.extended.double().square().sum()) - entries * variance
        deviation = math.sqrt(2 * entries * variance**2 + 4 * variance * self.victims)
        return energy > self.victims + 1 + _REACH * deviation

    @property
    def shows_more_than_announced(self) -> bool:
        """Whether rows that the announced number of victims leaves unexplained mean that there are more victims.

        Under little noise they do; under any noise they do if more rows hold something than so many victims excite.
        """
        if self.exceeded:
            return False
        evidence = self.evidence
        noise = math.sqrt(evidence.variance / evidence.count) * evidence.prior.scale
        rows = int(self.active(evidence.released()).sum())
        return noise < _RELIABLE or rows > evidence.count * self.victims

    @property
    def noticed(self) -> bool:
        """Whether a row that holds a victim, even one of little contrast, is told from one that holds noise."""
        prior = self.evidence.prior
        expected = torch.cat([prior.power, prior.power.new_tensor([prior.pilot_level**2])])
        energy = float(self.evidence.weights.cpu() @ expected.cpu().to(self.evidence.weights.dtype)) / prior.scale**2
        return energy * math.exp(-_LEAST_CONTRAST * prior.log_contrast_std) > self.spread

    def active(self, residual: Residual) -> Tensor:
        """Residual rows that hold more than noise, shape (K,), bool."""
        noise = self.total * self.evidence.variance + self.spread
        return residual.energy.diagonal() > noise * residual.doubt.diagonal()

    def evident(self, units: Tensor) -> Tensor:
        """Rows, of units of one direction, that hold an image by their energy or their Bayes factor."""
        score = self.evidence.single()
        alone = torch.eye(len(score), dtype=torch.float64)[units]
        return (self.energies(alone) > self.spread) | (score[units] > self.convincing)

    def explain(self, members: list[list[int]], left: Residual) -> tuple[list[list[int]], Residual]:
        """Find and subtract victims until nothing convincing is left; returns all victims' rows and the residual."""
        while len(members) < self.limit and (agreed := self._agreeing(left, len(members))):
            for held in agreed:
                members, left = [*members, held], left.without(held, held)
        active = self.active(left)
        if len(members) == self.limit or not bool(active.any()):
            return members, left
        best = members, left
        least = int(active.sum())
        for held, alike in self._predicting(left, active)[:_BRANCHES]:
            self.followed += 1
            outcome = self.explain([*members, held], left.without(held, alike))
            unexplained = int(self.active(outcome[1]).sum())
            if unexplained < least:
                best, least = outcome, unexplained
            if least == 0 or self.followed > _FOLLOWED:
                break
        return best

    def required(self, found: int) -> float:
        """Log Bayes factor that one more victim needs after so many: more than the announced ones have to convince."""
        return self.likely if 0 < found < self.victims else self.convincing

    def _agreeing(self, left: Residual, present: int) -> list[list[int]]:
        """Disjoint tuples of rows that convincingly hold one image each, strongest evidence first."""
        found, score = self.evidence.tuples(left, self.misfit, min(self.likely, self.required(present)))
        chosen: list[list[int]] = []
        used: set[int] = set()
        for held, evidence in zip(found.tolist(), score.tolist(), strict=True):
            if present + len(chosen) == self.limit or evidence <= self.required(present + len(chosen)):
                break
            if used.isdisjoint(held):
                chosen.append(held)
                used.update(held)
        return chosen

    def _predicting(self, left: Residual, active: Tensor) -> list[tuple[list[int], list[int]]]:
        """Victims that a single row reveals: all their rows, and those among them that hold nothing else."""
        noise, overlap = self.total * self.evidence.variance, left.overlap
        energy, share = left.energy.diagonal(), left.doubt.diagonal()
        bounded = self._bounded(energy - noise * share, share)
        difference = energy[:, None] + energy - 2 * left.energy
        same = difference <= (noise + self.spread) * (share[:, None] + share - 2 * left.doubt)
        candidates = []
        for unit in torch.nonzero(active & bounded).flatten().tolist():
            held = self._rows_of(unit, left, active)
            if held is None:
                continue
            alike = [row for row in held if row == unit or bool(same[unit, row])]
            # Rows that hold more than this victim should have more energy.
            doubt = float((overlap[unit, held] / overlap[unit, unit] - 1).abs().sum())
            candidates.append((-len(alike), doubt, held, alike))
        candidates.sort()
        unique = {tuple(held): (held, alike) for _, _, held, alike in reversed(candidates)}
        return list(reversed(unique.values()))

    def _rows_of(self, unit: int, left: Residual, active: Tensor) -> list[int] | None:
        """Rows that must hold the victim if `unit` holds it alone; None if the rows contradict that."""
        evidence, overlap, own = self.evidence, left.overlap, self.evidence.owner
        possible = torch.ones(len(own), dtype=torch.bool)
        if evidence.prior.pilot_level > 0:
            possible = self._measured_inside(left.mix[unit])
        if not possible[unit]:
            return None
        share = torch.where(possible & active, overlap[unit] / overlap[unit, unit], -torch.inf)
        share[own == own[unit]] = -torch.inf
        share[unit] = 1.0
        best = [int(group[share[group].argmax()]) for group in evidence.groups()]
        return best if bool((share[best] >= _MIN_OVERLAP).all()) else None

    def _measured_inside(self, weights: Tensor) -> Tensor:
        """Units whose interval holds what a combination of rows, weights of shape (K,), measures; shape (K,), bool."""
        evidence = self.evidence
        noise = float(weights.norm()) * math.sqrt(evidence.variance)
        pilot = float(weights @ evidence.pilot)
        if abs(pilot) < 2 * noise:
            return torch.zeros(len(weights), dtype=torch.bool)
        measured = (weights @ evidence.measured) * evidence.prior.pilot_level / pilot
        slack = _REACH * noise * (evidence.reach * evidence.prior.pilot_level + measured.abs()) / abs(pilot)
        slack = (slack + 1e-4 * measured.abs())[evidence.owner]
        measured = measured[evidence.owner]
        inside: Tensor = (evidence.lower <= measured + slack) & (evidence.upper > measured - slack)
        return inside

    def _bounded(self, energy: Tensor, share: Tensor) -> Tensor:
        """Whether signal energies, given squared weights, both of shape (V,), are consistent with a single victim."""
        if self.single_energy is None:
            return torch.ones(len(energy), dtype=torch.bool)
        return bounded(energy, share * self.evidence.variance, self.squares, self.single_energy, self.false_alarm)

    def isolated(self, combine: Tensor) -> Tensor:
        """Victims that are a single image, not two that share all their rows; shape (V,), bool.

        Two victims have twice the energy that clipping leaves one. Where only the whole update is clipped, they have
        about twice the expected gradient weight. At most as many pairs are rejected as victims are missing, the largest
        first; of the announced ones, or, where more were found, of those at the limit.
        """
        energy, share = self.energies(combine), combine.square().sum(dim=1)
        count = len(combine)
        if self.single_energy is not None:
            magnitude, single = energy, self._bounded(energy, share)
        elif count > 1 and self.evidence.prior.pilot_level > 0:
            pilot = (combine @ self.evidence.pilot).abs().clamp(min=1e-30)
            magnitude = pilot.log()
            single = typical_weights(magnitude, (share * self.evidence.variance).sqrt() / pilot, self.false_alarm)
        else:
            return torch.ones(count, dtype=torch.bool)
        missing = (self.victims if count <= self.victims else self.limit) - count
        pairs = magnitude.masked_fill(single, -torch.inf).topk(min(missing, count)).indices
        unpaired = torch.ones(count, dtype=torch.bool)
        unpaired[pairs] = False
        return single | unpaired
