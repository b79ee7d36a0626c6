# SPDX-License-Identifier: Apache-2.0
"""What a client announces, accepts and refuses, and whose batch it answers on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data.sources import ClientBatch, DataProtocol
from lightning_recon.errors import UserError
from lightning_recon.exchange import Client, ServerPayload

CLASSES, PIXELS, BATCH = 5, 16, 3
Clients = Callable[..., VictimClient]
Payloads = Callable[..., ServerPayload]
Batches = Callable[[int], ClientBatch]


def test_labels_must_have_classes(a_client: Clients, a_batch: Batches) -> None:
    batch = a_batch(0)
    batch.labels[1] = CLASSES
    with pytest.raises(UserError) as raised:
        a_client().bind([batch])
    assert "--model.client.num_classes" in raised.value.for_command_line


def test_task_announces_the_training(a_client: Clients) -> None:
    client = a_client(clients=2, privacy=Privacy(2.0, 0.1, "sample", True, 3))
    assert isinstance(client, Client)
    task = client.task
    assert (task.image_shape, task.num_classes, task.batch_size, task.clients) == ((3, PIXELS, PIXELS), 5, BATCH, 2)
    assert (task.network, task.granularity, task.per_layer) == ("convnet", "sample", True)
    assert (task.max_grad_norm, task.noise_multiplier, task.rounds) == (2.0, 0.1, 3)


def parse(*flags: str) -> VictimClient:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(VictimClient, "client")
    client: VictimClient = parser.instantiate(parser.parse_args(["--client.network=convnet", *flags])).client
    return client


def test_flags_reach_the_client() -> None:
    client = parse("--client.privacy.noise_multiplier", "2e-4", "--client.privacy.max_grad_norm", "10")
    assert client.privacy == Privacy(10.0, 2e-4)
    assert parse("--client.privacy.max_grad_norm", ".inf").privacy.max_grad_norm is None
    assert isinstance(client.configure_optimizers(), torch.optim.SGD)
    adam = parse("--client.optimizer=torch.optim.Adam", "--client.optimizer.lr=0.5").configure_optimizers()
    assert isinstance(adam, torch.optim.Adam)
    assert adam.defaults["lr"] == 0.5
    with pytest.raises(UserError, match="noise without a clip"):
        parse("--client.privacy.max_grad_norm", ".inf", "--client.privacy.noise_multiplier", "1")
    with pytest.raises(UserError, match="chunk_size"):
        parse("--client.chunk_size", "0")
    with pytest.raises(UserError, match="participation"):
        parse("--client.participation", "0")


def test_an_absent_client_answers_on_other_images(a_client: Clients, a_payload: Payloads) -> None:
    payload, name, rounds = a_payload(), "structure.weight", range(60)
    whole, partly = (a_client("linear", clients=3, participation=share) for share in (1.0, 0.3))
    own = [whole.share(payload, client, 0, 0).gradient[name] for client in range(3)]
    answers = [partly.share(payload, 1, 0, number).gradient[name] for number in rounds]
    owners = [next(index for index, one in enumerate(own) if torch.equal(one, answer)) for answer in answers]
    assert abs(owners.count(1) - 0.3 * 60) < 4 * (60 * 0.3 * 0.7) ** 0.5
    assert {0, 2} <= set(owners)  # the replacement is drawn again in each round
    assert all(torch.equal(whole.share(payload, 1, 0, number).gradient[name], own[1]) for number in rounds[:3])
    again = [
        a_client("linear", clients=3, participation=0.3).share(payload, 1, 0, n).gradient[name] for n in rounds[:5]
    ]
    assert all(torch.equal(one, other) for one, other in zip(again, answers, strict=False))
    assert partly.share(payload, 1, 0, 0).client == 1


def test_an_absent_client_needs_a_replacement(a_client: Clients) -> None:
    with pytest.raises(UserError) as raised:
        a_client(participation=0.5)
    assert "--data.clients" in raised.value.for_command_line


@pytest.mark.parametrize(
    ("options", "first", "text"),
    [
        ({"participation": 0.5}, 2, r"first_client is 2, but clients that do not take part .*participation to 1"),
        ({"aggregated": 2}, 1, r"first_client is 1, and updates of 2 clients are summed: give a multiple of 2"),
    ],
)
def test_clients_before_the_first_one_have_no_images_here(
    a_batch: Batches, options: dict[str, Any], first: int, text: str
) -> None:
    client = VictimClient("convnet", CLASSES, noise_seed=0, **options)
    with pytest.raises(UserError, match=text):
        client.bind([a_batch(0), a_batch(1)], DataProtocol(BATCH, first_client=first))
    client.bind([a_batch(0), a_batch(1)], DataProtocol(BATCH))
