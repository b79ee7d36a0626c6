# SPDX-License-Identifier: Apache-2.0
"""What an honest server reads of the answers: the mean update, its labels, and what guesses are compared with."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_recon.attack.labels import label_counts
from lightning_recon.attack.local import Model, Update
from lightning_recon.attack.matching import noise_std, signal_weights
from lightning_recon.capture.validator import NETWORK, check_tensors
from lightning_recon.errors import UserError
from lightning_recon.exchange import Client, ServerPayload, Task, update_name
from lightning_recon.normalisation import without_wrapper
from lightning_recon.structure.statistics import PublicStatistics
from lightning_recon.structure.transform import synthesise

Place = tuple[int, int]  # an update and its noise draw

_PUBLIC_PICTURES = 64  # from which the network's mean prediction is estimated


@dataclass(frozen=True)
class Heard:
    """One client's answers under one noise draw.

    Args:
        update: Mean over the rounds, by the names of the network's parameters.
        labels: Of the victims, (victims,), int64.
    """

    update: Update
    labels: Tensor


@dataclass(frozen=True)
class Chunk:
    """P guesses that are computed side by side, with what they are compared with.

    Args:
        slots: Places of the guesses among all, (P,), int64.
        labels: (P, victims), int64.
        seen: Each tensor of the update, (P, ...).
        weights: What each tensor counts, (P,) each; None: 1.
    """

    slots: Tensor
    labels: Tensor
    seen: Update
    weights: Update | None


def mean_update(client: Client, place: Place, model: Model, folder: Path | None) -> Update:
    """Mean over the rounds of what one client answered, by the names of the network's parameters.

    Args:
        client: Who answers.
        place: Which update, and which noise draw.
        model: The network that was shipped.
        folder: Where to keep the updates; None to keep nothing.

    Raises:
        UserError: An update is not one of this network.
    """
    expected = {NETWORK + name: tuple(tensor.shape) for name, tensor in model.parameters.items()}
    total = {name: torch.zeros_like(tensor) for name, tensor in model.parameters.items()}
    for number in range(client.task.rounds):
        update = client.share(ServerPayload(), *place, number)
        gradient = without_wrapper(update.gradient, expected, NETWORK)
        check_tensors(gradient, expected, others=False)
        if folder is not None:
            update.save(folder, update_name(*place, number), keep=dict.fromkeys(update.gradient))
        for name, tensor in total.items():
            tensor += gradient[NETWORK + name].to(tensor)
    return {name: tensor / client.task.rounds for name, tensor in total.items()}


def expected_prediction(model: Model, statistics: PublicStatistics, seed: int) -> Tensor:
    """What the network says on average of pictures as the server imagines them, (classes,).

    Args:
        model: The network.
        statistics: What the server takes for granted about pictures.
        seed: Of the imagined pictures.
    """
    generator = torch.Generator().manual_seed(seed)
    waves = torch.randn(_PUBLIC_PICTURES, *statistics.mean.shape, generator=generator)
    imagined = synthesise(waves * statistics.variance.sqrt(), statistics.mean, statistics.colour).clamp(0, 1)
    device = next(iter(model.parameters.values())).device
    with torch.no_grad():
        prediction: Tensor = model.network(imagined.to(device)).softmax(-1).mean(0)
    return prediction


def counted_labels(update: Update, model: Model, task: Task, prediction: Tensor) -> Tensor:
    """The labels that the last layer's gradient shows, (victims,), int64.

    Args:
        update: As received.
        model: The network.
        task: What was announced.
        prediction: From `expected_prediction`.

    Raises:
        UserError: The last layer is not linear with a bias.
    """
    if f"{model.head}.bias" not in update:
        raise UserError(
            "labels cannot be read from a network whose last layer is not linear with a bias: set --model.labels joint"
        )
    return label_counts(update[f"{model.head}.bias"], task.victims, prediction, noise_std(task))


def lay_out(members: list[tuple[int, Heard]], task: Task, weigh_tensors: bool) -> Chunk:
    """Put some guesses side by side.

    Args:
        members: The place of each guess among all, and what it is compared with.
        task: What was announced.
        weigh_tensors: Whether each tensor counts by the share of its energy that is not noise.
    """
    heard = [one for _, one in members]
    seen = _stacked([one.update for one in heard])
    weights = _stacked([signal_weights(one.update, noise_std(task)) for one in heard]) if weigh_tensors else None
    labels = torch.stack([one.labels for one in heard])
    return Chunk(torch.tensor([slot for slot, _ in members], device=labels.device), labels, seen, weights)


def _stacked(updates: list[Update]) -> Update:
    """The same tensor of all updates as one; of a single update without a copy."""
    if len(updates) == 1:
        return {name: tensor[None] for name, tensor in updates[0].items()}
    return {name: torch.stack([one[name] for one in updates]) for name in updates[0]}
