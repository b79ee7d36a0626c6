# SPDX-License-Identifier: Apache-2.0
"""What a server gets out of rounds whose noise is correlated: as much as the noise's covariance allows."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_recon.attack.protocol import run_protocol
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data import ClientBatch
from lightning_recon.structure import Feedback, WaterFilling

ROUNDS = 12


def client_of(images: Tensor, z: float, bands: int) -> VictimClient:
    privacy = Privacy(2.0, z, "sample", rounds=ROUNDS, noise_bands=bands)
    client = VictimClient("convnet", 5, privacy=privacy, noise_seed=0)
    masks = torch.ones_like(images[:, :1], dtype=torch.bool)
    client.bind([ClientBatch(images, images, masks, torch.arange(2), ["a", "b"])])
    return client


def test_whitened_rounds_tell_as_much_as_independent_ones_of_the_same_guarantee(
    photographs: Callable[[int], Tensor],
) -> None:
    images, scores = photographs(32)[:2], []
    correlated = client_of(images, 0.15, ROUNDS)
    for client in (correlated, client_of(images, correlated.task.independent_multiplier, 1)):
        structure = WaterFilling()
        decoded = run_protocol(client, structure, structure.payload(client.task), 0, 0, None)
        assert decoded.mismatch.noise_multiplier is None
        errors = [min(float((image - one).square().mean()) for one in decoded.images) for image in images]
        scores.append(-10 * math.log10(sum(errors) / len(errors)))
    assert scores[0] == pytest.approx(scores[1], abs=0.5)


def test_feedback_averages_all_rounds_under_correlated_noise(photographs: Callable[[int], Tensor]) -> None:
    task = client_of(photographs(32)[:2], 1e-3, 3).task
    assert Feedback().rounds(task) == ROUNDS
    assert Feedback().rounds(replace(task, noise_bands=1)) == 1
