# SPDX-License-Identifier: Apache-2.0
"""Secure aggregation: the server gets the sum of the clients' own updates, with the announced noise."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_recon.client import Privacy, VictimClient
from lightning_recon.client.noise import add_noise
from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.client.update import clipped_update
from lightning_recon.data.sources import ClientBatch
from lightning_recon.errors import UserError
from lightning_recon.exchange import NoiseShare, ServerPayload, Task

Payloads = Callable[..., ServerPayload]
Batches = Callable[[int], ClientBatch]
BATCH = 3


@pytest.fixture
def a_group(networks: dict[str, str], a_batch: Batches) -> Callable[..., VictimClient]:
    def make(
        aggregated: int, share: NoiseShare, privacy: Privacy, clients: int = 4, present: float = 1.0
    ) -> VictimClient:
        client = VictimClient(
            networks["linear"],
            5,
            privacy=privacy,
            aggregated=aggregated,
            noise_share=share,
            participation=present,
            noise_seed=0,
        )
        client.bind([a_batch(seed) for seed in range(clients)])
        return client

    return make


@pytest.mark.parametrize("share", ["local", "distributed"])
def test_a_client_alone_is_clip_and_noise_bit_for_bit(
    a_group: Callable[..., VictimClient], a_batch: Batches, share: NoiseShare
) -> None:
    client = a_group(1, share, Privacy(0.5, 0.1))
    batch = a_batch(1)
    model = torch.nn.ModuleDict({"network": client.network})
    model.forward = client.network.forward
    expected = clipped_update(model, batch.images, batch.labels, client.privacy, 1).gradient
    add_noise(expected, 0.1 * 0.5, NoiseSource(0).generators(1, 2, 3))
    update = client.share(ServerPayload(), 1, 2, 3)
    assert update.gradient.keys() == expected.keys()
    assert all(torch.equal(update.gradient[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("granularity", ["sample", "update"])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_sum_is_what_its_clients_would_have_sent(
    a_group: Callable[..., VictimClient], a_payload: Payloads, granularity: str, noise: float
) -> None:
    privacy = Privacy(0.5, noise, "sample" if granularity == "sample" else "update")
    alone, together = a_group(1, "local", privacy), a_group(2, "local", privacy)
    payload = a_payload()
    own = [alone.share(payload, client, 1, 0).gradient for client in (2, 3)]
    update = together.share(payload, 1, 1, 0)
    assert update.client == 1
    for name, tensor in update.gradient.items():
        torch.testing.assert_close(tensor, own[0][name] + own[1][name], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(tensor, together.share(payload, 0, 1, 0).gradient[name])


@pytest.mark.parametrize(("share", "std"), [("local", 0.1 * 2.0 * math.sqrt(4)), ("distributed", 0.1 * 2.0)])
def test_the_sum_s_noise_is_as_announced(
    a_group: Callable[..., VictimClient], a_payload: Payloads, share: NoiseShare, std: float
) -> None:
    quiet, noisy = (a_group(4, share, Privacy(2.0, z)) for z in (0.0, 0.1))
    assert noisy.task.update_noise * 2.0 == pytest.approx(std)
    assert noisy.preview(a_payload(), 0).noise_std == pytest.approx(std / math.sqrt(4))
    clean = quiet.share(a_payload(), 0, 0, 0).gradient["structure.weight"]
    first, second = (noisy.share(a_payload(), 0, draw, 0).gradient["structure.weight"] - clean for draw in (0, 1))
    count = first.numel()
    for noise in (first, second):
        assert abs(noise.square().mean() / std**2 - 1) < 5 * math.sqrt(2 / count)
        assert abs(noise.mean()) < 5 * std / math.sqrt(count)
    assert abs((first * second).mean()) < 5 * std**2 / math.sqrt(count)


def test_the_server_knows_the_task_of_a_sum(a_group: Callable[..., VictimClient], tmp_path: Path) -> None:
    task = a_group(2, "distributed", Privacy(2.0, 0.1)).task
    assert (task.clients, task.batch_size, task.aggregated, task.noise_share) == (4, BATCH, 2, "distributed")
    assert (task.updates, task.victims, task.sharers) == (2, 2 * BATCH, BATCH)
    assert replace(task, granularity="sample").sharers == 1
    task.save(tmp_path)
    assert Task.load(tmp_path) == task
    # A recording from before there were sums.
    path = tmp_path / "task.json"
    content = json.loads(path.read_text())
    for name in ("aggregated", "noise_share", "sha256"):
        content.pop(name)
    path.write_text(json.dumps(content))
    assert Task.load(tmp_path) == replace(task, aggregated=1, noise_share="local")


def test_an_absent_client_is_replaced_by_one_of_another_group(
    a_group: Callable[..., VictimClient], a_payload: Payloads
) -> None:
    alone = a_group(1, "local", Privacy())
    partly = a_group(2, "local", Privacy(), present=0.5)
    own = [alone.share(a_payload(), client, 0, 0).gradient["structure.weight"] for client in range(4)]
    sums = {(first, second): own[first] + own[second] for first in (0, 2) for second in (1, 3)}
    seen = set()
    for number in range(24):
        answer = partly.share(a_payload(), 0, 0, number).gradient["structure.weight"]
        seen |= {place for place, tensor in sums.items() if torch.allclose(tensor, answer, rtol=1e-5, atol=1e-6)}
    assert seen == set(sums)  # each of the two comes or stays away by itself


def test_sums_that_cannot_be(a_group: Callable[..., VictimClient]) -> None:
    with pytest.raises(UserError, match=r"aggregated is 0: give"):
        a_group(0, "local", Privacy())
    with pytest.raises(UserError, match=r"3, which does not divide the 4 clients: set clients"):
        a_group(3, "local", Privacy())
    with pytest.raises(UserError, match=r"participation is 0\.5.*clients") as raised:
        a_group(4, "local", Privacy(), present=0.5)
    assert "--data.clients" in raised.value.for_command_line
    with pytest.raises(UserError) as raised:
        a_group(4, "local", Privacy()).setup("fit")
    assert "--model.aggregated is 4" in raised.value.for_command_line
