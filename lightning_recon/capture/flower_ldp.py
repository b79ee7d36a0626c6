# SPDX-License-Identifier: Apache-2.0
"""Exact privacy of Flower's LocalDpMod from its clipping norm, sensitivity, epsilon and delta."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lightning_recon.capture.sensitivity import sensitivity_remarks
from lightning_recon.errors import UserError
from lightning_recon.privacy.gaussian_accounting import epsilon_by_adjacency
from lightning_recon.privacy.mechanism import Adjacency


@dataclass(frozen=True)
class DeclaredPrivacy:
    """Declared and exact privacy of a LocalDpMod.

    Args:
        noise_std: standard deviation of the noise on every number of an update.
        noise_multiplier: the same divided by the clipping norm (z).
        epsilon_declared: declared epsilon of one round.
        epsilon_round: exact epsilon of one round, by adjacency; None without noise.
        epsilon_rounds: exact epsilon of all rounds together, by adjacency; None without noise.
        rounds: number of rounds.
        delta: delta of all these epsilons.
        remarks: warnings about the declaration.
    """

    noise_std: float
    noise_multiplier: float
    epsilon_declared: float
    epsilon_round: dict[Adjacency, float | None]
    epsilon_rounds: dict[Adjacency, float | None]
    rounds: int
    delta: float
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        """A summary in a few lines."""
        lines = [
            f"noise {self.noise_std:.4g} on every number, z = noise / clip = {self.noise_multiplier:.4g}",
            f"declared epsilon {self.epsilon_declared:g} a round, delta {self.delta:g}; accounted:",
        ]
        for name, once in self.epsilon_round.items():
            every = self.epsilon_rounds[name]
            if once is None or every is None:
                lines.append(f"  {name}: no finite epsilon")
            else:
                lines.append(f"  {name}: {once:.4g} for one round, {every:.4g} for all {self.rounds}")
        return "\n".join([*lines, *self.remarks])


def declared_privacy(
    clipping_norm: float, sensitivity: float, epsilon: float, delta: float, rounds: int = 1
) -> DeclaredPrivacy:
    """Account exactly for the four numbers of a LocalDpMod.

    Args:
        clipping_norm: C, above 0, in the unit of the model update.
        sensitivity: at least 0, in the same unit; LocalDpMod computes the noise from it, and not from C.
        epsilon: declared privacy parameter of one round, above 0.
        delta: declared privacy parameter, in (0, 1).
        rounds: number of updates of each client, at least 1.

    Returns:
        Noise, noise multiplier, exact epsilon of one round and of all rounds, and warnings.

    Raises:
        UserError: a number is outside its range.

    Source: noise of Dwork & Roth, "The Algorithmic Foundations of Differential Privacy" (2014), theorem A.1, which is
    proved for epsilon < 1; accounted by Balle & Wang, see `privacy.gaussian_accounting`.
    """
    for name, value in (("clipping_norm", clipping_norm), ("epsilon", epsilon)):
        if not (value > 0 and math.isfinite(value)):
            raise UserError(f"LocalDpMod's {name} is {value}: give a number above 0")
    if not (sensitivity >= 0 and math.isfinite(sensitivity)):
        raise UserError(f"LocalDpMod's sensitivity is {sensitivity}: give a number of at least 0")
    if not 0 < delta < 1:
        raise UserError(f"LocalDpMod's delta is {delta}: give a probability between 0 and 1")
    if rounds < 1:
        raise UserError(f"rounds is {rounds}: give a whole number of at least 1")
    noise = sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon
    multiplier = noise / clipping_norm
    once, every = (epsilon_by_adjacency(multiplier, count, delta) for count in (1, rounds))
    return DeclaredPrivacy(
        noise_std=noise,
        noise_multiplier=multiplier,
        epsilon_declared=epsilon,
        epsilon_round=once,
        epsilon_rounds=every,
        rounds=rounds,
        delta=delta,
        remarks=tuple(_remarks(clipping_norm, sensitivity, epsilon, once)),
    )


def _remarks(
    clipping_norm: float, sensitivity: float, epsilon: float, accounted: Mapping[Adjacency, float | None]
) -> list[str]:
    """Warnings about a declaration."""
    remarks = sensitivity_remarks(clipping_norm, sensitivity)
    replaced = accounted["replace_one"]
    if sensitivity >= 2 * clipping_norm * (1 - 1e-9) and replaced is not None and replaced > epsilon:
        remarks.append(
            f"LocalDpMod's formula is proved for epsilon below 1: declared {epsilon:g}, its noise gives {replaced:.4g}"
        )
    return remarks
