# SPDX-License-Identifier: Apache-2.0
"""From rows to victims: which rows hold the same image, how to combine them, and how many stay unexplained."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_recon.structure.detection.bayes_factors import Evidence, Rows
from lightning_recon.structure.detection.peeling import Peeling
from lightning_recon.structure.detection.wiener import RowPrior

# Singular values that are a smaller share of the largest one count as zero.
_RCOND = 1e-6


@dataclass(frozen=True)
class Separation:
    """Victims found in the rows.

    Args:
        combine: Shape (V, K): weights that combine rows into each victim's contribution.
        members: Shape (V, K), bool: which rows hold each victim.
        unresolved: How many rows hold something that no single victim explains: collisions.
        evident: Whether the rows show that the victims are there; the row of a single unit is combined in any case.
        complete: Whether no further victim can be there: rows without any are told from rows that hold one, and none is
            left that holds something unexplained.
    """

    combine: Tensor
    members: Tensor
    unresolved: int
    evident: bool = True
    complete: bool = False

    def corrected(self, members: Tensor) -> "Separation":
        """The same with victims in other rows, shape (V, K), bool."""
        if torch.equal(members, self.members):
            return self
        combine: Tensor = torch.linalg.pinv(members.T.double(), rcond=_RCOND)
        return replace(self, combine=combine.float(), members=members)

    def images_shown(self, announced: int) -> int | None:
        """Number of images in the update, where the rows show that it is not the announced one; else None."""
        found = len(self.combine)
        return found if found > announced or (found < announced and self.complete) else None


def separate(
    rows: Rows,
    prior: RowPrior,
    victims: int,
    false_alarm: float,
    single_energy: float | None = None,
    limit: int = 0,
) -> Separation:
    """Find images in the rows: those announced, and more where the rows convincingly show them.

    Args:
        rows: The released rows.
        prior: What is expected of the row of a single victim.
        victims: Number of images in the update, as the protocol announced it.
        false_alarm: Probability that a batch of empty rows shows any activity, or that rows show an image beyond the
            announced ones where there is none; that a single victim is taken for two
            by its energy; and that any victim of a batch is by its weight, see `typical_weights`. Neither of the
            last two occurs once all victims were found.
        single_energy: Largest energy, pilot included, that clipping leaves a single victim in a row; None if only the
            sum over all victims is bounded, so that pairs are detected by their gradient weight.
        limit: Largest number of images to find; at least `victims`.

    Returns:
        How to combine rows into victims, strongest evidence first, and what stayed unexplained.
    """
    units = len(rows.inputs)
    search = Peeling(Evidence(rows, prior), victims, false_alarm, single_energy, limit)
    if units == 1:
        evident = bool(search.evident(torch.zeros(1, dtype=torch.int64)))
        # All victims excite a single unit: several collide in it, and one victim needs no search.
        if victims > 1:
            none = torch.zeros(0, 1)
            return Separation(combine=none, members=none.bool(), unresolved=int(evident))
        alone = torch.ones(1, 1)
        return Separation(combine=alone, members=alone.bool(), unresolved=0, evident=evident)
    if len(rows.directions) == 1:
        return _strongest(search)
    found = _explained(search)
    if found.unresolved and len(found.combine) >= victims and search.shows_more_than_announced:
        # All announced images are found, but rows stay unexplained: are there more images?
        freer = _explained(Peeling(search.evidence, victims, false_alarm, single_energy, limit, exceeded=True))
        if freer.unresolved + len(freer.combine) - len(found.combine) <= found.unresolved:
            return freer
    return found


def _explained(search: Peeling) -> Separation:
    """Victims whose rows agree or predict each other, each in one row of every direction."""
    units = len(search.evidence.pilot)
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
    isolated = search.isolated(combine)
    for held, single in zip(members, isolated.tolist(), strict=True):
        if not single:
            leftover[held] = True
    return Separation(
        combine=combine[isolated].float(),
        members=_membership(members, units).T[isolated].bool(),
        unresolved=int(leftover.sum()),
        complete=search.noticed and not bool(leftover.any()),
    )


def _strongest(search: Peeling) -> Separation:
    """The rows of best evidence, where every victim has a single row and there is nothing to compare it with."""
    evidence, score = search.evidence, search.evidence.single()
    best = score.topk(min(search.limit, len(score))).indices
    required = torch.full((len(best),), search.convincing, dtype=torch.float64)
    required[: search.victims] = search.likely
    best = best[(score[best] > required) & bool(search.evident(best[: search.victims]).any())]
    combine = torch.zeros(len(best), len(score), dtype=torch.float64)
    combine[torch.arange(len(best)), best] = 1.0
    isolated = search.isolated(combine)
    energy = (evidence.extended.square() @ evidence.weights).double().cpu() - search.total * evidence.variance
    leftover = energy > search.spread
    leftover[best[isolated]] = False
    alone = combine[isolated]
    complete = search.noticed and not bool(leftover.any())
    return Separation(alone.float(), alone.bool(), unresolved=int(leftover.sum()), complete=complete)


def _membership(members: list[list[int]], units: int) -> Tensor:
    """Membership of victims in rows, shape (K, V), zeros and ones."""
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
    inverse: Tensor = torch.linalg.pinv(membership, rcond=_RCOND)
    return inverse
