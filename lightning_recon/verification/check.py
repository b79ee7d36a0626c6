# SPDX-License-Identifier: Apache-2.0
"""One line of the verification before its verdict, and the statistics that several lines share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import chi2, norm, t
from torch import Tensor

from lightning_recon.verification.claims import Claims

FEW_SCORES = "the noise hides how far canaries move the release: raise releases"
TOO_FEW = "too few canaries were in a batch: raise releases"
TOLERANCE = 0.005  # relative difference from a claim that is none: rounding of float32, truncated tails
_CAUSE = 0.04  # relative difference from a known factor within which it is named as the cause


@dataclass(frozen=True)
class Check:
    """What one test has found.

    Args:
        name: of the test, for machines: "noise_std network.weight".
        claimed: what is claimed, for readers.
        measured: what was measured.
        p_value: probability, if the claim holds, of a measurement so far from it, corrected for the number of
            comparisons within the test; 0 or 1 where nothing is left to chance; None: the test was not run.
        remark: the likely cause of a refuted claim, or why the test was not run.
        doubt: why the usual ways to break the claim would not have been found; empty if they would.
    """

    name: str
    claimed: str
    measured: str
    p_value: float | None
    remark: str = ""
    doubt: str = ""


def not_run(name: str, claimed: str, why: str) -> Check:
    """A test that was not run."""
    return Check(name, claimed, "–", None, why)


def std_p_value(measured: float, claimed: float, count: float, excess_kurtosis: float) -> float:
    """P-value of a standard deviation, two-sided, beyond `TOLERANCE`.

    Args:
        measured: the standard deviation of `count` numbers.
        claimed: that of the noise.
        count: degrees of freedom.
        excess_kurtosis: of the noise; a variance of heavy tails scatters like one of fewer numbers.

    Source: a sum of squares of normal numbers has a chi-square distribution.
    """
    degrees = count / (1 + excess_kurtosis / 2)
    below, above = (degrees * (measured / (claimed * (1 + side * TOLERANCE))) ** 2 for side in (-1, 1))
    return min(1.0, 2 * min(float(chi2.cdf(below, degrees)), float(chi2.sf(above, degrees))))


def mean_p_value(measured: float, claimed: float, error: float, slack: float) -> float:
    """P-value of a normal measurement with a standard error, two-sided, beyond a difference that is none."""
    excess = max(0.0, abs(measured - claimed) - slack)
    return 1.0 if excess == 0 else float(2 * norm.sf(excess / error)) if error > 0 else 0.0


def correlation_p_value(correlation: Tensor, count: int) -> Tensor:
    """P-values of cosines between independent vectors of normal numbers, two-sided, element by element.

    Args:
        correlation: inner products divided by both norms.
        count: numbers in each vector, at least 2.

    Source: the cosine of an angle to a uniformly random direction is distributed like Student's t, transformed.
    """
    cosine = correlation.double().clamp(-1, 1).numpy()
    with np.errstate(divide="ignore"):
        statistic = np.abs(cosine) * np.sqrt((count - 1) / (1 - cosine**2))
    return torch.from_numpy(np.asarray(2 * t.sf(statistic, count - 1)))


def likely_cause(
    ratio: float, claims: Claims, what: str, error: float = 0.0, more: Sequence[tuple[float, str]] = ()
) -> str:
    """The likely cause of a quantity that is wrong by a factor; empty if no usual mistake explains it.

    Args:
        ratio: measured over claimed.
        claims: what is claimed.
        what: the quantity.
        error: standard error of the ratio.
        more: further causes, by the ratio that each of them gives; of equal ratios these are named.
    """
    batch, clients, rounds = claims.batch_size, claims.aggregated, claims.privacy.rounds
    causes = list(more)
    for number, of in ((batch, "the batch size"), (clients, "the number of clients"), (rounds, "the number of rounds")):
        if number > 1:
            causes += [
                (1 / number, f"{what} is divided by {of}, {number}"),
                (number**-0.5, f"{what} is divided by the root of {of}, {number}"),
                (number, f"{what} is multiplied by {of}, {number}"),
            ]
    causes += [
        (math.sqrt(2), f"{what} is that of Laplace noise of the claimed scale, or of two noises"),
        (2.0, f"{what} is twice as large: sensitivity 2C, of replacing a record"),
        (0.5, f"{what} is half as large"),
    ]
    near = [one for one in causes if abs(ratio - one[0]) < max(_CAUSE * one[0], 2 * error)]
    return min(near, key=lambda one: abs(ratio - one[0]))[1] if near else ""
