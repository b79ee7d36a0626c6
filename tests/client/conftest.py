# SPDX-License-Identifier: Apache-2.0
"""Networks of a few parameters, and clients that train them on random images."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data.sources import ClientBatch
from lightning_recon.exchange import ServerPayload

CLASSES, PIXELS, BATCH = 5, 16, 3
Mode = Literal["train", "eval"]
PLAIN = Privacy()


class Linear(nn.Module):
    """Logistic regression, for which everything has a closed form."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * PIXELS**2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.linear(images.flatten(1))
        return logits


class WithDropout(Linear):
    """A network that draws random numbers in its forward pass."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images with half the pixels missing."""
        return super().forward(F.dropout(images, 0.5, self.training))


class WithBatchNorm(nn.Module):
    """A network whose samples depend on each other."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(F.gelu(self.norm(self.conv(images))).mean(dim=(2, 3)))
        return logits


NETWORKS = {
    "linear": f"{__name__}.Linear",
    "dropout": f"{__name__}.WithDropout",
    "batch_norm": f"{__name__}.WithBatchNorm",
}


def random_batch(seed: int) -> ClientBatch:
    # Not the seed of the network: its weights would be the same random numbers as the pixels, as if trained on them.
    generator = torch.Generator().manual_seed(1000 + seed)
    images = torch.rand(BATCH, 3, PIXELS, PIXELS, generator=generator)
    masks = torch.ones(BATCH, 1, PIXELS, PIXELS, dtype=torch.bool)
    return ClientBatch(images, images, masks, torch.arange(BATCH), [str(index) for index in range(BATCH)])


@pytest.fixture(scope="session")
def networks() -> dict[str, str]:
    """Class paths by a short name."""
    return NETWORKS


@pytest.fixture(scope="session")
def a_batch() -> Callable[[int], ClientBatch]:
    """Three random images, one for each seed."""
    return random_batch


@pytest.fixture(scope="session")
def a_client() -> Callable[..., VictimClient]:
    """A client bound to such batches; its network by a short name, "convnet" by default."""

    def make(
        network: str = "convnet",
        clients: int = 1,
        privacy: Privacy = PLAIN,
        batch_norm: Mode = "train",
        seed: int = 0,
        participation: float = 1.0,
        noise_seed: int | None = 0,
    ) -> VictimClient:
        client = VictimClient(
            NETWORKS.get(network, network),
            CLASSES,
            privacy=privacy,
            batch_norm=batch_norm,
            seed=seed,
            participation=participation,
            noise_seed=noise_seed,
        )
        client.bind([random_batch(seed) for seed in range(clients)])
        return client

    return make


@pytest.fixture(scope="session")
def a_payload() -> Callable[..., ServerPayload]:
    """A structure that sends the pixels themselves: four units along the mean brightness, and one constant."""

    def make(strength: float = 100.0) -> ServerPayload:
        pixels = 3 * PIXELS**2
        edges = torch.tensor([-torch.inf, 0.49, 0.5, 0.51, torch.inf])
        tensors = {
            "mean": torch.zeros(3, PIXELS, PIXELS),
            "colour": torch.eye(3),
            "index": torch.arange(pixels),
            "gain": torch.ones(pixels),
            "constants": torch.tensor([0.3]),
            "directions": torch.full((1, pixels), 1 / pixels),
            "unit_direction": torch.zeros(4, dtype=torch.int64),
            "lower": edges[:-1],
            "upper": edges[1:],
            "code": torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]),
        }
        return ServerPayload({"pixels": True, "cancel": True, "strength": strength, "target_scale": 1.0}, tensors)

    return make
