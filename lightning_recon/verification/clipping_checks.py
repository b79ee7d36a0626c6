# SPDX-License-Identifier: Apache-2.0
"""Whether the clip holds: how far canaries of known gradient norm move a release, and what is clipped together."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from lightning_recon.verification.canary_scores import FAR, NEAR, CanaryReach
from lightning_recon.verification.check import (
    FEW_SCORES,
    TOLERANCE,
    TOO_FEW,
    Check,
    likely_cause,
    mean_p_value,
    not_run,
    std_p_value,
)
from lightning_recon.verification.claims import Claims
from lightning_recon.verification.probes import LAYERS, Canaries
from lightning_recon.verification.releases import Releases

_DECISIVE = 3.0  # standard errors in the claimed displacement, at least, that show whether the clip holds
_CLOSE = 0.1  # relative distance from a displacement that another clip would give


@dataclass(frozen=True)
class Displacement:
    """How far the canaries in a batch moved the release, each in its own direction, on average.

    Args:
        mean: in the unit of the clipped sum or update.
        error: its standard error.
        std: standard deviation of the scores of the canaries in the batch.
        count: how many scores there are.
    """

    mean: float
    error: float
    std: float
    count: int


def displacement(reach: CanaryReach, claims: Claims) -> Displacement | None:
    """The displacement by the canaries in the batch; None if chance put fewer than two in.

    Its error is that of the scores or of the claimed noise, whichever is larger: a few scores may lie close by chance.
    """
    count = len(reach.inside)
    if count < 2:
        return None
    std = float(reach.inside.std())
    return Displacement(float(reach.inside.mean()), max(std, claims.noise_std) / count**0.5, std, count)


def expected(claims: Claims, canaries: Canaries, tensors: int, layers: int = 1) -> float:
    """How far a canary beyond the clip moves the release in its direction, if the clip is the claimed one.

    Args:
        claims: what is claimed.
        canaries: geometry of the canaries.
        tensors: parameter tensors of the model.
        layers: in how many tensors the canary has its gradient.
    """
    clip = claims.privacy.clip
    # Of a vector of Euclidean norm 1 in one tensor, and of the same spread over all layers.
    one = float(torch.linalg.vector_norm(canaries.profile, clip.order))
    if claims.privacy.per_layer:
        return clip.layer_bound(claims.max_grad_norm, tensors) * math.sqrt(layers) / one
    return claims.max_grad_norm / (one * (math.sqrt(layers) if clip.order == 1 else 1.0))


def clipping_checks(releases: Releases, claims: Claims, canaries: Canaries) -> Iterator[Check]:
    """The clip near its bound and far beyond it, what is clipped as one, and the noise on values that are clipped."""
    near, far = (displacement(releases.canaries[name], claims) for name in ("near", "far"))
    claimed = expected(claims, canaries, releases.tensors)
    yield _reach_check("clip near", near, claimed, releases, claims, f"a canary of {NEAR:g} times the norm C")
    yield _reach_check("clip far", far, claimed, releases, claims, f"a canary of {NEAR * FAR:g} times the norm C")
    yield unit_check(far, claimed, releases.canaries["far"], claims)
    yield layers_check(far, claims, canaries, releases)
    yield large_values_check(far, claims)


def _reach_check(
    name: str, found: Displacement | None, claimed: float, releases: Releases, claims: Claims, what: str
) -> Check:
    said = f"{what} moves the release by {claimed:.4g}"
    if found is None:
        return not_run(name, said, TOO_FEW)
    if _below_an_update_clip(found, claimed, claims):
        doubt = "the local training may not reach the clip: its steps are too small, or normalized as Adam's"
        return Check(name, said, f"{found.mean:.4g}", 1.0, doubt=doubt)
    return Check(
        name,
        said,
        f"{found.mean:.4g} ± {found.error:.2g}",
        mean_p_value(found.mean, claimed, found.error, TOLERANCE * claimed),
        clip_cause(found.mean / claimed, found.error / claimed, releases, claims),
        "" if found.error * _DECISIVE < claimed else FEW_SCORES,
    )


def _below_an_update_clip(found: Displacement, claimed: float, claims: Claims) -> bool:
    """Whether a change of weights is smaller than the clip, so that it shows no clip: Adam's steps, for example."""
    trained = claims.released == "state_dict" and claims.privacy.granularity == "update"
    return trained and found.mean + 3 * found.error < claimed


