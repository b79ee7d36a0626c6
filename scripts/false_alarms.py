# SPDX-License-Identifier: Apache-2.0
"""How often `recon verify` refutes a claim of a correct client: rows of results/verify.csv."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from scipy.stats import binomtest
from torch import nn

from lightning_recon.api import verify
from lightning_recon.client import VictimClient
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.verification.check import Check
from lightning_recon.verification.claims import Claims
from lightning_recon.verification.client_under_test import ClientUnderTest
from lightning_recon.verification.opacus_step import OpacusStep
from lightning_recon.verification.simulated_client import SimulatedClient
from lightning_recon.verification.verdicts import decide

LIMITS = (0.001, 0.05)  # the default, and one at which the share of 200 runs can be measured
RUNS = 200
RELEASES, SAMPLES, CLASSES, SHAPE = 32, 16, 10, (3, 8, 8)
SAMPLE = Privacy(max_grad_norm=1.0, noise_multiplier=1.0, granularity="sample")
PRIVACY = (SAMPLE, replace(SAMPLE, granularity="update"))


def rows() -> Iterator[dict[str, object]]:
    """One row per kind of clip and limit on false alarms; the same runs are judged by both limits."""
    for privacy in PRIVACY:
        found = [checks_of(privacy, seed) for seed in range(RUNS)]
        for limit in LIMITS:
            refuted = sum(any(line.verdict == "refuted" for line in decide(checks, limit)) for checks in found)
            print(f"{privacy.granularity}, false_alarms {limit:g}: {refuted} of {RUNS} runs", flush=True)
            interval = binomtest(refuted, RUNS).proportion_ci(0.95)
            yield {
                "bound": "any claim",
                "z": privacy.noise_multiplier,
                "delta": privacy.delta,
                "releases": RELEASES,
                "repeats": RUNS,
                "refuted_share": refuted / RUNS,
                "granularity": privacy.granularity,
                "false_alarms": limit,
                "refuted_share_low": round(float(interval.low), 5),
                "refuted_share_high": round(float(interval.high), 5),
            }


def checks_of(privacy: Privacy, seed: int) -> list[Check]:
    """All tests of one verification of a correct client, which is a step of Opacus or the simulated client.

    Args:
        privacy: of the client, which is also what is claimed of it.
        seed: of noise, network and canaries.
    """
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, CLASSES))
    claims = Claims(privacy, SAMPLES)
    first, second = (correct_client(privacy, 2 * seed + number) for number in (0, 1))
    found = verify(
        first, network, claims, SHAPE, second_client=lambda: second, restart=False, releases=RELEASES, seed=seed
    )
    return [line.check for line in found.lines]


def correct_client(privacy: Privacy, noise_seed: int) -> ClientUnderTest:
    """A client that does what is claimed; Opacus draws its noise from torch's generator."""
    if privacy.granularity == "sample":
        return OpacusStep(0, privacy.max_grad_norm or 1.0, privacy.noise_multiplier)
    return SimulatedClient(VictimClient("convnet", CLASSES, privacy=privacy, noise_seed=noise_seed))
