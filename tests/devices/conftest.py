# SPDX-License-Identifier: Apache-2.0
"""Clients of small networks with bundled photographs, on the CPU or on the pretend device."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from lightning_recon.client import VictimClient
from lightning_recon.data import ClientBatch, ClientDataModule, NoMasks
from tests.devices.pretend import Log, pretend_device

SIZE, COUNT = 24, 4


class Small(nn.Module):
    """A convolution, batch normalization, dropout and a classifier."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        features = torch.sigmoid(self.norm(self.conv(images))).mean((2, 3))
        logits: torch.Tensor = self.head(nn.functional.dropout(features, 0.25, self.training))
        return logits


@pytest.fixture(params=["cuda", "mps"])
def pretended(request: pytest.FixtureRequest) -> Iterator[tuple[torch.device, Log]]:
    """The pretend device and the record of what the host waits for."""
    with pretend_device(request.param) as found:
        yield found


@pytest.fixture(scope="session")
def photographs() -> list[ClientBatch]:
    """Two clients with four bundled photographs each."""
    data = ClientDataModule(image_size=SIZE, batch_size=COUNT, clients=2, masks=NoMasks())
    data.prepare_data()
    data.setup()
    return data.client_batches


@pytest.fixture
def a_client(photographs: list[ClientBatch]) -> Callable[..., VictimClient]:
    """Clients bound to the photographs; arguments are those of `VictimClient`."""

    def make(network: str = f"{__name__}.Small", **settings: object) -> VictimClient:
        client = VictimClient(network, 16, noise_seed=0, **settings)  # type: ignore[arg-type]
        client.bind(photographs)
        return client

    return make
