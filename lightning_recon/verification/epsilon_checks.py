# SPDX-License-Identifier: Apache-2.0
"""Epsilon: of the claimed noise, of the measured noise, and what canaries prove of it."""

import math
from collections.abc import Iterator

from lightning_recon.privacy.gaussian import Gaussian
from lightning_recon.verification.check import TOLERANCE, TOO_FEW, Check, mean_p_value, not_run
from lightning_recon.verification.claims import Claims
from lightning_recon.verification.clipping_checks import displacement
from lightning_recon.verification.empirical_epsilon.clopper_pearson import (
    clopper_pearson_epsilon,
    clopper_pearson_p_value,
)
from lightning_recon.verification.empirical_epsilon.gaussian_dp import gaussian_dp_epsilon, gaussian_dp_p_value
from lightning_recon.verification.empirical_epsilon.one_run import one_run_epsilon, one_run_p_value
from lightning_recon.verification.empirical_epsilon.scores import FEWEST, CanaryScores
from lightning_recon.verification.probes import Canaries
from lightning_recon.verification.releases import Releases
from lightning_recon.verification.sensitivity_checks import displacement_over_noise

_MOST = 1e9  # noise multipliers that are accounted, and the inverse of the least
_ROUNDED = 1e-3  # relative: a claimed epsilon is often given with few digits


def epsilon_checks(releases: Releases, claims: Claims, canaries: Canaries) -> Iterator[Check]:
    """Accounted epsilon of all rounds, and lower bounds on that of one round."""
    yield accounted_check(claims)
    yield measured_check(releases, claims, canaries)
    yield from empirical_checks(releases, claims)


def accounted_check(claims: Claims) -> Check:
    """Whether the claimed noise multiplier gives the claimed epsilon."""
    rounds, delta = claims.privacy.rounds, claims.privacy.delta
    found = claims.epsilon_of(claims.privacy.noise_multiplier, rounds)
    what = f"for {rounds} round{'s' if rounds > 1 else ''}, delta {delta:g}, {claims.privacy.adjacency}"
    if claims.epsilon is None or found is None:
        return not_run("epsilon accounted", "none", f"claimed noise gives {_written(found)} {what}")
    wrong = found > claims.epsilon * (1 + _ROUNDED)
    cause = f"the claimed noise multiplier {claims.privacy.noise_multiplier:g} gives {_written(found)} {what}"
    return Check("epsilon accounted", f"{claims.epsilon:.4g}", _written(found), 0.0 if wrong else 1.0, cause)


def measured_check(releases: Releases, claims: Claims, canaries: Canaries) -> Check:
    """Epsilon of the noise and of the clip that were measured, by the accountant of the mechanism."""
    name, rounds = "epsilon of measured noise", claims.privacy.rounds
    claimed = claims.epsilon
    if claimed is None:
        claimed = claims.epsilon_of(claims.privacy.noise_multiplier, rounds)
    loud = displacement(releases.canaries["loud"], claims)
    if loud is None or claimed is None:
        return not_run(name, _written(claimed), TOO_FEW)
    inverse, error = displacement_over_noise(loud, releases, claims, canaries)
    shared = claims.privacy.noise_multiplier / claims.own_noise_multiplier  # of the sum, where clients share the noise
    multiplier = shared / inverse if inverse > 0 else math.inf
    found = claims.epsilon_of(min(multiplier, _MOST), rounds) if multiplier > 1 / _MOST else None
    cause = f"for {rounds} round{'s' if rounds > 1 else ''}: noise multiplier {multiplier:.4g} was measured"
    privacy = claims.privacy
    least = claims.mechanism.noise_multiplier_for(max(claimed, _ROUNDED), privacy.delta, rounds, privacy.adjacency)
    excess = inverse - shared / least
    p_value = 1.0 if excess <= 0 else mean_p_value(excess, 0.0, error, 4 * TOLERANCE * shared / least)
    return Check(name, f"at most {claimed:.4g}", _written(found), p_value, cause)


def empirical_checks(releases: Releases, claims: Claims) -> Iterator[Check]:
    """Lower bounds at 95 % on epsilon of one round under add/remove, each against the claim of one round."""
    names = {
        "Clopper-Pearson": "independent scores",
        "one run": "fair coins",
        "Gaussian DP": "Gaussian noise",
    }
    near, loud = releases.canaries["near"], releases.canaries["loud"]
    included, excluded = (
        [*one.tolist(), *other.tolist()]
        for one, other in zip((near.inside, near.outside), (loud.inside, loud.outside), strict=True)
    )
    delta = claims.privacy.delta
    claimed = claims.mechanism.epsilon(claims.own_noise_multiplier, 1, delta, "add_remove")
    if claims.epsilon is not None and claims.own_noise_multiplier == claims.privacy.noise_multiplier:
        claimed = min(claims.epsilon, math.inf if claimed is None else claimed)
    why = "too few canaries" if min(len(included), len(excluded)) < FEWEST else ""
    for name, assumed in names.items():
        line, said = f"epsilon empirical, {name}", f"at most {_written(claimed)} a round"
        skipped = why or ("the noise is not claimed to be Gaussian" if name == "Gaussian DP" else "")
        if claimed is None or why or (name == "Gaussian DP" and not isinstance(claims.mechanism, Gaussian)):
            yield not_run(line, said, skipped)
            continue
        scores = CanaryScores(included, excluded)  # type: ignore[arg-type]
        if name == "Clopper-Pearson":
            bound, p_value = clopper_pearson_epsilon(scores, delta), clopper_pearson_p_value(scores, claimed, delta)
        elif name == "one run":
            bound, p_value = one_run_epsilon(scores, delta), one_run_p_value(scores, claimed, delta)
        else:
            bound, p_value = gaussian_dp_epsilon(scores, delta), gaussian_dp_p_value(scores, claimed, delta)
        cause = f"canaries prove more than the claim; assumed: {assumed}"
        yield Check(line, said, f"at least {_written(bound)} (95 %, {assumed})", p_value, cause)


def _written(epsilon: float | None) -> str:
    return "no finite epsilon" if epsilon is None or math.isinf(epsilon) else f"{epsilon:.4g}"
