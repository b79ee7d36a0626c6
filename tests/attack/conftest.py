# SPDX-License-Identifier: Apache-2.0
"""Clients of an honest server, and the server's own view of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lightning_recon.attack import GradientInversion, Reconstruction
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data.sources import ClientBatch
from lightning_recon.exchange import Client

CLASSES = 5


class Smooth(nn.Module):
    """A few hundred parameters, smooth everywhere, with batch normalisation."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(torch.sigmoid(self.norm(self.conv(images))).mean((2, 3)))
        return logits


class Perceptron(nn.Module):
    """A network without batch normalisation whose last layer is linear."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(3 * 8 * 8, 16), nn.Linear(16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(torch.sigmoid(self.hidden(images.flatten(1))))
        return logits


NAMES = {"smooth": f"{__name__}.Smooth", "perceptron": f"{__name__}.Perceptron"}


def batch_of(seed: int, count: int, size: int) -> ClientBatch:
    generator = torch.Generator().manual_seed(1000 + seed)
    images = torch.rand(count, 3, size, size, generator=generator)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    masks = torch.ones(count, 1, size, size, dtype=torch.bool)
    return ClientBatch(images, images, masks, labels, [str(index) for index in range(count)])


@pytest.fixture(scope="session")
def honest() -> Callable[..., VictimClient]:
    def make(
        network: str = "perceptron",
        clients: int = 1,
        count: int = 1,
        size: int = 8,
        privacy: Privacy | None = None,
        **settings: Any,  # noqa: ANN401 - settings of a client
    ) -> VictimClient:
        """A client that answers on random pictures; its network by a short name."""
        protection = privacy or Privacy(max_grad_norm=0.1)
        client = VictimClient(NAMES.get(network, network), CLASSES, privacy=protection, **settings, noise_seed=0)
        client.bind([batch_of(seed, count, size) for seed in range(clients)])
        return client

    return make


@pytest.fixture
def inverted(tmp_path: Path) -> Callable[..., tuple[GradientInversion, list[Reconstruction]]]:
    def run(
        client: Client,
        steps: int = 3,
        root: Path = tmp_path,
        trainer: dict[str, Any] | None = None,
        **settings: Any,  # noqa: ANN401 - settings of an attack
    ) -> tuple[GradientInversion, list[Reconstruction]]:
        """Attack a client, and look at what is found."""
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        attack = GradientInversion(client, **settings)
        own = {"accelerator": "cpu", "max_steps": steps, "default_root_dir": root, **quiet, **(trainer or {})}
        Trainer(**own).fit(attack)
        return attack, attack.reconstructions()

    return run
