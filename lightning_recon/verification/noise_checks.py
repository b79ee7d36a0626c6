# SPDX-License-Identifier: Apache-2.0
"""Whether silent releases are the noise that is claimed: its size in every tensor, its mean and its distribution."""

from collections.abc import Iterator

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from lightning_recon.privacy.laplace import Laplace
from lightning_recon.verification.check import (
    TOLERANCE,
    Check,
    likely_cause,
    mean_p_value,
    not_run,
    std_p_value,
)
from lightning_recon.verification.claims import Claims
from lightning_recon.verification.releases import Releases

MOST = 100_000  # numbers of a tensor whose distribution is tested: more would find the rounding of float32
FEW = 50  # fewer numbers show nothing of a distribution
TAIL = 3.0  # standard deviations beyond which numbers are counted
_NOTHING = 1e-3  # of the claimed standard deviation, which is as good as none
_SAME = 1e-3  # relative spread of norms that are all the same
_PRECISE = 0.1  # relative standard error up to which a standard deviation decides


def noise_checks(releases: Releases, claims: Claims) -> list[Check]:
    """Size, mean and distribution of the noise."""
    return [*std_checks(releases, claims), mean_check(releases), distribution_check(releases, claims)]


def std_checks(releases: Releases, claims: Claims) -> Iterator[Check]:
    """The standard deviation of the noise in every tensor, and in all together."""
    clipped = clipped_afterwards(releases, claims)
    kurtosis = claims.mechanism.excess_kurtosis
    everything = torch.cat([rows.flatten() for rows in releases.distinct.values()])
    for name, rows in {"all tensors": everything, **releases.distinct}.items():
        measured, count = root_mean_square(rows), rows.numel()
        error = ((2 + kurtosis) / (4 * count)) ** 0.5
        ratio = measured / claims.noise_std
        still = len(rows) > 1 and torch.equal(rows, rows[:1].expand_as(rows))
        cause = "no noise at all" if still or ratio < _NOTHING else clipped or likely_cause(ratio, claims, "the noise")
        yield Check(
            f"noise_std {name}",
            f"{claims.noise_std:.4g}",
            f"{measured:.4g} ± {100 * error:.2g} %",
            std_p_value(measured, claims.noise_std, count, kurtosis),
            cause or f"{ratio:.4g} times what is claimed",
            "" if error < _PRECISE else "too few numbers: raise releases",
        )


def clipped_afterwards(releases: Releases, claims: Claims) -> str:
    """Whether every release has the norm C to which a clip of the noise itself would scale it; empty if not."""
    norms = releases.reach
    same = float(norms.std()) < _SAME * float(norms.mean())
    if same and abs(float(norms.mean()) / claims.max_grad_norm - 1) < _SAME:
        return "every release has norm C: the clip comes after the noise"
    return ""


def mean_check(releases: Releases) -> Check:
    """The mean of the noise in every tensor, in its standard deviations."""
    means, p_values = {}, [1.0]
    for name, rows in releases.distinct.items():
        if measured := float(rows.double().std()):
            means[name] = float(rows.double().mean()) / measured
            p_values.append(mean_p_value(means[name], 0.0, rows.numel() ** -0.5, TOLERANCE))
    if not means:
        return not_run("noise_mean", "0", "there is no noise")
    worst = max(means, key=lambda name: abs(means[name]) * releases.distinct[name].numel() ** 0.5)
    return Check(
        "noise_mean",
        "0",
        f"{means[worst]:+.2g} standard deviations at most, in {worst}",
        min(1.0, len(means) * min(p_values)),
        f"the noise in {worst} is not centred",
    )


def distribution_check(releases: Releases, claims: Claims) -> Check:
    """Whether the numbers, divided by their measured standard deviation, are distributed as the mechanism's noise.

    The Kolmogorov-Smirnov distance compares all of the distribution, and the number of values beyond three standard
    deviations its tails. Estimating the standard deviation from the same numbers makes both tests conservative.
    """
    mechanism = claims.mechanism
    claimed = stats.laplace(scale=0.5**0.5) if isinstance(mechanism, Laplace) else stats.norm()
    if mechanism.excess_kurtosis and not isinstance(mechanism, Laplace):
        return not_run("noise_distribution", mechanism.name, "the distribution of this mechanism is not known here")
    samples = {}
    for name, rows in releases.distinct.items():
        flat = rows.flatten()[:: max(1, rows.numel() // MOST)].double()
        if len(flat) >= FEW and (scale := root_mean_square(flat)):
            samples[name] = (flat / scale).numpy()
    if not samples:
        return not_run("noise_distribution", mechanism.name, "there is no noise, or too few numbers")
    p_values = {}
    for name, values in samples.items():
        beyond = int((np.abs(values) > TAIL).sum())
        tail = stats.binomtest(beyond, len(values), 2 * float(claimed.sf(TAIL))).pvalue
        p_values[name] = min(1.0, 2 * min(float(stats.kstest(values, claimed.cdf).pvalue), float(tail)))
    worst = min(p_values, key=lambda name: p_values[name])
    return Check(
        "noise_distribution",
        mechanism.name,
        f"closest to {_looks(samples[worst])} in {worst}",
        min(1.0, len(p_values) * p_values[worst]),
        _shape(samples[worst]),
    )


def root_mean_square(values: Tensor) -> float:
    """The standard deviation of numbers whose mean is 0."""
    return float(values.double().square().mean().sqrt())


def _looks(values: np.ndarray) -> str:
    """The distribution of variance 1 under which numbers are likeliest."""
    width = 3**0.5
    known = {
        "gaussian": stats.norm(),
        "laplace": stats.laplace(scale=0.5**0.5),
        "uniform": stats.uniform(-width, 2 * width),
    }
    return max(known, key=lambda name: float(known[name].logpdf(values).mean()))


def _shape(values: np.ndarray) -> str:
    """What is wrong with a distribution."""
    distinct = len(np.unique(values))
    if distinct < len(values) / 10:
        return f"the noise takes only {distinct} values: it is rounded, as in half precision"
    if np.abs(values).max() < TAIL:
        return "the tails of the noise are cut off"
    return f"the noise is not as claimed; it looks {_looks(values)}"
