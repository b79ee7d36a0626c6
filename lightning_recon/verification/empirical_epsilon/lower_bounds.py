# SPDX-License-Identifier: Apache-2.0
"""The three lower bounds on epsilon side by side, each with what it assumes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_recon.verification.empirical_epsilon.clopper_pearson import (
    clopper_pearson_epsilon,
    clopper_pearson_p_value,
)
from lightning_recon.verification.empirical_epsilon.gaussian_dp import gaussian_dp_epsilon, gaussian_dp_p_value
from lightning_recon.verification.empirical_epsilon.one_run import one_run_epsilon, one_run_p_value
from lightning_recon.verification.empirical_epsilon.scores import CanaryScores

Method = Literal["clopper_pearson", "one_run", "gaussian_dp"]

ASSUMPTIONS: dict[Method, str] = {
    "clopper_pearson": "scores of different canaries are independent; any noise",
    "one_run": "a fair coin decided for each canary whether it was included; any noise",
    "gaussian_dp": "Gaussian noise, independent and equal for all canaries",
}

_BOUNDS: dict[Method, tuple[Callable[[CanaryScores, float, float], float], Callable[..., float]]] = {
    "clopper_pearson": (clopper_pearson_epsilon, clopper_pearson_p_value),
    "one_run": (one_run_epsilon, one_run_p_value),
    "gaussian_dp": (gaussian_dp_epsilon, gaussian_dp_p_value),
}


@dataclass(frozen=True)
class LowerBound:
    """A lower bound on epsilon that holds with some confidence.

    Args:
        method: how it was computed.
        epsilon: the bound, >= 0; infinite where nothing finite explains the scores.
        p_value: probability, if the claimed epsilon holds, of scores that speak against it as much; None without claim.
        assumptions: what must hold for the bound to hold.
    """

    method: Method
    epsilon: float
    p_value: float | None
    assumptions: str


def lower_bounds(
    scores: CanaryScores,
    delta: float,
    claimed: float | None = None,
    confidence: float = 0.95,
    methods: Sequence[Method] = tuple(ASSUMPTIONS),
) -> list[LowerBound]:
    """Lower bounds on the epsilon of the releases that the scores are from.

    Args:
        scores: of the canaries, each of which was included if its fair coin said so.
        delta: privacy parameter, in (0, 1).
        claimed: claimed epsilon of the same releases, or None.
        confidence: probability, over the releases, that all these bounds hold together, so that the greatest of them
            does; in (0, 1).
        methods: whose assumptions hold; at least one.

    Returns:
        One bound for each method.
    """
    each = 1 - (1 - confidence) / len(methods)
    found = []
    for method in methods:
        epsilon, p_value = _BOUNDS[method]
        against = None if claimed is None else p_value(scores, claimed, delta)
        found.append(LowerBound(method, epsilon(scores, delta, each), against, ASSUMPTIONS[method]))
    return found
