# SPDX-License-Identifier: Apache-2.0
"""From rows to victims: which rows hold the same picture, without ever seeing one.

Every victim excites one row per measurement direction, always with the same contribution u = δ · e(x). Rows that hold
one victim are found, what they hold is subtracted from the victim's other rows, and so on: coded slotted ALOHA with
pictures for packets. All tests need only inner products of rows, so one small Gram matrix carries the whole search.

Source: Liva, "Graph-based analysis and optimization of contention resolution diversity slotted ALOHA" (2011).
"""

from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

# A row counts as another's content if their inner product is at least this share of the content's energy.
_MIN_OVERLAP = 0.6
# How many standard deviations a predicted measurement may miss an interval by.
_REACH = 4.0
# float32 gradients carry rounding of this share of a row's energy even without noise.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Rows:
    """The released rows as a decoder sees them, divided by the clipping norm.

    Args:
        inputs: Shape (K, m): what came through the picture inputs.
        pilot: Shape (K,): what came through the constant input.
        pilot_level: The constant c that was fed in.
        noise: Noise standard deviation of every entry.
        directions: Shape (D, m): the units' measurement directions.
        unit_direction: Shape (K,) int64: which direction each unit measures.
        lower: Shape (K,): where each unit's interval begins.
        upper: Shape (K,): where it ends.
    """

    inputs: Tensor
    pilot: Tensor
    pilot_level: float
    noise: float
    directions: Tensor
    unit_direction: Tensor
    lower: Tensor
    upper: Tensor


@dataclass(frozen=True)
class Separation:
    """Victims found in the rows.

    Args:
        combine: Shape (V, K): weights that combine rows into each victim's contribution.
        unresolved: How many rows still hold something that no victim explains: collisions.
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


def separate(rows: Rows, weights: Tensor, victims: int, false_alarm: float) -> Separation:
    """Find at most `victims` pictures in the rows.

    Args:
        rows: The released rows.
        weights: Shape (m,): how much each input tells signal from noise, in [0, 1].
        victims: Number of pictures in the client's batch, announced by the protocol.
        false_alarm: Probability that a batch of empty rows shows any activity.

    Returns:
        How to combine rows into victims, strongest evidence first, and what stayed unexplained.
    """
    units = len(rows.inputs)
    if units == 1:
        return Separation(combine=torch.ones(1, 1), unresolved=0)
    search = _Search(rows, weights, false_alarm / units)
    if len(rows.directions) == 1:
        # One row per victim: nothing to compare it with, so every active row is taken for a victim.
        energy = search.energies()
        chosen = [k for k in energy.argsort(descending=True).tolist() if search.active()[k]][:victims]
        return Separation(combine=torch.eye(units)[chosen], unresolved=0)
    members: list[list[int]] = []
    while len(members) < victims and (found := search.next_victim()) is not None:
        members.append(found)
    leftover = search.active()
    return Separation(combine=_least_squares(members, leftover, units), unresolved=int(leftover.sum()))


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
    return torch.linalg.pinv(membership, rcond=1e-6).float()


class _Search:
    """The state of peeling: residual rows as combinations of the released ones, and their inner products."""

    def __init__(self, rows: Rows, weights: Tensor, false_alarm: float) -> None:
        self.rows = rows
        self.weight = float(weights.sum())
        self.gram = ((rows.inputs * weights) @ rows.inputs.T).double().cpu()
        self.measured = (rows.inputs @ rows.directions.T).double().cpu()
        self.reach = _REACH * rows.noise * rows.directions.norm(dim=1).double().cpu()
        self.pilot = rows.pilot.double().cpu()
        self.mix = torch.eye(len(rows.inputs), dtype=torch.float64)
        # Without noise, what is left of a subtracted row is rounding, in proportion to the strongest row.
        floor = _ROUNDING * float(self.gram.diagonal().max()) / self.weight
        self.variance = rows.noise**2 + floor
        self.threshold = active_threshold(weights, false_alarm) * self.variance
        self.spread = self.threshold - self.weight * self.variance

    def energies(self) -> Tensor:
        """Signal energy of each residual row, shape (K,): what noise would bring is taken off."""
        return self.overlaps().diagonal()

    def overlaps(self) -> Tensor:
        """Inner products of residual rows without the noise they share, shape (K, K)."""
        noise = self.weight * self.variance * (self.mix @ self.mix.T)
        return self.mix @ self.gram @ self.mix.T - noise

    def active(self) -> Tensor:
        """Which residual rows hold more than noise, shape (K,), bool."""
        return self.energies() > self.spread * (self.mix**2).sum(dim=1)

    def next_victim(self) -> list[int] | None:
        """Find one more victim, subtract it, and return its rows; None if no row passes for a single victim."""
        overlaps, active = self.overlaps(), self.active()
        best: tuple[tuple[int, float], list[int], list[int]] | None = None
        for unit in torch.nonzero(active).flatten().tolist():
            held = self._rows_of(unit, overlaps, active)
            if held is None:
                continue
            alike = [other for other in held if self._same(unit, other, overlaps)]
            doubt = sum(abs(float(overlaps[unit, other] / overlaps[unit, unit]) - 1) for other in held)
            rank = (len(alike), -doubt)
            if best is None or rank > best[0]:
                best = (rank, held, alike)
        if best is None:
            return None
        _, held, alike = best
        self.mix[held] -= self.mix[alike].mean(dim=0)
        return held

    def _rows_of(self, unit: int, overlaps: Tensor, active: Tensor) -> list[int] | None:
        """Rows that must hold the victim if `unit` holds it alone; None if the rows contradict that."""
        rows = self.rows
        noise = float(self.mix[unit].norm()) * self.variance**0.5
        pilot = float(self.mix[unit] @ self.pilot)
        if abs(pilot) < 2 * noise:
            return None
        measured = (self.mix[unit] @ self.measured) * rows.pilot_level / pilot
        doubt = self.reach * noise / max(rows.noise, 1e-30) if rows.noise > 0 else torch.zeros_like(self.reach)
        slack = doubt * rows.pilot_level / abs(pilot) + _REACH * noise / abs(pilot) * measured.abs() + 1e-4
        held = []
        for direction in range(len(rows.directions)):
            value, margin = float(measured[direction]), float(slack[direction])
            possible = (rows.unit_direction == direction) & (rows.lower <= value + margin)
            possible &= rows.upper > value - margin
            if direction == int(rows.unit_direction[unit]):
                if not possible[unit]:
                    return None
                held.append(unit)
                continue
            share = torch.where(possible.cpu() & active, overlaps[unit] / overlaps[unit, unit], -torch.inf)
            other = int(share.argmax())
            if share[other] < _MIN_OVERLAP:
                return None
            held.append(other)
        return held

    def _same(self, unit: int, other: int, overlaps: Tensor) -> bool:
        """Whether two residual rows differ by no more than noise, so that both hold this victim alone."""
        difference = overlaps[unit, unit] + overlaps[other, other] - 2 * overlaps[unit, other]
        return bool(difference <= self.spread * (self.mix[unit] - self.mix[other]).square().sum())
