# SPDX-License-Identifier: Apache-2.0
"""An honest server inverts gradients of other losses, and says which targets it cannot recover."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_recon.attack.inversion.forward_model import client_update
from lightning_recon.attack.inversion.functional_model import functionalize
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data.sources import ClientBatch
from lightning_recon.errors import UserError
from lightning_recon.exchange import RecordedClient, ServerPayload
from lightning_recon.losses import LossName

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`IterableDataset` has `__len__`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning 2.6 with torch 2.14
    pytest.mark.filterwarnings("ignore:.*logging interval"),
]

Inverted = Callable[..., Any]
EXACT = Privacy(max_grad_norm=None, noise_multiplier=0.0)
LABELS = torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0, 0.0]])
LIKELIHOOD: dict[str, Any] = {"distance": "likelihood", "basis": "balanced", "draws": 1}


def client_of(
    loss: LossName, targets: Tensor, outputs: int = 5, network: str = "tests.attack.conftest.Perceptron",
    privacy: Privacy = EXACT,
) -> VictimClient:  # fmt: skip
    generator, count = torch.Generator().manual_seed(7), len(targets)
    images = torch.rand(count, 3, 8, 8, generator=generator)
    masks = torch.ones(count, 1, 8, 8, dtype=torch.bool)
    client = VictimClient(network, outputs, privacy=privacy, noise_seed=0, loss=loss)
    client.bind([ClientBatch(images, images, masks, targets, [str(index) for index in range(count)])])
    return client


@pytest.mark.parametrize("granularity", ["sample", "update"])
@pytest.mark.parametrize("loss", ["binary_cross_entropy", "mean_squared_error", "dice", "dice_bce", "cross_entropy"])
def test_the_model_of_an_update_is_what_clients_send(loss: LossName, granularity: Any) -> None:  # noqa: ANN401
    privacy = Privacy(max_grad_norm=0.1, noise_multiplier=0.0, granularity=granularity)
    vector = loss in ("binary_cross_entropy", "mean_squared_error")
    targets = LABELS if vector else (torch.rand(2, 1, 8, 8) < 0.4).float()
    size, network = 5, "tests.attack.conftest.Perceptron"
    if not vector:
        size, network = (2 if loss == "cross_entropy" else 1), "pixel_convnet"
    client = client_of(loss, targets, size, network, privacy)
    update = client.share(ServerPayload(), 0, 0, 0).gradient
    batch, model = client._batches[0], functionalize(client.network, batch_statistics=True)
    modelled, _ = client_update(model, batch.images, batch.labels, client.task, mapped=granularity == "sample")
    for name, tensor in modelled.items():
        torch.testing.assert_close(tensor, update[f"network.{name}"], rtol=1e-4, atol=1e-7)


def test_several_labels_of_one_image_are_read_from_the_last_layer(inverted: Inverted) -> None:
    client = client_of("binary_cross_entropy", LABELS[:1])
    attack, found = inverted(client, steps=0)
    assert torch.equal(next(iter(attack.observations.values())).labels, LABELS[:1])
    assert found[0].labels is None  # they are no class indices
    assert attack.oracles == ()


@pytest.mark.parametrize(
    ("loss", "labels"),
    [("binary_cross_entropy", "counted"), ("binary_cross_entropy", "joint"), ("mean_squared_error", "joint")],
)
def test_a_search_finds_the_image(loss: LossName, labels: str, inverted: Inverted) -> None:
    client = client_of(loss, LABELS[:1], privacy=Privacy(max_grad_norm=0.1, noise_multiplier=1e-5))
    _, found = inverted(
        client, steps=150, labels=labels, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.1),
        **LIKELIHOOD,
    )  # fmt: skip
    error = (found[0].images - client._batches[0].images).square().mean()
    assert -10 * float(error.log10()) > 15


def test_true_targets_are_an_oracle_and_recorded_with_the_exchange(inverted: Inverted, tmp_path: Path) -> None:
    masks = (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(3)) < 0.4).float()
    client = client_of("dice_bce", masks, 1, "pixel_convnet", Privacy(max_grad_norm=0.1, noise_multiplier=1e-4))
    told, live = inverted(client, root=tmp_path / "live", labels="oracle", **LIKELIHOOD)
    assert told.oracles == ("labels",)
    recorded = RecordedClient(tmp_path / "live" / "exchange")
    _, again = inverted(recorded, root=tmp_path / "again", network="pixel_convnet", labels="oracle", **LIKELIHOOD)
    assert torch.equal(live[0].images, again[0].images)


@pytest.mark.parametrize(
    ("client", "said"),
    [
        (lambda: client_of("binary_cross_entropy", LABELS), "the labels of one image, not of 2"),
        (lambda: client_of("mean_squared_error", LABELS[:1]), "shows no targets: set labels joint"),
        (lambda: client_of("dice", torch.ones(1, 1, 8, 8), 1, "pixel_convnet"), "set labels oracle"),
    ],
)
def test_what_cannot_be_recovered_is_said(client: Callable[[], VictimClient], said: str, inverted: Inverted) -> None:
    with pytest.raises(UserError, match=said):
        inverted(client(), steps=0)


def test_a_damaged_record_of_targets_is_refused(inverted: Inverted, tmp_path: Path) -> None:
    client = client_of("binary_cross_entropy", LABELS)
    inverted(client, steps=0, root=tmp_path / "live", labels="oracle")
    path = tmp_path / "live" / "exchange" / "labels-c000.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    recorded = RecordedClient(tmp_path / "live" / "exchange")
    with pytest.raises(UserError, match="labels-c000"):
        inverted(recorded, steps=0, root=tmp_path / "again", network=recorded.task.network, labels="oracle")
