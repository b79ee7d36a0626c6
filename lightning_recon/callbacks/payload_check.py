# SPDX-License-Identifier: Apache-2.0
"""The alarms of a client that checks the model before it answers."""

import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_recon.attack import Attack
from lightning_recon.callbacks.ground_truth import truths_of
from lightning_recon.client import VictimClient
from lightning_recon.data.sources import ClientBatch
from lightning_recon.defense import inspect_model
from lightning_recon.errors import UserError
from lightning_recon.structure.layer import build_layer
from lightning_recon.structure.server_layer import TamperedNetwork


def alarms_of(trainer: Trainer, module: Attack) -> list[str]:
    """Names of the checks that warn the first client of the model that it is sent first; see `inspect_model`.

    Args:
        trainer: The trainer, with the clients' images.
        module: The attack, after it made its payload.

    Raises:
        UserError: The run has no simulated client whose images and network could be used.
    """
    client, payload, truths = module.client, module.payload, truths_of(trainer)
    if not isinstance(client, VictimClient) or payload is None or not isinstance(truths[0], ClientBatch):
        raise UserError("--results.inspect true needs a client's own network and images: leave it out here")
    with torch.inference_mode(False), torch.enable_grad():  # `recon test` runs in inference mode
        model: nn.Module = client.network
        if payload.settings or payload.tensors:
            model = TamperedNetwork(model, build_layer(payload).to(client.device))
        images, targets = truths[0].images.to(client.device), client.targets(truths[0].labels).to(client.device)
        return [finding.check for finding in inspect_model(model, images, targets, client.loss) if finding.alarm]
