# SPDX-License-Identifier: Apache-2.0
"""Epsilon: of the claimed noise, of the measured noise, and what canaries prove of it."""

import math
from collections.abc import Iterator

import torch

from lightning_recon.plural import counted
from lightning_recon.privacy.gaussian import Gaussian
from lightning_recon.verification.check import TOLERANCE, TOO_FEW, Check, mean_p_value, not_run
from lightning_recon.verification.claims import Claims
from lightning_recon.verification.clipping_checks import displacement
from lightning_recon.verification.empirical_epsilon.lower_bounds import ASSUMPTIONS, Method, lower_bounds
from lightning_recon.verification.empirical_epsilon.scores import FEWEST, CanaryScores
from lightning_recon.verification.probes import Canaries
from lightning_recon.verification.releases import Releases
from lightning_recon.verification.sensitivity_checks import displacement_over_noise

_MOST = 1e9  # noise multipliers that are accounted, and the inverse of the least
_NONE = 1e-3  # of the claimed noise: what is no more is none
_SHARED = "releases share their noise, and the bound is for independent scores"
_ABOVE = "the bound is above the claim, but not beyond the limit on false alarms: raise releases"
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
    what = f"for {counted(rounds, 'round')}, delta {delta:g}, {claims.privacy.adjacency}"
    if claims.epsilon is None or found is None:
        why = "no epsilon is claimed" if claims.epsilon is None else "there is none to compare with"
        return not_run("epsilon accounted", "none", f"{why}; the claimed noise gives {_written(found)} {what}")
    wrong = found > claims.epsilon * (1 + _ROUNDED)
    cause = f"the claimed noise multiplier {claims.privacy.noise_multiplier:g} gives {_written(found)} {what}"
    return Check("epsilon accounted", f"{claims.epsilon:.4g}", _written(found), 0.0 if wrong else 1.0, cause)


def measured_check(releases: Releases, claims: Claims, canaries: Canaries) -> Check:
    """Epsilon of the noise and of the clip that were measured, by the accountant of the mechanism."""
    name, rounds = "epsilon of measured noise", claims.privacy.rounds
    claimed = claims.epsilon
    if claimed is None:
        claimed = claims.epsilon_of(claims.privacy.noise_multiplier, rounds)
    far = displacement(releases.canaries["far"], claims)
    if far is None or claimed is None:
        return not_run(name, _written(claimed), TOO_FEW)
    inverse, error = displacement_over_noise(far, releases, claims, canaries)
    shared = claims.privacy.noise_multiplier / claims.own_noise_multiplier  # of the sum, where clients share the noise
    multiplier = shared / inverse if inverse > 0 else math.inf
    found = claims.epsilon_of(min(multiplier, _MOST), rounds) if multiplier > 1 / _MOST else None
    cause = f"for {counted(rounds, 'round')}: noise multiplier {multiplier:.4g} was measured"
    privacy = claims.privacy
    least = claims.mechanism.noise_multiplier_for(max(claimed, _ROUNDED), privacy.delta, rounds, privacy.adjacency)
    excess = inverse - shared / least
    p_value = 1.0 if excess <= 0 else mean_p_value(excess, 0.0, error, 4 * TOLERANCE * shared / least)
    return Check(name, f"at most {claimed:.4g}", _written(found), p_value, cause)


def empirical_checks(releases: Releases, claims: Claims) -> Iterator[Check]:
    """Lower bounds on epsilon of one round under add/remove, which hold together at 95 %, each against the claim."""
    methods: list[Method] = [method for method in ASSUMPTIONS if method != "gaussian_dp" or _is_gaussian(claims)]
    probes = [releases.canaries[name] for name in ("near", "far")]
    inside, outside = (torch.cat([getattr(one, kind) for one in probes]).numpy() for kind in ("inside", "outside"))
    delta = claims.privacy.delta
    claimed = claims.mechanism.epsilon(claims.own_noise_multiplier, 1, delta, "add_remove")
    if claims.epsilon is not None and claimed is not None and claims.noise_share == "local":
        claimed = min(claims.epsilon, claimed)
    said = f"at most {_written(claimed)} a round"
    few = min(len(inside), len(outside)) < FEWEST
    # Where releases share their noise, so do scores, and only the bound that lets scores depend on each other holds.
    if _share_noise(releases, claims):
        methods = [method for method in methods if method == "one_run"]
    found = [] if few else lower_bounds(CanaryScores(inside, outside), delta, claimed, methods=methods)
    for method in ASSUMPTIONS:
        if few or method not in methods:
            other = method == "gaussian_dp" and not _is_gaussian(claims)
            why = "the noise is not claimed to be Gaussian" if other else TOO_FEW if few else _SHARED
            yield not_run(f"epsilon empirical {method}", said, why)
    for bound in found:
        measured = f"at least {_written(bound.epsilon)} (95 %), if {bound.assumptions}"
        cause = f"canaries prove more than the claim, if {bound.assumptions}"
        above = claimed is not None and bound.epsilon > claimed
        yield Check(f"epsilon empirical {bound.method}", said, measured, bound.p_value, cause, _ABOVE if above else "")


def _share_noise(releases: Releases, claims: Claims) -> bool:
    repeat = len(next(iter(releases.distinct.values()))) < len(next(iter(releases.noise.values())))
    return repeat and any(float(rows.abs().max()) > _NONE * claims.noise_std for rows in releases.noise.values())


def _is_gaussian(claims: Claims) -> bool:
    return isinstance(claims.mechanism, Gaussian)


def _written(epsilon: float | None) -> str:
    return "no finite epsilon" if epsilon is None or math.isinf(epsilon) else f"{epsilon:.4g}"
