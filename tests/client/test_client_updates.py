# SPDX-License-Identifier: Apache-2.0
"""Released updates against plain gradients: clipping, noise, reproducibility, and no way to the clean gradient."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data.sources import ClientBatch
from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, RecordedClient, ServerPayload, payload_name, update_name
from lightning_recon.structure.layer import InferenceStructure
from lightning_recon.structure.server_layer import TamperedNetwork

PIXELS, BATCH = 16, 3
Granularity = Literal["sample", "update"]
Mode = Literal["train", "eval"]
Clients = Callable[..., VictimClient]
Payloads = Callable[..., ServerPayload]
Batches = Callable[[int], ClientBatch]


def norm(update: ClientUpdate) -> float:
    return math.hypot(*(float(tensor.double().norm()) for tensor in update.gradient.values()))


def plain_gradient(client: VictimClient, payload: ServerPayload, reduction: str = "mean") -> dict[str, Tensor]:
    """By backward(), the textbook way."""
    model = TamperedNetwork(client.network, InferenceStructure(payload))
    batch = client._batches[0]
    F.cross_entropy(model(batch.images), batch.labels, reduction=reduction).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    client.zero_grad()
    return gradients


@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_without_clip_and_noise_the_update_is_the_plain_gradient(
    a_client: Clients, a_payload: Payloads, granularity: Granularity
) -> None:
    client, payload = a_client(privacy=Privacy(None, 0.0, granularity)), a_payload()
    update = client.share(payload, 0, 0, 0)
    expected = plain_gradient(client, payload, "sum" if granularity == "sample" else "mean")
    assert update.gradient.keys() == expected.keys()
    assert update.gradient["structure.weight"].norm() > 0
    for name, gradient in expected.items():
        torch.testing.assert_close(update.gradient[name], gradient, rtol=1e-4, atol=1e-5)


def test_an_empty_payload_leaves_the_network_alone(a_client: Clients, a_payload: Payloads) -> None:
    client = a_client(privacy=Privacy(None))
    update = client.share(ServerPayload(), 0, 0, 0)
    assert update.gradient.keys() == {f"network.{name}" for name, _ in client.network.named_parameters()}
    # The structure's output is exactly 0, so the network's own gradient does not know of it.
    tampered = client.share(a_payload(), 0, 0, 0)
    assert all(torch.equal(tampered.gradient[name], gradient) for name, gradient in update.gradient.items())


def test_clipped_update_in_closed_form(a_client: Clients, a_payload: Payloads) -> None:
    client = a_client("linear", privacy=Privacy(0.01))
    update = client.share(ServerPayload(), 0, 0, 0)
    plain = plain_gradient(client, a_payload())
    plain = {name: gradient for name, gradient in plain.items() if name.startswith("network.")}
    total = math.hypot(*(float(gradient.norm()) for gradient in plain.values()))
    assert total > 0.01
    for name, gradient in plain.items():
        torch.testing.assert_close(update.gradient[name], gradient * 0.01 / total)
    assert norm(update) == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize(("granularity", "count"), [("update", 1), ("sample", BATCH)])
def test_update_keeps_within_its_bound_before_noise(
    a_client: Clients, a_payload: Payloads, granularity: Granularity, count: int, per_layer: bool
) -> None:
    client = a_client(privacy=Privacy(0.5, 0.0, granularity, per_layer))
    update = client.share(a_payload(strength=1e4), 0, 0, 0)
    assert 0 < norm(update) <= 0.5 * count * (1 + 1e-6)
    if per_layer:
        bound = 0.5 * count / math.sqrt(len(update.gradient))
        assert all(tensor.norm() <= bound * (1 + 1e-6) for tensor in update.gradient.values())


def test_noise_has_standard_deviation_cz_on_every_number(a_client: Clients, a_payload: Payloads) -> None:
    quiet = a_client(privacy=Privacy(2.0)).share(a_payload(), 0, 0, 0)
    noisy = a_client(privacy=Privacy(2.0, 0.1)).share(a_payload(), 0, 0, 0)
    for name, tensor in noisy.gradient.items():
        noise, n = tensor - quiet.gradient[name], tensor.numel()
        assert abs(noise.square().mean() / 0.2**2 - 1) < 5 * math.sqrt(2 / n)
        assert abs(noise.mean()) < 5 * 0.2 / math.sqrt(n)


def test_share_depends_on_seed_client_draw_and_round_and_on_nothing_else(
    a_client: Clients, a_payload: Payloads
) -> None:
    privacy, payload = Privacy(1.0, 0.1), a_payload()
    client = a_client(clients=2, privacy=privacy)
    first = client.share(payload, 0, 0, 0)
    others = [client.share(payload, *key) for key in [(1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    others.append(a_client(privacy=privacy, seed=1).share(payload, 0, 0, 0))
    torch.rand(3)
    for same in (client.share(payload, 0, 0, 0), a_client(clients=2, privacy=privacy).share(payload, 0, 0, 0)):
        assert same.payload == payload.digest()
        assert all(torch.equal(same.gradient[name], tensor) for name, tensor in first.gradient.items())
    for other in others:
        assert all(not torch.equal(other.gradient[name], tensor) for name, tensor in first.gradient.items())


def test_draws_and_rounds_share_one_gradient_and_training_renews_it(a_client: Clients, a_payload: Payloads) -> None:
    client, payload = a_client("linear", privacy=Privacy(None)), a_payload()
    first = client.share(payload, 0, 0, 0)
    first.gradient["network.linear.bias"].zero_()  # what was sent is a copy
    second = client.share(payload, 0, 1, 3)
    assert second.gradient["network.linear.bias"].norm() > 0
    with torch.no_grad():
        client.network.linear.weight.add_(1.0, alpha=0.1)
        client.network.linear.bias.add_(torch.arange(5.0))
    third = client.share(payload, 0, 0, 0)
    assert not torch.equal(third.gradient["network.linear.bias"], second.gradient["network.linear.bias"])


def test_dropout_is_reproducible(a_client: Clients) -> None:
    shares = []
    for _ in range(2):
        torch.rand(1)
        client = a_client("dropout", privacy=Privacy(None))
        state = torch.random.get_rng_state()
        shares.append(client.share(ServerPayload(), 0, 0, 0).gradient["network.linear.weight"])
        assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(*shares)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("training", [True, False])
def test_share_leaves_network_modes_and_buffers_alone(
    a_client: Clients, a_payload: Payloads, mode: Mode, training: bool
) -> None:
    client = a_client("batch_norm", batch_norm=mode).train(training)
    before = {name: tensor.clone() for name, tensor in client.state_dict().items()}
    update = client.share(a_payload(), 0, 0, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in client.state_dict().items())
    assert all(module.training == training for module in client.network.modules())
    assert all(parameter.grad is None for parameter in client.parameters())
    # Only in eval mode do the running statistics matter.
    other = a_client("batch_norm", batch_norm=mode)
    with torch.no_grad():
        other.network.norm.running_var.mul_(9.0)
    same = torch.equal(
        other.share(a_payload(), 0, 0, 0).gradient["network.head.weight"],
        update.gradient["network.head.weight"],
    )
    assert same == (mode == "train")


def test_sample_granularity_converts_batch_normalisation(a_client: Clients, a_payload: Payloads) -> None:
    client = a_client("batch_norm", privacy=Privacy(0.1, 0.0, "sample"))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in client.modules())
    assert 0 < norm(client.share(a_payload(), 0, 0, 0)) <= 0.1 * BATCH * (1 + 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_share_is_float32_whatever_the_precision(
    a_client: Clients, a_payload: Payloads, a_batch: Batches, dtype: torch.dtype
) -> None:
    client, payload = a_client(privacy=Privacy(1.0)), a_payload()
    expected = client.share(payload, 0, 0, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        client.bind([a_batch(0)])
        update = client.share(payload, 0, 0, 0)
    assert all(torch.equal(update.gradient[name], tensor) for name, tensor in expected.gradient.items())
    cast = a_client(privacy=Privacy(1.0)).to(dtype).share(payload, 0, 0, 0)
    assert all(tensor.dtype == torch.float32 for tensor in cast.gradient.values())


def test_nothing_public_shows_the_clean_gradient(a_client: Clients, a_payload: Payloads) -> None:
    client = a_client(privacy=Privacy(1.0, 1.0))
    client.share(a_payload(), 0, 0, 0)
    gradient_like = {4 * (3 * PIXELS**2 + 1)}  # size of the structure's weight
    exposed = [name for name, value in vars(client).items() if not name.startswith("_") and isinstance(value, dict)]
    assert exposed == []
    assert not any(tensor.numel() in gradient_like for tensor in client.state_dict().values())


def test_nan_is_refused(a_client: Clients, a_payload: Payloads, a_batch: Batches) -> None:
    client, broken = a_client(), a_batch(0)
    broken.images[0, 0, 0, 0] = torch.nan
    client.bind([broken])
    with pytest.raises(UserError, match="NaN or infinity"):
        client.share(a_payload(), 0, 0, 0)


def test_a_recorded_client_gives_the_identical_update(a_client: Clients, a_payload: Payloads, tmp_path: Path) -> None:
    client, payload = a_client(privacy=Privacy(1.0, 0.1)), a_payload()
    update = client.share(payload, 0, 0, 0)
    client.task.save(tmp_path)
    payload.save(tmp_path, payload_name(0))
    update.save(tmp_path, update_name(0, 0, 0), dict.fromkeys(update.gradient))
    recorded = RecordedClient(tmp_path)
    again = recorded.share(ServerPayload.load(tmp_path, payload_name(0)), 0, 0, 0)
    assert recorded.task == client.task
    assert again.gradient.keys() == update.gradient.keys()
    assert all(torch.equal(again.gradient[name], tensor) for name, tensor in update.gradient.items())
