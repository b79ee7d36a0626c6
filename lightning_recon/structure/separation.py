# SPDX-License-Identifier: Apache-2.0
"""From rows to victims: which rows hold the same picture, without ever seeing one.

Every victim excites one row per measurement direction, always with the same contribution u = δ · e(x). Rows that agree
on one victim are found by their joint evidence, what they hold is subtracted, and victims that share rows appear; a row
that holds a victim alone also predicts where else that victim must be, which undoes collisions: coded slotted ALOHA
with pictures for packets. What no lone victim explains is reported, not passed off as a picture.

Source: Liva, "Graph-based analysis and optimization of contention resolution diversity slotted ALOHA" (2011).
"""

import math
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from lightning_recon.structure.decoding import RowPrior
from lightning_recon.structure.evidence import Evidence, Rows

# A row counts as holding a victim's content if their whitened inner product is this share of the content's energy:
# it is 1 if it does, 1/2 for the mean of two equals, which is no content at all.
_MIN_OVERLAP = 0.75
# How many standard deviations a predicted measurement may miss an interval by.
_REACH = 4.0
# Where no rows agree, this many guesses at a lone row are followed up, and this often altogether.
_BRANCHES = 3
_FOLLOWED = 24
# Odds for a victim against noise, where it is clear that there are victims.
_ODDS = 9.0
# Least spread of the logarithm of victims' voices that is taken for granted under one clip.
_VOICE_STD = 0.15
# Fewer voices than this do not tell what is usual.
_FEWEST_VOICES = 4


@dataclass(frozen=True)
class Separation:
    """Victims found in the rows.

    Args:
        combine: Shape (V, K): weights that combine rows into each victim's contribution.
        unresolved: How many rows hold something that no single victim explains: collisions.
    """

    combine: Tensor
    unresolved: int


def active_threshold(weights: Tensor, false_alarm: float) -> float:
    """Weighted energy that pure unit-variance noise exceeds with probability `false_alarm`.

    Args:
        weights: Shape (m,): weight of each squared entry, non-negative.
        false_alarm: Probability, in (0, 1).

    Source: Satterthwaite (1946): a weighted sum of χ²₁ behaves like a scaled χ² of matching mean and variance.
    """
    total, squares = float(weights.sum()), float((weights**2).sum())
    freedom = total**2 / squares
    return float(stats.chi2.isf(false_alarm, freedom)) * squares / total


def separate(
    rows: Rows, prior: RowPrior, victims: int, false_alarm: float, lone_energy: float | None = None
) -> Separation:
    """Find at most `victims` pictures in the rows.

    Args:
        rows: The released rows.
        prior: What is expected of a lone victim's row.
        victims: Number of pictures in the client's batch, announced by the protocol.
        false_alarm: Probability that a batch of empty rows shows any activity, and that a lone victim is taken for two
            (by its energy at most; by its voice up to five times that in batches of few and very unequal voices).
        lone_energy: The most energy, pilot included, that clipping leaves a lone victim in a row; None if only all
            victims together are bounded, and a pair has to be told by its voice.

    Returns:
        How to combine rows into victims, strongest evidence first, and what stayed unexplained.
    """
    units = len(rows.inputs)
    if units == 1:
        return Separation(combine=torch.ones(1, 1), unresolved=0)
    search = _Search(Evidence(rows, prior), victims, false_alarm, lone_energy)
    if len(rows.directions) == 1:
        return search.loudest()
    members, _ = search.explain([], torch.eye(units, dtype=torch.float64))
    # Judged again with all victims fitted at once: estimates from single rows are subtracted with their noise.
    fitted = torch.eye(units, dtype=torch.float64)
    if members:
        combine = _least_squares(members, torch.zeros(units, dtype=torch.bool), units)
        for victim, held in enumerate(members):
            fitted[held] -= combine[victim]
    leftover = search.active(fitted)
    combine = _least_squares(members, leftover, units)
    lone = search.lone(combine)
    for held, single in zip(members, lone.tolist(), strict=True):
        if not single:
            leftover[held] = True
    return Separation(combine=combine[lone].float(), unresolved=int(leftover.sum()))


