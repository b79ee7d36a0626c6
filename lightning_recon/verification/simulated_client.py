# SPDX-License-Identifier: Apache-2.0
"""The simulated client of this package as the client under test."""

import torch
from torch import Tensor, nn

from lightning_recon.client import VictimClient
from lightning_recon.data.sources import ClientBatch
from lightning_recon.exchange import ServerPayload
from lightning_recon.verification.client_under_test import Batch


class SimulatedClient:
    """A `VictimClient` as the client under test: its whole way from the batch to the update, with every option.

    Args:
        client: it is given the model in place of its own network, and under secure aggregation the same batch for
            every client of a group.
    """

    def __init__(self, client: VictimClient) -> None:
        """Store the client; every call is a round of its own."""
        self.client, self.rounds = client, 0

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The update of one round, by parameter name."""
        images, labels = batch
        masks = torch.ones(len(images), 1, *images.shape[2:], dtype=torch.bool)
        one = ClientBatch(images, images, masks, labels, [str(row) for row in range(len(images))])
        self.client.network = model
        self.client.bind([one] * self.client.aggregated)
        update = self.client.share(ServerPayload(), 0, 0, self.rounds)
        self.rounds += 1
        return {name.removeprefix("network."): tensor for name, tensor in update.gradient.items()}
