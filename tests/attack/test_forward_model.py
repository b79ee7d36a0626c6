# SPDX-License-Identifier: Apache-2.0
"""What a server works out that a client would send is what the client sends, clip and all."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lightning_recon.attack.inversion.forward_model import Update, check_modelled, client_update, clipped
from lightning_recon.attack.inversion.functional_model import functionalize
from lightning_recon.client import LocalOptions, Privacy, VictimClient
from lightning_recon.errors import UserError
from lightning_recon.exchange import Compression, LocalTraining, ServerPayload
from tests.local_sgd import local_sgd

Honest = Callable[..., VictimClient]
MOMENTUM = LocalOptions(
    2, steps=2, optimizer=partial(torch.optim.SGD, lr=0.2, momentum=0.9, nesterov=True, weight_decay=0.1)
)


def worked_out(client: VictimClient, index: int = 0) -> Update:
    """The update that the server expects of an update's true pictures."""
    members = client._batches[index * client.aggregated : (index + 1) * client.aggregated]
    images, labels = torch.cat([one.images for one in members]), torch.cat([one.labels for one in members])
    model = functionalize(client.network, client.batch_norm == "train")
    return client_update(model, images, labels, client.task)[0]


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"network": "perceptron", "granularity": "sample"},
        {"network": "perceptron", "granularity": "sample", "aggregated": 3},
        {"network": "smooth", "granularity": "update", "batch_norm": "train"},
        {"network": "smooth", "granularity": "update", "batch_norm": "eval"},
        {"network": "smooth", "granularity": "update", "local": local_sgd(3, 0.5)},
        {"network": "smooth", "granularity": "update", "local": local_sgd(2, 0.3, 2)},
        {"network": "smooth", "granularity": "update", "local": MOMENTUM},
        {"network": "smooth", "granularity": "update", "local": local_sgd(3), "batch_norm": "eval", "aggregated": 3},
    ],
    ids=[
        "sample",
        "sums of samples",
        "train",
        "eval",
        "local steps",
        "local epochs",
        "momentum and weight decay",
        "sums of local steps",
    ],
)
def test_the_server_knows_what_clients_do(
    settings: dict[str, Any], per_layer: bool, clip: float | None, honest: Honest
) -> None:
    own = dict(settings)
    privacy = Privacy(max_grad_norm=clip, granularity=own.pop("granularity"), per_layer=per_layer)
    client = honest(clients=own.get("aggregated", 1), count=6, privacy=privacy, **own)
    sent, expected = client.share(ServerPayload(), 0, 0, 0).gradient, worked_out(client)
    assert {name.removeprefix("network.") for name in sent} == expected.keys()
    for name, tensor in expected.items():
        theirs = sent[f"network.{name}"]
        # Local steps differ by what float32 leaves of a difference of weights.
        assert torch.allclose(tensor, theirs, rtol=1e-4, atol=2e-6 * max(1.0, float(theirs.abs().max()))), name


def test_the_sign_of_local_steps_is_the_gradients(honest: Honest) -> None:
    """Against plain SGD: what it takes from the weights, over the learning rate."""
    client = honest("perceptron", count=4, privacy=Privacy(max_grad_norm=None), local=local_sgd(2, 0.3, 2))
    batch, names = client._batches[0], [name for name, _ in client.network.named_parameters()]
    before = [parameter.detach().clone() for parameter in client.network.parameters()]
    expected = worked_out(client)
    optimizer = torch.optim.SGD(client.network.parameters(), lr=0.3)
    for part in 2 * (slice(0, 2), slice(2, 4)):
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(client.network(batch.images[part]), batch.labels[part]))
        optimizer.step()
    for name, old, new in zip(names, before, client.network.parameters(), strict=True):
        assert torch.allclose(expected[name], (old - new.detach()) / 0.3, rtol=1e-3, atol=1e-5)
    single = client_update(functionalize(client.network, True), batch.images, batch.labels, client.task)[0]
    assert single.keys() == expected.keys()


def test_taking_a_network_apart_leaves_it_alone(honest: Honest) -> None:
    network = honest("smooth").network
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    model = functionalize(network, batch_statistics=True)
    model.network(torch.rand(4, 3, 8, 8))
    assert list(model.running) == ["norm"]
    assert network.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"local": LocalTraining(optimizer="torch.optim.adam.Adam")}, "local steps of Adam"),
        ({"local": LocalTraining(2, shuffle=True)}, "every epoch.* set shuffle to false"),
        ({"local": LocalTraining(batch_size=1, accumulate_grad_batches=2)}, "accumulated gradients"),
        ({"local": LocalTraining(2), "granularity": "sample"}, "DP-SGD"),
        ({"participation": 0.5}, "do not take part in every round.* set participation to 1"),
        ({"client_dropout": 0.1}, "clients that drop out of a sum.* set client_dropout to 0"),
        ({"compression": Compression("sign")}, "compressed by sign.* leave the compression out"),
    ],
)
def test_what_is_not_modelled_is_refused(changes: dict[str, Any], message: str, honest: Honest) -> None:
    task = honest("perceptron", count=4, privacy=Privacy()).task
    check_modelled(task)
    check_modelled(replace(task, participation=None))  # not announced
    with pytest.raises(UserError, match=message):
        check_modelled(replace(task, **changes))


@pytest.mark.parametrize("per_layer", [False, True])
def test_a_tensor_of_zeros_is_clipped_with_a_derivative(per_layer: bool, honest: Honest) -> None:
    task = honest("perceptron", count=1, privacy=Privacy(max_grad_norm=1.0, per_layer=per_layer)).task
    update = {name: torch.zeros(3, requires_grad=True) for name in "ab"}
    if per_layer:
        update["a"] = torch.tensor([3.0, 4.0, 0.0], requires_grad=True)
    sent = clipped(update, task)
    assert torch.equal(sent["b"], torch.zeros(3))
    gradients = torch.autograd.grad(sum(one.sum() for one in sent.values()), list(update.values()))
    assert all(one.isfinite().all() for one in gradients)
    assert torch.equal(gradients[1], torch.ones(3))