def _least_squares(members: list[list[int]], leftover: Tensor, units: int) -> Tensor:
    """Least-squares weights, shape (V, K), for victims that each add to their member rows; bad rows are left out."""
    membership = torch.zeros(units, len(members), dtype=torch.float64)
    for victim, held in enumerate(members):
        membership[held, victim] = 1.0
    clean = ~leftover
    # A victim seen only in rows that hold something unexplained keeps those rows: a poor guess beats none.
    hidden = membership[clean].sum(dim=0) == 0
    clean |= (membership[:, hidden] > 0).any(dim=1)
    membership[~clean] = 0.0
    inverse: Tensor = torch.linalg.pinv(membership, rcond=1e-6)
    return inverse


class _Search:
    """Peeling: `mix`, shape (K, K), expresses the residual rows as combinations of the released ones."""

    def __init__(self, evidence: Evidence, victims: int, false_alarm: float, lone_energy: float | None) -> None:
        self.evidence, self.victims = evidence, victims
        self.false_alarm, self.lone_energy = false_alarm, lone_energy
        self.total = float(evidence.weights.sum())
        units = len(evidence.pilot)
        threshold = active_threshold(evidence.weights, false_alarm / (2 * units))
        self.spread = (threshold - self.total) * evidence.variance
        # Rows of one picture differ little: where this holds, none with a convincing picture can look empty.
        self.clear = self.total + 4 * evidence.count * (threshold - self.total) < evidence.surprise
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

    def active(self, mix: Tensor) -> Tensor:
        """Which residual rows hold more than noise, shape (K,), bool."""
        return self.energies(mix) > self.spread * mix.square().sum(dim=1)

    def loudest(self) -> Separation:
        """The rows of best evidence, where every victim has a single row and there is nothing to compare it with."""
        evidence = self.evidence
        score = evidence.single()
        best = score.topk(min(self.victims, len(score))).indices
        evident = self.energies(torch.eye(len(score), dtype=torch.float64)[best]) > self.spread
        evident |= score[best] > self.convincing
        best = best[(score[best] > self.likely) & bool(evident.any())]
        combine = torch.zeros(len(best), len(score), dtype=torch.float64)
        combine[torch.arange(len(best)), best] = 1.0
        lone = self.lone(combine)
        energy = (evidence.extended.square() @ evidence.weights).double().cpu() - self.total * evidence.variance
        leftover = energy > self.spread
        leftover[best[lone]] = False
        return Separation(combine=combine[lone].float(), unresolved=int(leftover.sum()))

    def explain(self, members: list[list[int]], mix: Tensor) -> tuple[list[list[int]], Tensor]:
        """Find and subtract victims until nothing convincing is left; returns all victims' rows and the residual."""
        while len(members) < self.victims and (agreed := self._agreeing(mix, bool(members))):
            mix = mix.clone()
            for held in agreed[: self.victims - len(members)]:
                members = [*members, held]
                mix[held] -= mix[held].mean(dim=0)
        active = self.active(mix)
        if len(members) == self.victims or not bool(active.any()):
            return members, mix
        best: tuple[list[list[int]], Tensor] = members, mix
        least = int(active.sum())
        for held, alike in self._predicting(mix, active)[:_BRANCHES]:
            self.followed += 1
            peeled = mix.clone()
            peeled[held] -= mix[alike].mean(dim=0)
            outcome = self.explain([*members, held], peeled)
            unexplained = int(self.active(outcome[1]).sum())
            if unexplained < least:
                best, least = outcome, unexplained
            if least == 0 or self.followed > _FOLLOWED:
                break
        return best

    def _agreeing(self, mix: Tensor, anyone: bool) -> list[list[int]]:
        """Disjoint tuples of rows that convincingly hold one picture each, strongest evidence first."""
        heard = self.active(mix) if self.clear else torch.ones(len(mix), dtype=torch.bool)
        found, score = self.evidence.tuples(mix, heard, self.misfit, self.likely)
        if not anyone and not bool((score > self.convincing).any()):
            return []
        chosen: list[list[int]] = []
        used: set[int] = set()
        for held in found.tolist():
            if used.isdisjoint(held):
                chosen.append(held)
                used.update(held)
        return chosen

    def _predicting(self, mix: Tensor, active: Tensor) -> list[tuple[list[int], list[int]]]:
        """Victims that a single row gives away: all their rows, and those among them that hold nothing else."""
        overlap = mix @ self.evidence.whitened @ mix.T
        candidates = []
        for unit in torch.nonzero(active).flatten().tolist():
            if not bool(self._bounded(mix[unit : unit + 1])):
                continue
            held = self._rows_of(unit, mix, overlap, active)
            if held is None:
                continue
            difference = mix[held] - mix[unit]
            same = self.energies(difference) <= self.spread * difference.square().sum(dim=1)
            alike = [row for row, equal in zip(held, same.tolist(), strict=True) if equal]
            # Rows that hold more than this victim should have more energy.
            doubt = float((overlap[unit, held] / overlap[unit, unit] - 1).abs().sum())
            candidates.append((-len(alike), doubt, held, alike))
        candidates.sort()
        unique = {tuple(held): (held, alike) for _, _, held, alike in reversed(candidates)}
        return list(reversed(unique.values()))

    def _rows_of(self, unit: int, mix: Tensor, overlap: Tensor, active: Tensor) -> list[int] | None:
        """Rows that must hold the victim if `unit` holds it alone; None if the rows contradict that."""
        evidence = self.evidence
        noise = float(mix[unit].norm()) * math.sqrt(evidence.variance)
        pilot = float(mix[unit] @ evidence.pilot)
        if abs(pilot) < 2 * noise:
            return None
        measured = (mix[unit] @ evidence.measured) * evidence.prior.pilot_level / pilot
        slack = _REACH * noise * (evidence.reach * evidence.prior.pilot_level + measured.abs()) / abs(pilot)
        slack = slack + 1e-4 * measured.abs()
        own = evidence.owner
        possible = (evidence.lower <= (measured + slack)[own]) & (evidence.upper > (measured - slack)[own])
        if not possible[unit]:
            return None
        share = torch.where(possible & active, overlap[unit] / overlap[unit, unit], -torch.inf)
        share[own == own[unit]] = -torch.inf
        share[unit] = 1.0
        best = [int(group[share[group].argmax()]) for group in evidence.groups()]
        return best if bool((share[best] >= _MIN_OVERLAP).all()) else None

    def _bounded(self, combine: Tensor) -> Tensor:
        """Whether combinations of rows have no more energy than clipping leaves a lone victim, shape (V,), bool."""
        if self.lone_energy is None:
            return torch.ones(len(combine), dtype=torch.bool)
        share = combine.square().sum(dim=1) * self.evidence.variance
        squares = float(self.evidence.weights.square().sum())
        deviation = (2 * squares * share**2 + 4 * share * self.lone_energy).sqrt()
        bound = self.lone_energy * (1 + 1e-3) + float(stats.norm.isf(self.false_alarm)) * deviation
        return self.energies(combine) <= bound

    def lone(self, combine: Tensor) -> Tensor:
        """Which of the victims are one picture, not two that share all their rows; shape (V,), bool.

        Two victims have twice the energy that clipping leaves one. Where only the whole update is clipped, they have
        twice the usual voice, as far as voices are alike.
        """
        if self.lone_energy is not None or len(combine) < _FEWEST_VOICES:
            return self._bounded(combine)
        pilot = (combine @ self.evidence.pilot).abs().clamp(min=1e-30)
        doubt = combine.norm(dim=1) * math.sqrt(self.evidence.variance) / pilot
        voice = pilot.log()
        usual = voice.median()
        # The median absolute deviation of normal voices is 1/1.4826 of their standard deviation.
        spread = (voice - usual).abs().median().mul(1.4826).clamp(min=_VOICE_STD)
        reach = float(stats.t.isf(self.false_alarm, len(combine) - 1))
        return voice - usual <= reach * torch.hypot(spread, doubt)
