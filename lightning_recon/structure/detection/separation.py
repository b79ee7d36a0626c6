# SPDX-License-Identifier: Apache-2.0
"""From rows to victims: which rows hold the same picture, without ever seeing one.

Every victim excites one row per measurement direction, always with the same contribution u = δ · e(x). Rows that agree
on one victim are found by their joint evidence, what they hold is subtracted, and victims that share rows appear; a row
that holds a victim alone also predicts where else that victim must be, which undoes collisions: coded slotted ALOHA
with pictures for packets. Rows that no single victim explains are counted as unresolved.

Source: Liva, "Graph-based analysis and optimization of contention resolution diversity slotted ALOHA" (2011).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_recon.structure.detection.bayes_factors import Evidence, Residual, Rows
from lightning_recon.structure.detection.false_alarms import active_threshold, bounded, typical_weights
from lightning_recon.structure.detection.wiener import RowPrior

# A row counts as holding a victim's content if their whitened inner product is this share of the content's energy:
# it is 1 if it does, 1/2 for the mean of two equals, which is no content at all.
_MIN_OVERLAP = 0.75
# How many standard deviations a predicted measurement may miss an interval by.
_REACH = 4.0
# Where no rows agree, this many candidates per row are followed up, and this many in total.
_BRANCHES = 3
_FOLLOWED = 24
# Odds for a victim against noise, where it is clear that there are victims.
_ODDS = 9.0


@dataclass(frozen=True)
class Separation:
    """Victims found in the rows.

    Args:
        combine: Shape (V, K): weights that combine rows into each victim's contribution.
        members: Shape (V, K), bool: which rows hold each victim.
        unresolved: How many rows hold something that no single victim explains: collisions.
        evident: Whether the rows show that the victims are there; the row of a single unit is combined in any case.
    """

    combine: Tensor
    members: Tensor
    unresolved: int
    evident: bool = True


def separate(
    rows: Rows, prior: RowPrior, victims: int, false_alarm: float, lone_energy: float | None = None
) -> Separation:
    """Find at most `victims` pictures in the rows.

    Args:
        rows: The released rows.
        prior: What is expected of the row of a single victim.
        victims: Number of pictures in the update, announced by the protocol.
        false_alarm: Probability that a batch of empty rows shows any activity; that a single victim is taken for two
            by its energy; and that any victim of a batch is by its weight, see `typical_weights`. Neither of the
            last two occurs once all victims were found.
        lone_energy: Largest energy, pilot included, that clipping leaves a single victim in a row; None if only the sum
            over all victims is bounded, so that pairs are detected by their gradient weight.

    Returns:
        How to combine rows into victims, strongest evidence first, and what stayed unexplained.
    """
    units = len(rows.inputs)
    search = _Search(Evidence(rows, prior), victims, false_alarm, lone_energy)
    if units == 1:
        evident = bool(search.evident(torch.zeros(1, dtype=torch.int64)))
        # All victims excite a single unit: several collide in it, and one victim needs no search.
        if victims > 1:
            nobody = torch.zeros(0, 1)
            return Separation(combine=nobody, members=nobody.bool(), unresolved=int(evident))
        alone = torch.ones(1, 1)
        return Separation(combine=alone, members=alone.bool(), unresolved=0, evident=evident)
    if len(rows.directions) == 1:
        return search.strongest()
    members, _ = search.explain([], search.evidence.released())
    # Judged again with all victims fitted at once: estimates from single rows are subtracted with their noise.
    fitted = torch.eye(units, dtype=torch.float64)
    if members:
        combine = _least_squares(members, torch.zeros(units, dtype=torch.bool), units)
        for victim, held in enumerate(members):
            fitted[held] -= combine[victim]
    share = fitted.square().sum(dim=1)
    leftover = search.energies(fitted) > search.spread * share
    combine = _least_squares(members, leftover, units)
    lone = search.lone(combine)
    for held, single in zip(members, lone.tolist(), strict=True):
        if not single:
            leftover[held] = True
    return Separation(
        combine=combine[lone].float(),
        members=_membership(members, units).T[lone].bool(),
        unresolved=int(leftover.sum()),
    )


def _membership(members: list[list[int]], units: int) -> Tensor:
    """Which rows hold which victim, shape (K, V), zeros and ones."""
    membership = torch.zeros(units, len(members), dtype=torch.float64)
    for victim, held in enumerate(members):
        membership[held, victim] = 1.0
    return membership


def _least_squares(members: list[list[int]], leftover: Tensor, units: int) -> Tensor:
    """Least-squares weights, shape (V, K), for victims that each add to their member rows; bad rows are left out."""
    membership = _membership(members, units)
    clean = ~leftover
    # A victim seen only in rows that hold something unexplained keeps those rows: a poor estimate is better than none.
    hidden = membership[clean].sum(dim=0) == 0
    clean |= (membership[:, hidden] > 0).any(dim=1)
    membership[~clean] = 0.0
    inverse: Tensor = torch.linalg.pinv(membership, rcond=1e-6)
    return inverse


class _Search:
    """Peeling: victims are found and subtracted until nothing is left."""

    def __init__(self, evidence: Evidence, victims: int, false_alarm: float, lone_energy: float | None) -> None:
        self.evidence, self.victims = evidence, victims
        self.false_alarm, self.lone_energy = false_alarm, lone_energy
        self.total, self.squares = float(evidence.weights.sum()), float(evidence.weights.square().sum())
        units = len(evidence.pilot)
        threshold = active_threshold(evidence.weights, false_alarm / (2 * units))
        self.spread = (threshold - self.total) * evidence.variance
        others = max(1, evidence.count - 1)
        self.misfit = active_threshold(evidence.weights.repeat(others), false_alarm / (2 * units))
        # Markov's inequality: averaged over all tuples, a Bayes factor seldom exceeds 1/α where there is no picture.
        tuples = sum(math.log(len(group)) for group in evidence.groups())
        self.convincing = tuples + math.log(2 / false_alarm)
        # Once it is clear that anyone is there, the announced number is the prior for everyone else.
        self.likely = tuples - math.log(victims) + math.log(_ODDS)
        self.followed = 0

    def energies(self, mix: Tensor) -> Tensor:
        """Signal energy of each combination of rows, shape (V,): what noise would bring is taken off."""
        noise = self.total * self.evidence.variance * mix.square().sum(dim=1)
        if len(self.evidence.reach) == 1:
            combined = mix.to(self.evidence.extended) @ self.evidence.extended
            return (combined.square() @ self.evidence.weights).double().cpu() - noise
        return ((mix @ self.evidence.gram) * mix).sum(dim=1) - noise

    def active(self, residual: Residual) -> Tensor:
        """Which residual rows hold more than noise, shape (K,), bool."""
        noise = self.total * self.evidence.variance + self.spread
        return residual.energy.diagonal() > noise * residual.doubt.diagonal()

    def evident(self, units: Tensor) -> Tensor:
        """Which rows of one direction's units hold a picture, by their energy or by all that is known of one."""
        score = self.evidence.single()
        alone = torch.eye(len(score), dtype=torch.float64)[units]
        return (self.energies(alone) > self.spread) | (score[units] > self.convincing)

    def strongest(self) -> Separation:
        """The rows of best evidence, where every victim has a single row and there is nothing to compare it with."""
        evidence = self.evidence
        score = evidence.single()
        best = score.topk(min(self.victims, len(score))).indices
        best = best[(score[best] > self.likely) & bool(self.evident(best).any())]
        combine = torch.zeros(len(best), len(score), dtype=torch.float64)
        combine[torch.arange(len(best)), best] = 1.0
        lone = self.lone(combine)
        energy = (evidence.extended.square() @ evidence.weights).double().cpu() - self.total * evidence.variance
        leftover = energy > self.spread
        leftover[best[lone]] = False
        alone = combine[lone]
        return Separation(combine=alone.float(), members=alone.bool(), unresolved=int(leftover.sum()))

    def explain(self, members: list[list[int]], left: Residual) -> tuple[list[list[int]], Residual]:
        """Find and subtract victims until nothing convincing is left; returns all victims' rows and the residual."""
        while len(members) < self.victims and (agreed := self._agreeing(left, bool(members))):
            for held in agreed[: self.victims - len(members)]:
                members, left = [*members, held], left.without(held, held)
        active = self.active(left)
        if len(members) == self.victims or not bool(active.any()):
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

    def _agreeing(self, left: Residual, anyone: bool) -> list[list[int]]:
        """Disjoint tuples of rows that convincingly hold one picture each, strongest evidence first."""
        found, score = self.evidence.tuples(left, self.misfit, self.likely)
        if not anyone and not bool((score > self.convincing).any()):
            return []
        chosen: list[list[int]] = []
        used: set[int] = set()
        for held in found.tolist():
            if used.isdisjoint(held):
                chosen.append(held)
                used.update(held)
        return chosen

    def _predicting(self, left: Residual, active: Tensor) -> list[tuple[list[int], list[int]]]:
        """Victims that a single row gives away: all their rows, and those among them that hold nothing else."""
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
        if self.lone_energy is None:
            return torch.ones(len(energy), dtype=torch.bool)
        return bounded(energy, share * self.evidence.variance, self.squares, self.lone_energy, self.false_alarm)

    def lone(self, combine: Tensor) -> Tensor:
        """Which of the victims are one picture, not two that share all their rows; shape (V,), bool.

        Two victims have twice the energy that clipping leaves one. Where only the whole update is clipped, they have
        about twice the expected gradient weight. At most as many pairs are rejected as victims are missing, the largest
        first.
        """
        energy, share = self.energies(combine), combine.square().sum(dim=1)
        count = len(combine)
        if self.lone_energy is not None:
            magnitude, single = energy, self._bounded(energy, share)
        elif count > 1 and self.evidence.prior.pilot_level > 0:
            pilot = (combine @ self.evidence.pilot).abs().clamp(min=1e-30)
            magnitude = pilot.log()
            single = typical_weights(magnitude, (share * self.evidence.variance).sqrt() / pilot, self.false_alarm)
        else:
            return torch.ones(count, dtype=torch.bool)
        pairs = magnitude.masked_fill(single, -torch.inf).topk(max(0, min(self.victims - count, count))).indices
        unpaired = torch.ones(count, dtype=torch.bool)
        unpaired[pairs] = False
        return single | unpaired
