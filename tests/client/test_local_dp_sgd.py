# SPDX-License-Identifier: Apache-2.0
"""DP-SGD in every local step: against Opacus, the noise of the change of the weights, and its accounting."""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recon.callbacks.protection import privacy_of
from lightning_recon.client import LocalOptions, Privacy, VictimClient
from lightning_recon.client.local_training import LocalRound, randomness_of
from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.client.update import clipped_update
from lightning_recon.data import ClientBatch
from lightning_recon.errors import UserError
from lightning_recon.exchange import ServerPayload
from lightning_recon.privacy.gaussian import Gaussian

IMAGES = torch.rand(10, 3, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(10) % 5
OPTIMIZERS = {
    "momentum": partial(torch.optim.SGD, lr=0.5, momentum=0.9, weight_decay=0.01),
    "adam": partial(torch.optim.Adam, lr=0.01),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("accumulate", "batch_size", "count"), [(1, 4, 10), (2, 2, 8)])
def test_without_noise_the_change_is_that_of_opacus(name: str, accumulate: int, batch_size: int, count: int) -> None:
    """With a smaller last mini-batch, and with several mini-batches for each step, as Opacus accumulates them."""
    model = network()
    options = LocalOptions(
        2, batch_size=batch_size, accumulate_grad_batches=accumulate, optimizer=OPTIMIZERS[name], update="delta"
    )
    training = LocalRound(options.announced(count), options.new_optimizer, randomness_of(NoiseSource(0), 0, 0, 0))
    found = clipped_update(model, IMAGES[:count], LABELS[:count], Privacy(0.5, 0.0, "sample"), 3, training)
    assert found.has_noise

    own = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, optimizer, loader = PrivacyEngine().make_private(
            module=own,
            optimizer=OPTIMIZERS[name](own.parameters()),
            data_loader=DataLoader(TensorDataset(IMAGES[:count], LABELS[:count]), batch_size=batch_size),
            noise_multiplier=0.0,
            max_grad_norm=0.5,
            poisson_sampling=False,
        )
        for _ in range(2):
            for index, (images, labels) in enumerate(loader, start=1):
                torch.autograd.backward(F.cross_entropy(module(images), labels))
                if index % accumulate == 0:
                    optimizer.step()
                    optimizer.zero_grad()
    for (parameter, before), after in zip(model.named_parameters(), own.parameters(), strict=True):
        assert torch.allclose(found.gradient[parameter], before.detach() - after.detach(), rtol=0, atol=1e-6)
    assert max(float(one.abs().max()) for one in found.gradient.values()) > 1e-2


def client_of(batch: ClientBatch, **settings: Any) -> VictimClient:  # noqa: ANN401 - of the client
    client = VictimClient("tests.client.conftest.Linear", 5, **{"noise_seed": 0, **settings})
    client.bind([batch])
    return client


def test_the_noise_of_all_steps_is_in_the_change(a_batch: Callable[..., ClientBatch]) -> None:
    rate, z, clip, epochs, size = 0.25, 3.0, 0.1, 2, 1
    local = LocalOptions(epochs, batch_size=size, optimizer=partial(torch.optim.SGD, lr=rate))
    client = client_of(a_batch(0), privacy=Privacy(clip, z, "sample"), local=local)
    sent = [client.share(ServerPayload(), 0, draw, 0).gradient["network.linear.weight"] for draw in (0, 1)]
    std = rate * z * clip / size * math.sqrt(local.announced(3).steps(3))
    for one in (*sent, (sent[0] - sent[1]) / math.sqrt(2)):
        # What the images contribute is at most a thirtieth of it, and the same in both.
        assert float(one.std()) == pytest.approx(std, rel=0.05)
    correlation = torch.corrcoef(torch.stack([one.flatten() for one in sent]))[0, 1]
    assert abs(float(correlation)) < 0.06
    assert torch.equal(client.share(ServerPayload(), 0, 0, 0).gradient["network.linear.weight"], sent[0])


def test_momentum_makes_noise_of_early_steps_count_more(a_batch: Callable[..., ClientBatch]) -> None:
    optimizer = partial(torch.optim.SGD, lr=0.5, momentum=0.5)
    local = LocalOptions(optimizer=optimizer, batch_size=1)
    client = client_of(a_batch(0), privacy=Privacy(1.0, 100.0, "sample"), local=local)
    sent = client.share(ServerPayload(), 0, 0, 0).gradient["network.linear.weight"]
    weights = [1 + 0.5 + 0.25, 1 + 0.5, 1.0]
    assert float(sent.std()) == pytest.approx(0.5 * 100.0 * math.hypot(*weights), rel=0.05)


def test_steps_have_noise_of_their_own() -> None:
    source = NoiseSource(0)
    first, second = (randomness_of(source, 0, 0, 0).noise(step)("a").random(1000) for step in (0, 1))
    single = source.generators(0, 0, 0)("a").random(1000)
    for one, other in ((first, second), (first, single), (second, single)):
        assert abs(float(torch.corrcoef(torch.tensor([one.tolist(), other.tolist()]))[0, 1])) < 0.15


def test_another_noise_multiplier_gives_another_change(a_batch: Callable[..., ClientBatch]) -> None:
    """Although the update before the noise is kept for the next draw, in which this noise is already."""
    local = LocalOptions(2)
    client = client_of(a_batch(0), privacy=Privacy(1.0, 1.0, "sample"), local=local)
    noisy, clean = (one.share(ServerPayload(), 0, 0, 0).gradient for one in (client, client.under_noise(0.0)))
    assert not torch.equal(noisy["network.linear.weight"], clean["network.linear.weight"])
    preview = client.preview(ServerPayload(), 0)
    assert (len(preview.norms), preview.noise_std) == (3, 1.0)


def test_all_epochs_and_rounds_compose(a_batch: Callable[..., ClientBatch]) -> None:
    z, delta = 2.0, 1e-5

    def epsilon(epochs: int, granularity: str = "sample", **changes: Any) -> float:  # noqa: ANN401 - of the local training
        privacy = Privacy(1.0, z, granularity, rounds=3, delta=delta)  # type: ignore[arg-type]
        client = client_of(a_batch(0), privacy=privacy, local=replace(LocalOptions(epochs, batch_size=1), **changes))
        record = privacy_of(client)
        assert record["rounds"] == 3
        found: Any = record["epsilon_accounted"]
        return float(found)

    exact = [Gaussian().epsilon(z, 3 * epochs, delta, "add_remove") for epochs in (1, 2, 5)]
    assert [epsilon(epochs) for epochs in (1, 2, 5)] == exact
    assert sorted(exact, key=float) == exact  # type: ignore[arg-type]
    # An image is in one mini-batch of an epoch, however many there are.
    assert epsilon(2, batch_size=3) == epsilon(2, batch_size=3, accumulate_grad_batches=1, shuffle=True) == exact[1]
    # One clip of the whole change is one release, whatever the client did.
    assert epsilon(5, "update") == exact[0]


def test_batch_normalization_is_refused(a_batch: Callable[..., ClientBatch]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5))
    training = LocalRound(
        LocalOptions(2).announced(10), LocalOptions(2).new_optimizer, randomness_of(NoiseSource(0), 0, 0, 0)
    )
    with pytest.raises(UserError, match="batch normalization, which mixes the samples"):
        clipped_update(model, IMAGES, LABELS, Privacy(1.0, 1.0, "sample"), 1, training)
