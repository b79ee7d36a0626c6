# SPDX-License-Identifier: Apache-2.0
"""How close lower bounds on epsilon come to the true one, for a step of Opacus, and how often verdicts are wrong."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import false_alarms
import numpy as np
import torch
from torch import nn

from lightning_recon.privacy.gaussian_accounting import noise_multiplier_for
from lightning_recon.verification.empirical_epsilon.lower_bounds import LowerBound, lower_bounds
from lightning_recon.verification.empirical_epsilon.scores import CanaryScores
from lightning_recon.verification.opacus_step import OpacusStep
from lightning_recon.verification.probes import BLANK, LAYERS, Canaries, ProbeModel, layer_name

EPSILONS, DELTA, CONFIDENCE = (2.0, 4.0, 8.0, 16.0), 1e-5, 0.95
CANARIES, CLASSES, SIDE = 1000, 2, 20
REPEATS = 200


def rows(root: Path) -> Iterator[dict[str, object]]:
    """The table: one row per epsilon, kind of excluded scores and bound; then those of `false_alarms`.

    Args:
        root: not used: the images of canaries are made.
    """
    for epsilon in EPSILONS:
        z = noise_multiplier_for(epsilon, DELTA, 1, "add_remove")
        alone, more = zip(*(scores_of(z, seed) for seed in range(REPEATS)), strict=True)
        for excluded, repeats, methods in (
            ("canaries", alone, ("clopper_pearson", "one_run", "gaussian_dp")),
            # A fair coin decides about canaries alone, so that one-run auditing does not apply.
            ("canaries and unused directions", more, ("clopper_pearson", "gaussian_dp")),
        ):
            found = [lower_bounds(scores, DELTA, epsilon, CONFIDENCE, methods) for scores in repeats]
            for method, bounds in zip(methods, zip(*found, strict=True), strict=True):
                print(f"epsilon {epsilon:g}, {excluded}: {method}", flush=True)
                yield {"bound": method, "excluded": excluded, "epsilon": epsilon, "z": round(z, 6)} | _summary(
                    epsilon, bounds
                )
    yield from false_alarms.rows()


def scores_of(noise_multiplier: float, seed: int) -> tuple[CanaryScores, CanaryScores]:
    """The canaries' scores in one release, in which a fair coin decided for each whether it was included.

    Args:
        noise_multiplier: of the client.
        seed: of coins and noise.

    Returns:
        The scores; and the same with directions that no canary uses, which hold nothing but noise.
    """
    torch.manual_seed(seed)
    canaries = Canaries(CANARIES, CLASSES, (3, SIDE, SIDE))
    included = torch.rand(CANARIES) < 0.5
    batch = canaries.batch(torch.where(included, torch.arange(CANARIES), BLANK))
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, CLASSES))
    gains = [canaries.gain(2.0)] + [0.0] * (LAYERS - 1)  # twice the clipping norm
    model = ProbeModel(network, CANARIES, CLASSES, gains)
    sent = OpacusStep(noise_multiplier=noise_multiplier)(model, batch)
    release = {name.removeprefix("_module."): tensor for name, tensor in sent.items()}
    scores = canaries.scores(release[layer_name(0)])
    unused = release[layer_name(1)].double().flatten().numpy()
    inside, outside = scores[included].numpy(), scores[~included].numpy()
    return CanaryScores(inside, outside), CanaryScores(inside, np.concatenate([outside, unused]))


def _summary(epsilon: float, bounds: Sequence[LowerBound]) -> dict[str, object]:
    found = [bound.epsilon for bound in bounds]
    return {
        "delta": DELTA,
        "canaries": CANARIES,
        "releases": 1,
        "repeats": len(found),
        "confidence": CONFIDENCE,
        "bound_mean": round(statistics.fmean(found), 4),
        "bound_std": round(statistics.stdev(found), 4),
        "bound_share": round(statistics.fmean(found) / epsilon, 4),
        "exceeded_share": statistics.fmean(one > epsilon for one in found),
        "refuted_share": statistics.fmean((bound.p_value or 0.0) <= 1 - CONFIDENCE for bound in bounds),
    }
