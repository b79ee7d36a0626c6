# SPDX-License-Identifier: Apache-2.0
"""What a release is of the gradients, a sum or a mean, and the noise beside how far a canary really moves it."""

import math
from collections.abc import Iterator

import torch

from lightning_recon.verification.check import (
    FEW_SCORES,
    TOLERANCE,
    TOO_FEW,
    Check,
    likely_cause,
    mean_p_value,
    not_run,
)
from lightning_recon.verification.claims import Claims
from lightning_recon.verification.clipping_checks import Displacement, displacement, expected
from lightning_recon.verification.noise_checks import root_mean_square
from lightning_recon.verification.probes import Canaries
from lightning_recon.verification.releases import Releases

_BEYOND_CHANCE = 4.0  # standard errors
_DECISIVE = 0.3  # relative standard error up to which the noise multiplier decides


def sensitivity_checks(releases: Releases, claims: Claims, canaries: Canaries) -> Iterator[Check]:
    """The factor of the release, and the noise multiplier that was measured."""
    yield factor_check(releases, claims)
    far = displacement(releases.canaries["far"], claims)
    yield multiplier_check(far, releases, claims, canaries)


def factor_check(releases: Releases, claims: Claims) -> Check:
    """The factor between a small gradient, which is not clipped, and its part of the release."""
    per_sample = claims.privacy.granularity == "sample"
    of = f"the {claims.loss_reduction} over {claims.batch_size} samples" if per_sample else "the mean gradient"
    said, name = f"{of}: factor 1", "sensitivity factor"
    if not per_sample and claims.released == "state_dict":
        return not_run(name, said, "the norm of a change of weights before the clip is not known")
    reach = releases.canaries["below"]
    found, claimed = displacement(reach, claims), reach.norm * claims.max_grad_norm
    if claims.privacy.per_layer or claims.privacy.clip.order == 1:
        return not_run(name, said, "a gradient in one tensor that no clip reaches is too small to be measured")
    if found is None:
        return not_run(name, said, TOO_FEW)
    ratio, error = found.mean / claimed, found.error / claimed
    batch = claims.batch_size if per_sample else 1
    mixed = [(1 / batch, "the release is a mean, not a sum"), (float(batch), "the release is a sum, not a mean")]
    cause = likely_cause(ratio, claims, "the release", error, mixed if batch > 1 else [])
    cause = cause or f"the release has {ratio:.4g} times the claimed gradient"
    p_value = mean_p_value(ratio, 1.0, error, TOLERANCE)
    return Check(name, said, f"{ratio:.4g} ± {error:.2g}", p_value, cause, "" if error < _DECISIVE else FEW_SCORES)


def displacement_over_noise(
    far: Displacement, releases: Releases, claims: Claims, canaries: Canaries
) -> tuple[float, float]:
    """How far a canary moves the release over the scale of the noise, the inverse of z, and its standard error.

    The noise is that of all tensors together, or of one whose noise is weaker beyond chance.
    """
    weakest = root_mean_square(torch.cat([rows.flatten() for rows in releases.distinct.values()]))
    for rows in releases.distinct.values():
        error = ((2 + claims.mechanism.excess_kurtosis) / (4 * rows.numel())) ** 0.5
        weakest = min(weakest, root_mean_square(rows) * (1 + _BEYOND_CHANCE * error))
    if weakest == 0:
        return math.inf, 0.0
    unit = claims.max_grad_norm / expected(claims, canaries, releases.tensors)
    scale = weakest / claims.mechanism.noise_std
    return far.mean * unit / scale, far.error * unit / scale


def multiplier_check(far: Displacement | None, releases: Releases, claims: Claims, canaries: Canaries) -> Check:
    """The noise, divided by how far a sample or an update moves the release: the number that epsilon follows from.

    It does not depend on the unit of the release. A client whose noise and clip are off by the same factor passes.
    """
    name, claimed = "noise_multiplier", claims.own_noise_multiplier
    if far is None:
        return not_run(name, f"{claimed:.4g}", TOO_FEW)
    inverse, error = displacement_over_noise(far, releases, claims, canaries)
    if inverse <= error:
        return not_run(name, f"{claimed:.4g}", FEW_SCORES)
    p_value = mean_p_value(inverse, 1 / claimed, error, 4 * TOLERANCE / claimed)
    ratio = 1 / (inverse * claimed)
    cause = likely_cause(ratio, claims, "noise over sensitivity", ratio * error / inverse if error else 0.0)
    measured = f"{1 / inverse:.4g} ± {error / inverse**2 if error else 0:.2g}"
    doubt = "" if error * claimed < _DECISIVE else FEW_SCORES
    return Check(name, f"{claimed:.4g}", measured, p_value, cause or f"{ratio:.4g} times what is claimed", doubt)
