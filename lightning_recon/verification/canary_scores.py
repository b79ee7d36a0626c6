# SPDX-License-Identifier: Apache-2.0
"""How far canaries of known gradient norm move the releases of a client."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_recon.verification.client_under_test import ClientUnderTest
from lightning_recon.verification.probe_series import Probes
from lightning_recon.verification.probes import LAYERS, layer_name
from lightning_recon.verification.replies import reply_of

FAR = 1000.0  # of a far canary's norm to that of a near one
NEAR = 2.0  # norm of a canary's gradient in clipping norms, just beyond the clip
BELOW = 0.5  # the same, below the clip


@dataclass(frozen=True)
class CanaryReach:
    """How far releases reach in the direction of each canary of one kind of probe.

    Args:
        norm: norm of the canaries' gradients, in clipping norms, where the client takes the gradient as it is.
        inside: scores of the canaries that were in the batch, float64.
        outside: scores of those that were not.
        others: how many canaries each of those inside was together with in a batch, itself included, on average.
    """

    norm: float
    inside: Tensor
    outside: Tensor
    others: float


def canary_scores(client: ClientUnderTest, probes: Probes) -> dict[str, CanaryReach]:
    """The scores of all canaries, by the name of the probe."""
    half, found = max(2, probes.releases // 2), {}
    plan = {"near": (NEAR, 1), "far": (NEAR * FAR, 1), "below": (BELOW, 1), "both layers": (NEAR * FAR, LAYERS)}
    for place, (name, (norm, layers)) in enumerate(plan.items()):
        inside, outside, others = [], [], []
        for number in range(half):
            numbers, present = probes.chosen(place * half + number)
            probe = probes.with_canaries(norm, numbers, layers)
            update = reply_of(client, probe, probes.claims).update
            score = sum(probes.canaries.scores(update[layer_name(layer)]) for layer in range(layers)) / layers**0.5
            assert isinstance(score, Tensor)
            asked = torch.ones_like(present)
            if probes.claims.privacy.granularity == "update":
                asked = torch.arange(len(present)) == (place * half + number) % len(present)
            inside.append(score[present & asked])
            outside.append(score[~present & asked])
            others.append(int(present.sum()))
        found[name] = CanaryReach(norm, torch.cat(inside), torch.cat(outside), max(1.0, sum(others) / len(others)))
    return found
