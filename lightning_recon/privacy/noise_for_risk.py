# SPDX-License-Identifier: Apache-2.0
"""The risks that remain under a noise multiplier, and the noise multiplier that keeps a risk below a limit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.optimize import brentq

from lightning_recon.errors import UserError
from lightning_recon.privacy.mechanism import Adjacency, Mechanism
from lightning_recon.privacy.risk import FALSE_POSITIVE_RATES

Measure = Literal["epsilon", "mu", "advantage", "tpr", "reconstruction"]

PRIOR_SUCCESS = 0.1
_EXAMPLES = "advantage=0.1, tpr@0.01=0.05, reconstruction@0.1=0.2, epsilon=8 or mu=1"
_LEAST, _MOST = -6.0, 9.0  # decimal logarithms of the noise multipliers that are tried


@dataclass(frozen=True)
class Risk:
    """One measure of how well any attack can do at most.

    Args:
        measure: "epsilon"; "mu" of Gaussian differential privacy; "advantage": true- minus false-positive rate of
            guessing who is a member; "tpr": true-positive rate of such guesses at a given false-positive rate;
            "reconstruction": probability gamma of reconstructing a record that blind guessing reaches with a given one.
        at: the false-positive rate of "tpr", the probability of blind guessing of "reconstruction"; None of the others.
    """

    measure: Measure
    at: float | None = None

    def of(
        self, mechanism: Mechanism, noise_multiplier: float, rounds: int, delta: float, adjacency: Adjacency
    ) -> float | None:
        """The measure of all rounds together; None where none is known, as for "mu" of other than Gaussian noise.

        Args:
            mechanism: of the noise.
            noise_multiplier: scale of the noise divided by the clipping norm, > 0.
            rounds: releases of the same data, >= 1.
            delta: at which epsilon is stated.
            adjacency: neighbours; "reconstruction" always compares with releases without the record.
        """
        if self.measure == "epsilon":
            return mechanism.epsilon(noise_multiplier, rounds, delta, adjacency)
        if self.measure == "mu":
            return mechanism.mu(noise_multiplier, rounds, adjacency)
        if self.measure == "advantage":
            return mechanism.membership_advantage(noise_multiplier, rounds, adjacency)
        assert self.at is not None
        if self.measure == "tpr":
            return mechanism.true_positive_rate(self.at, noise_multiplier, rounds, adjacency)
        return mechanism.reconstruction_robustness(self.at, noise_multiplier, rounds)


RISKS = (
    Risk("epsilon"),
    Risk("mu"),
    Risk("advantage"),
    *(Risk("tpr", rate) for rate in FALSE_POSITIVE_RATES),
    Risk("reconstruction", PRIOR_SUCCESS),
)


def risk_limit(text: str) -> tuple[Risk, float]:
    """Read a limit such as "tpr@0.01=0.05".

    Args:
        text: measure, the rate that it is stated at after "@" if it has one, and its limit after "=".

    Returns:
        The risk and its limit.

    Raises:
        UserError: the text is no limit, or one that all noise keeps or none does.
    """
    name, _, given = text.partition("=")
    name, _, place = name.partition("@")
    measures: dict[str, Measure] = {risk.measure: risk.measure for risk in RISKS}
    try:
        limit, at = float(given), float(place) if place else None
    except ValueError:
        raise UserError(f"--risk {text} is no limit: give for example {_EXAMPLES}") from None
    if name not in measures or (at is None) != (name in ("epsilon", "mu", "advantage")):
        raise UserError(f"--risk {text} is no limit: give for example {_EXAMPLES}")
    if at is not None and not 0 < at < 1:
        raise UserError(f"--risk {text} is stated at {at:g}: give a rate between 0 and 1, as in {_EXAMPLES}")
    least, most = (0.0, math.inf) if name in ("epsilon", "mu") else (at or 0.0, 1.0)
    if not least < limit < most:
        between = "above 0" if math.isinf(most) else f"between {least:g}, which is a blind guess, and {most:g}"
        raise UserError(f"--risk {text} has the limit {limit:g}: give a number {between}")
    return Risk(measures[name], at), limit


def noise_multiplier_for_risks(
    limits: Sequence[tuple[Risk, float]], mechanism: Mechanism, rounds: int, delta: float, adjacency: Adjacency
) -> float:
    """The least noise multiplier that keeps every risk within its limit, all rounds together.

    Args:
        limits: risks and their limits, at least one.
        mechanism: of the noise.
        rounds: releases of the same data, >= 1.
        delta: at which epsilon is stated.
        adjacency: neighbours.

    Returns:
        Scale of the noise divided by the clipping norm, > 0, to six digits from above.

    Raises:
        UserError: a risk is not known for the mechanism, or no noise keeps its limit.
    """

    def least(risk: Risk, limit: float) -> float:
        def excess(log_multiplier: float) -> float:
            found = risk.of(mechanism, 10**log_multiplier, rounds, delta, adjacency)
            if found is None:
                raise UserError(f"{risk.measure} is not known for the {mechanism.name} mechanism: limit another risk")
            return found - limit

        if not excess(_LEAST) > 0 >= excess(_MOST):
            raise UserError(f"no noise multiplier of the {mechanism.name} mechanism gives {risk.measure} {limit:g}")
        return float(10 ** (brentq(excess, _LEAST, _MOST, xtol=1e-7) + 1e-7))

    return max(least(risk, limit) for risk, limit in limits)
