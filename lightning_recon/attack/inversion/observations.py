# SPDX-License-Identifier: Apache-2.0
"""What the server observed: the mean of a client's updates over the rounds, laid out for batched evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_recon.attack.inversion.distances import noise_std, signal_weights
from lightning_recon.attack.inversion.forward_model import Update
from lightning_recon.attack.inversion.functional_model import FunctionalModel
from lightning_recon.capture.tensor_check import NETWORK, check_tensors
from lightning_recon.exchange import Client, ServerPayload, Task, factor_in_mean, update_name
from lightning_recon.networks.normalization import without_wrapper

Place = tuple[int, int]  # an update and its noise draw


@dataclass(frozen=True)
class Observation:
    """One client's updates under one noise draw.

    Args:
        update: Mean over the rounds, by the names of the network's parameters.
        labels: Of the victims, (victims,), int64.
        labels_shown: Whether the update, or an oracle, shows the labels; otherwise the search merely needs some.
    """

    update: Update
    labels: Tensor
    labels_shown: bool = True


@dataclass(frozen=True)
class Chunk:
    """P candidates that are evaluated side by side, with the updates that they have to explain.

    Args:
        slots: Indices of the candidates among all, (P,), int64.
        labels: (P, victims), int64.
        observed: Each tensor of the update, (P, ...).
        weights: Weight of each tensor, (P,) each; None: 1.
    """

    slots: Tensor
    labels: Tensor
    observed: Update
    weights: Update | None


def mean_update(client: Client, place: Place, model: FunctionalModel, folder: Path | None) -> Update:
    """Mean over the rounds of one client's updates, by the names of the network's parameters.

    Args:
        client: Answers the server.
        place: Which update, and which noise draw.
        model: The network that was shipped.
        folder: Where to record the updates; None to record nothing.

    Raises:
        UserError: An update does not belong to this network.
    """
    total = {name: torch.zeros_like(tensor) for name, tensor in model.parameters.items()}
    for number in range(client.task.rounds):
        update = client.share(ServerPayload(), *place, number)
        gradient = network_gradient(update.gradient, model)
        if folder is not None:
            update.save(folder, update_name(*place, number), keep=dict.fromkeys(update.gradient))
        factor = factor_in_mean(client.task, update, client.task.rounds)
        for name, tensor in total.items():
            tensor.add_(gradient[name].to(tensor), alpha=factor)
    return {name: tensor / client.task.rounds for name, tensor in total.items()}


def network_gradient(gradient: Mapping[str, Tensor], model: FunctionalModel) -> Update:
    """The gradient of an update ("network.<parameter>") by the names of the network's parameters.

    Raises:
        UserError: It does not belong to this network.
    """
    expected = {NETWORK + name: tuple(tensor.shape) for name, tensor in model.parameters.items()}
    found = without_wrapper(gradient, expected, NETWORK)
    check_tensors(found, expected, others=False)
    return {name: found[NETWORK + name] for name in model.parameters}


def lay_out(members: list[tuple[int, Observation]], task: Task, weigh_tensors: bool) -> Chunk:
    """Lay out candidates side by side.

    Args:
        members: The slot of each candidate, and its observation.
        task: The announced training parameters.
        weigh_tensors: Whether each tensor is weighted by the share of its energy that is not noise.
    """
    observations = [one for _, one in members]
    observed = _stacked([one.update for one in observations])
    weights = _stacked([signal_weights(one.update, noise_std(task)) for one in observations]) if weigh_tensors else None
    labels = torch.stack([one.labels for one in observations])
    return Chunk(torch.tensor([slot for slot, _ in members], device=labels.device), labels, observed, weights)


def _stacked(updates: list[Update]) -> Update:
    """Stack each tensor of several updates; of a single update without a copy."""
    if len(updates) == 1:
        return {name: tensor[None] for name, tensor in updates[0].items()}
    return {name: torch.stack([one[name] for one in updates]) for name in updates[0]}
