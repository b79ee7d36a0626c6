# SPDX-License-Identifier: Apache-2.0
"""A client whose noise is correlated over rounds: the noise it adds, and what a server gets back by whitening."""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import toeplitz

from lightning_recon.client import LocalOptions, Privacy, VictimClient
from lightning_recon.data import ClientBatch
from lightning_recon.errors import UserError
from lightning_recon.exchange import ServerPayload, Task, factor_in_mean
from lightning_recon.privacy.correlated_noise import noise_coefficients

Payloads = Callable[..., ServerPayload]
Batches = Callable[[int], ClientBatch]
ROUNDS, BANDS = 6, 3


def client_of(network: str, batch: ClientBatch, z: float, rounds: int = ROUNDS, bands: int = BANDS) -> VictimClient:
    privacy = Privacy(2.0, z, "sample", rounds=rounds, noise_bands=bands)
    client = VictimClient(network, 5, privacy=privacy, noise_seed=0)
    client.bind([batch])
    return client


def test_the_noise_has_the_announced_covariance(
    networks: dict[str, str], a_batch: Batches, a_payload: Payloads
) -> None:
    quiet, noisy = (client_of(networks["linear"], a_batch(0), z) for z in (0.0, 0.1))
    clean = quiet.share(a_payload(), 0, 0, 0).gradient["structure.weight"]
    rounds = [noisy.share(a_payload(), 0, 0, number) for number in range(ROUNDS)]
    noise = torch.stack([(one.gradient["structure.weight"] - clean).flatten() / 0.2 for one in rounds]).double()
    column = np.zeros(ROUNDS)
    column[:BANDS] = noise_coefficients(BANDS)
    mixing = np.tril(toeplitz(column))
    measured = (noise @ noise.T / noise.shape[1]).numpy()
    np.testing.assert_allclose(measured, mixing @ mixing.T, atol=6 * math.sqrt(2 / noise.shape[1]))
    # The best linear estimate of what the rounds share has the variance that the task promises.
    task = noisy.task
    assert Task.from_record(asdict(task)) == task
    mean = sum(factor_in_mean(task, one, ROUNDS) * noise[one.round] for one in rounds) / ROUNDS
    assert float(mean.square().mean()) * 0.01 == pytest.approx(task.update_noise**2 / ROUNDS, rel=0.2)


def test_a_record_without_bands_means_independent_noise(
    networks: dict[str, str], a_batch: Batches, tmp_path: Path
) -> None:
    task = client_of(networks["linear"], a_batch(0), 0.1).task
    task.save(tmp_path)
    assert Task.load(tmp_path) == task
    record = asdict(task)
    record.pop("noise_bands")
    assert Task.from_record(record).noise_bands == 1
    with pytest.raises(ValueError, match="noise_bands is 3, which noise of laplace cannot have"):
        Task.from_record(asdict(task) | {"mechanism": "laplace"})


def test_local_steps_of_dp_sgd_are_refused(networks: dict[str, str], a_batch: Batches) -> None:
    client = VictimClient(
        networks["linear"], 5, privacy=Privacy(2.0, 0.1, "sample", noise_bands=2), local=LocalOptions(epochs=2)
    )
    with pytest.raises(UserError, match="noise_bands is not modelled for local steps of DP-SGD"):
        client.bind([a_batch(0)])
    with pytest.raises(UserError, match="leave it out where a target network is trained"):
        client.setup("fit")