def clip_cause(ratio: float, error: float, releases: Releases, claims: Claims) -> str:
    """Why canaries move the release by a factor of what they may, which is measured with a standard error."""
    near, far = releases.canaries["near"], releases.canaries["far"]
    if len(near.inside) and len(far.inside) and float(far.inside.mean()) > 10 * abs(float(near.inside.mean())):
        everything = abs(float(near.inside.mean()) / (float(far.inside.mean()) / FAR) - 1) < max(_CLOSE, 3 * error)
        return "nothing is clipped" if everything else "large values pass the clip"
    batch = claims.batch_size
    usual = [(1 / batch, f"the release is a mean over {batch} samples, not a sum")] if batch > 1 else []
    if claims.privacy.granularity == "update" and batch > 1:
        usual.append((float(batch), "each sample is clipped, and not their mean"))
    if claims.privacy.granularity == "sample" and far.others > 1:
        usual.append((far.others**-0.5, "the update is clipped as a whole, not each sample"))
    return likely_cause(ratio, claims, "the clip", error, usual) or f"{ratio:.4g} times as far as claimed"


def unit_check(found: Displacement | None, claimed: float, reach: CanaryReach, claims: Claims) -> Check:
    """Whether each sample or the whole update is clipped, whichever explains better how far a canary reaches."""
    name, said = "clip unit", {"sample": "each sample", "update": "the update"}[claims.privacy.granularity]
    if found is None:
        return not_run(name, said, TOO_FEW)
    if claims.privacy.granularity == "sample":
        other, alternative = claimed / reach.others**0.5, "the update"
    else:
        other, alternative = claimed * claims.batch_size, "each sample"
    ratio = abs(found.mean - claimed) / max(abs(found.mean - other), 1e-12)
    wrong = ratio > 1 and abs(found.mean - other) < max(_DECISIVE * found.error, _CLOSE * other)
    looks = alternative if wrong else said if abs(found.mean - claimed) < abs(found.mean - other) else "neither"
    p_value = mean_p_value(found.mean, claimed, found.error, TOLERANCE * claimed) if wrong else 1.0
    doubt = "" if abs(claimed - other) > 2 * _DECISIVE * found.error and looks != "neither" else FEW_SCORES
    doubt = "a batch of one sample is both" if claims.batch_size == 1 else doubt
    return Check(name, said, looks, p_value, f"{alternative} is clipped", doubt)


def layers_check(one: Displacement | None, claims: Claims, canaries: Canaries, releases: Releases) -> Check:
    """Whether tensors are clipped together: gradients in two of them reach as far as in one, or further."""
    words: Mapping[bool, str] = {True: "each tensor alone", False: "all tensors together"}
    said, both = words[claims.privacy.per_layer], displacement(releases.canaries["both layers"], claims)
    if one is None or both is None or one.mean <= _DECISIVE * one.error:
        return not_run("clip layers", said, FEW_SCORES)
    tensors = releases.tensors
    claimed = expected(claims, canaries, tensors, LAYERS) / expected(claims, canaries, tensors)
    # Under the L1 norm the two tensors share the bound, and each gets half of it.
    apart = LAYERS**0.5
    together = 1.0 if claims.privacy.clip.order == 2 else 1 / apart
    ratio = both.mean / one.mean
    error = math.hypot(both.error, ratio * one.error) / one.mean
    # Both means are normal, and so is their difference; their ratio is not.
    due = claimed * one.mean
    p_value = mean_p_value(both.mean, due, math.hypot(both.error, claimed * one.error), TOLERANCE * due)
    other = together if claims.privacy.per_layer else apart
    looks = abs(ratio - apart) < abs(ratio - together)
    return Check(
        "clip layers",
        said,
        f"{words[looks]} ({ratio:.3g} ± {error:.2g} times as far in two tensors)",
        p_value,
        f"the clip is on {words[looks]}",
        "" if abs(claimed - other) > _DECISIVE * error else FEW_SCORES,
    )


def large_values_check(found: Displacement | None, claims: Claims) -> Check:
    """Whether values that are clipped carry the noise too."""
    name, said = "noise on large values", f"{claims.noise_std:.4g}"
    if found is None:
        return not_run(name, said, TOO_FEW)
    # A score adds up the noise of several numbers, so that its distribution is closer to normal than theirs.
    p_value = std_p_value(found.std, claims.noise_std, found.count - 1, claims.mechanism.excess_kurtosis)
    cause = (
        "there is no noise where values are clipped"
        if found.std < 1e-3 * claims.noise_std
        else "the noise is different where values are clipped"
    )
    return Check(name, said, f"{found.std:.4g} ± {100 * (2 * (found.count - 1)) ** -0.5:.2g} %", p_value, cause)
