# SPDX-License-Identifier: Apache-2.0
"""What nobody reads of an update is not computed, and what is read does not depend on it."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_recon.attack.protocol import record_payload, run_protocol
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.client.answers import LastClean
from lightning_recon.client.noise import add_noise
from lightning_recon.data.sources import ClientBatch, DataProtocol
from lightning_recon.exchange import ClientUpdate, LazyTensors, ServerPayload, shapes_of
from lightning_recon.privacy.gaussian import Gaussian
from lightning_recon.structure import Feedback
from lightning_recon.structure.base import Decoded

Clients = Callable[..., VictimClient]
Payloads = Callable[..., ServerPayload]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many random numbers each piece of noise takes."""
    counts: list[int] = []
    sample = Gaussian.sample

    def counted(self: Gaussian, count: int, generator: object) -> Tensor:
        counts.append(count)
        return sample(self, count, generator)  # type: ignore[arg-type]

    monkeypatch.setattr(Gaussian, "sample", counted)
    return counts


def silencing(payload: ServerPayload) -> ServerPayload:
    return replace(payload, settings=payload.settings | {"detach_logits": True})


def test_lazy_tensors_are_computed_once_and_only_when_they_are_read() -> None:
    asked: list[str] = []

    def compute(name: str) -> Tensor:
        asked.append(name)
        return torch.ones(2, 3)

    tensors = LazyTensors({"a": torch.Size([2, 3]), "b": torch.Size([2, 3])}, compute)
    assert (list(tensors), len(tensors), "b" in tensors, "c" in tensors) == (["a", "b"], 2, True, False)
    assert shapes_of(tensors) == {"a": (2, 3), "b": (2, 3)} == shapes_of({"a": torch.ones(2, 3), "b": torch.ones(2, 3)})
    assert not asked
    tensors["b"].zero_()
    assert not tensors["b"].any()
    assert asked == ["b"]
    with pytest.raises(KeyError, match="c"):
        tensors["c"]


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_noise_is_that_of_an_update_which_is_drawn_at_once(
    a_client: Clients, a_payload: Payloads, granularity: str, silent: bool
) -> None:
    privacy = Privacy(1.0, 0.1, "sample" if granularity == "sample" else "update")
    payload = silencing(a_payload()) if silent else a_payload()
    client = a_client(privacy=privacy)
    update = client.share(payload, 0, 1, 2)
    expected = dict(client.under_noise(0.0).share(payload, 0, 1, 2).gradient)
    add_noise(expected, privacy.noise_scale, client.noise_source.generators(0, 1, 2))
    assert list(update.gradient) == list(expected)
    for name in reversed(list(expected)):
        assert torch.equal(update.gradient[name], expected[name])


