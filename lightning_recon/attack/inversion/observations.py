# SPDX-License-Identifier: Apache-2.0
"""What an honest server reads of the answers: the mean update, its labels, and what guesses are compared with."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_recon.attack.inversion.distances import announced_std, noise_std, signal_weights
from lightning_recon.attack.inversion.forward_model import Update
from lightning_recon.attack.inversion.functional_model import FunctionalModel
from lightning_recon.attack.inversion.label_recovery import expected_share, label_counts
from lightning_recon.capture.tensor_check import NETWORK, check_tensors
from lightning_recon.errors import UserError
from lightning_recon.exchange import Client, ServerPayload, Task, update_name
from lightning_recon.networks.batch_norm import BatchNorm
from lightning_recon.networks.classifier_head import Head
from lightning_recon.networks.normalization import without_wrapper
from lightning_recon.priors.dct import synthesise
from lightning_recon.priors.image_statistics import PublicStatistics

Place = tuple[int, int]  # an update and its noise draw

_PUBLIC_PICTURES = 64  # from which the network's mean prediction is estimated


@dataclass(frozen=True)
class Observation:
    """One client's answers under one noise draw.

    Args:
        update: Mean over the rounds, by the names of the network's parameters.
        labels: Of the victims, (victims,), int64.
        claimed: Whether the update, or an oracle, shows them; otherwise they stand for the search alone.
    """

    update: Update
    labels: Tensor
    claimed: bool = True


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


def mean_update(client: Client, place: Place, model: FunctionalModel, folder: Path | None) -> Update:
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


def public_pictures(statistics: PublicStatistics, seed: int, count: int = _PUBLIC_PICTURES) -> Tensor:
    """Pictures as the server imagines them, (count, 3, H, W), values in [0, 1].

    Args:
        statistics: What the server takes for granted about pictures.
        seed: Of the pictures.
        count: How many.
    """
    generator = torch.Generator().manual_seed(seed)
    waves = torch.randn(count, *statistics.mean.shape, generator=generator)
    return synthesise(waves * statistics.variance.sqrt(), statistics.mean, statistics.colour).clamp(0, 1)


def public_predictions(model: FunctionalModel, pictures: Tensor, together: int) -> Tensor:
    """What the network says of public pictures, (N, classes): probabilities.

    Args:
        model: The network.
        pictures: Public ones, (N, 3, H, W).
        together: How many pictures go through it at a time in a client's step, which matters where batch normalisation
            uses the batch: then so many do here, too.
    """
    device = next(iter(model.parameters.values())).device
    mixing = any(isinstance(layer, BatchNorm) and layer.running_mean is None for layer in model.network.modules())
    parts = torch.split(pictures.to(device), max(together, 1) if mixing else len(pictures))
    with torch.no_grad():
        return torch.cat([model.network(part).softmax(-1) for part in parts if len(part) == len(parts[0])])


def counted_labels(update: Update, head: Head | None, task: Task, predictions: Tensor) -> Tensor:
    """The labels that the classifier's gradient shows, (victims,), int64; none, (0,), if it is all zeros.

    Args:
        update: As received.
        head: Where the network shows its errors; None if that is not known.
        task: What was announced.
        predictions: From `public_predictions`.

    Raises:
        UserError: The labels of so many pictures cannot be read from this network.
    """
    advice = "set --model.labels joint, which searches them with the pictures, or oracle, which takes the true ones"
    if head is None:
        raise UserError(f"no parameter of the network has the gradient softmax - one-hot that shows labels: {advice}")
    if task.victims > 1 and not head.of_batches:
        raise UserError(
            f"the network's last layer has no bias, and the gradient of its weight does not show the labels of "
            f"{task.victims} pictures: {advice}"
        )
    errors, noise = head.errors(update, announced_std(task))
    if not bool(errors.any()):
        return torch.zeros(0, dtype=torch.int64)
    return label_counts(errors, task.victims, predictions.mean(0), noise)


def labels_to_trust(update: Update, head: Head, task: Task, predictions: Tensor) -> float:
    """What share of the labels `counted_labels` is likely to get right; arguments as there."""
    errors, noise = head.errors(update, announced_std(task))
    return expected_share(errors, task.victims, predictions, noise)


def lay_out(members: list[tuple[int, Observation]], task: Task, weigh_tensors: bool) -> Chunk:
    """Put some guesses side by side.

    Args:
        members: The place of each guess among all, and what it is compared with.
        task: What was announced.
        weigh_tensors: Whether each tensor counts by the share of its energy that is not noise.
    """
    observations = [one for _, one in members]
    seen = _stacked([one.update for one in observations])
    weights = _stacked([signal_weights(one.update, noise_std(task)) for one in observations]) if weigh_tensors else None
    labels = torch.stack([one.labels for one in observations])
    return Chunk(torch.tensor([slot for slot, _ in members], device=labels.device), labels, seen, weights)


def _stacked(updates: list[Update]) -> Update:
    """The same tensor of all updates as one; of a single update without a copy."""
    if len(updates) == 1:
        return {name: tensor[None] for name, tensor in updates[0].items()}
    return {name: torch.stack([one[name] for one in updates]) for name in updates[0]}