def test_noise_of_a_sum_is_that_of_its_clients(a_payload: Payloads, a_batch: Callable[[int], ClientBatch]) -> None:
    client = VictimClient("convnet", 5, privacy=Privacy(1.0, 0.1), aggregated=2, noise_seed=0)
    client.bind([a_batch(0), a_batch(1)])
    payload = silencing(a_payload())
    update = client.share(payload, 0, 0, 3)
    expected = dict(client.under_noise(0.0).share(payload, 0, 0, 3).gradient)
    for member in (0, 1):
        add_noise(expected, 0.1, client.noise_source.generators(member, 0, 3))
    assert all(torch.equal(update.gradient[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_tensors_of_a_silenced_network_are_zero_and_count_as_such(
    a_client: Clients, a_payload: Payloads, granularity: str, per_layer: bool
) -> None:
    privacy = Privacy(1.0, 0.0, "sample" if granularity == "sample" else "update", per_layer)
    client, payload = a_client(privacy=privacy), silencing(a_payload(strength=1e4))
    released = client.share(payload, 0, 0, 0).gradient
    shapes = {f"network.{name}": parameter.shape for name, parameter in client.network.named_parameters()}
    assert {name: tensor.shape for name, tensor in released.items() if name.startswith("network.")} == shapes
    assert not any(released[name].any() for name in shapes)
    preview = client.preview(payload, 0)
    assert preview.tensors == len(released) == len(shapes) + 1
    assert preview.parameters == sum(tensor.numel() for tensor in released.values())
    share = 1 / math.sqrt(preview.tensors) if per_layer else 1.0
    count = 3 if granularity == "sample" else 1
    assert 0 < released["structure.weight"].norm() <= share * count * (1 + 1e-6)


@pytest.mark.parametrize("hash_omitted", [False, True])
def test_only_what_is_read_or_recorded_is_drawn(
    a_client: Clients, drawn: list[int], tmp_path: Path, hash_omitted: bool
) -> None:
    client = a_client(privacy=Privacy(1.0, 0.1, "sample", rounds=5))
    structure = Feedback()
    payload = structure.payload(client.task)
    record_payload(payload, structure, client.task, tmp_path)
    run_protocol(client, structure, payload, 0, 0, tmp_path, hash_omitted)
    updates = [ClientUpdate.load(tmp_path, path.stem) for path in sorted(tmp_path.glob("update-*.json"))]
    assert len(updates) == 5
    read = sum(update.gradient["structure.weight"].numel() for update in updates)
    network = sum(parameter.numel() for parameter in client.network.parameters())
    assert sum(drawn) == read + hash_omitted * 5 * network
    omitted = [one for update in updates for one in update.omitted.values()]
    assert sum(math.prod(one["shape"]) for one in omitted) == 5 * network
    assert {len(one["sha256"]) for one in omitted} == {64 if hash_omitted else 0}


def passes(client: VictimClient) -> list[int]:
    """Gets an entry for each image of a forward pass of the client's network."""
    counts: list[int] = []

    def count(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        counts.extend([1] * len(output))

    client.network.register_forward_hook(count)
    return counts


@pytest.mark.parametrize("granularity", ["sample", "update"])
@pytest.mark.parametrize("network", ["dropout", "convnet"])
def test_a_silenced_network_is_run_once_for_all_rounds(
    a_client: Clients, a_payload: Payloads, network: str, granularity: str
) -> None:
    privacy = Privacy(1.0, 0.1, "sample" if granularity == "sample" else "update")
    client, other = (a_client(network, privacy=privacy) for _ in range(2))
    counts = passes(client)
    for number in range(3):
        payload = silencing(a_payload(strength=100.0 + number))
        other._last_clean = LastClean()  # forgets the network's outputs
        one, two = (each.share(payload, 0, 0, number).gradient for each in (client, other))
        assert all(torch.equal(one[name], tensor) for name, tensor in two.items())
    assert len(counts) == 3
    with torch.no_grad():
        next(iter(client.network.parameters())).mul_(1.5)
    client.share(payload, 0, 0, 4)
    assert len(counts) == 6
    client.share(a_payload(), 0, 0, 5)  # a network that is not silenced
    assert len(counts) == 9


def test_outputs_of_other_images_are_not_reused(a_client: Clients, a_payload: Payloads) -> None:
    client = a_client("linear", clients=2, privacy=Privacy(1.0))
    shared = [client.share(silencing(a_payload(strength=100.0 + n)), n % 2, 0, n).gradient for n in range(4)]
    fresh = [
        a_client("linear", clients=2, privacy=Privacy(1.0))
        .share(silencing(a_payload(strength=100.0 + n)), n % 2, 0, n)
        .gradient
        for n in range(4)
    ]
    for one, other in zip(shared, fresh, strict=True):
        assert torch.equal(one["structure.weight"], other["structure.weight"])


def decoded(rounds: int, a_client: Clients, forgets: bool) -> Decoded:
    client = a_client(privacy=Privacy(1.0, 0.05, "sample", rounds=rounds))
    if forgets:
        share = client.share

        def forgetting(payload: ServerPayload, index: int, draw: int, round: int) -> ClientUpdate:
            client._last_clean = LastClean()
            update = share(payload, index, draw, round)
            return replace(update, gradient=dict(update.gradient))

        client.share = forgetting  # type: ignore[method-assign]
    structure = Feedback()
    return run_protocol(client, structure, structure.payload(client.task), 0, 0, None)


def test_feedback_decodes_the_same_with_all_noise_and_every_forward_pass(a_client: Clients) -> None:
    one, other = (decoded(6, a_client, forgets) for forgets in (False, True))
    assert len(one.images)
    assert torch.equal(one.images, other.images)


@pytest.mark.parametrize(("network", "runs"), [("convnet", 4), ("dropout", 12)])
def test_each_image_passes_once_unless_its_output_depends_on_random_numbers(
    a_payload: Payloads, networks: dict[str, str], a_batch: Callable[[int], ClientBatch], network: str, runs: int
) -> None:
    parts, fields = [a_batch(0), a_batch(1)], ("images", "photographs", "masks", "labels")
    batch = ClientBatch(*(torch.cat([getattr(part, name) for part in parts])[:4] for name in fields), list("abcd"))
    clients = []
    for _ in range(2):
        name = networks.get(network, network)
        client = VictimClient(name, 5, privacy=Privacy(1.0, 0.0, "sample"), sampling="shuffle", noise_seed=0)
        client.bind([batch], DataProtocol(2, local_images=4))
        clients.append(client)
    counts = passes(clients[0])
    for number in range(6):
        payload = silencing(a_payload(strength=100.0 + number))
        clients[1]._last_clean = LastClean()
        one, other = (client.share(payload, 0, 0, number).gradient for client in clients)
        assert torch.equal(one["structure.weight"], other["structure.weight"])
    assert len(counts) == runs
