# SPDX-License-Identifier: Apache-2.0
"""The true images of a run, and the scores of an update's reconstructions against them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_recon.attack import Attack, Reconstruction
from lightning_recon.data import ClientBatch
from lightning_recon.evaluation.assignment import label_share
from lightning_recon.evaluation.scoring import Scored, Truth, score


def truths_of(trainer: Trainer) -> list[Truth]:
    """The clients' batches; empty in a replay, which has no data."""
    return list(getattr(getattr(trainer, "datamodule", None), "client_batches", []))


@dataclass(frozen=True)
class ConcatenatedBatches:
    """The batches of clients whose updates are summed, one after another; fields as in `Truth`."""

    images: Tensor
    photographs: Tensor
    masks: Tensor


def truth_of(truths: list[Truth], update: int, module: Attack) -> Truth:
    """All victims of an update: one client's batch, or those of a group of clients."""
    count = module.task.aggregated
    if count == 1:
        return truths[update]
    members = truths[update * count : (update + 1) * count]
    images, photographs, masks = (
        torch.cat([getattr(one, part) for one in members]) for part in ("images", "photographs", "masks")
    )
    return ConcatenatedBatches(images, photographs, masks)


def scored_one(one: Reconstruction, truths: list[Truth], module: Attack) -> Scored:
    """Score an update's reconstructions; each victim carries the index of its own client."""
    mean_image = module.mean_image if one.mean_image is None else one.mean_image
    scored = score(truth_of(truths, one.client, module), one, mean_image, module.task.bit_depth)
    first = one.client * module.task.aggregated
    members = truths[first : first + module.task.aggregated]
    places = [(first + nth, index) for nth, member in enumerate(members) for index in range(len(member.images))]
    victims = [
        replace(victim, client=client, index=index)
        for victim, (client, index) in zip(scored.victims, places, strict=True)
    ]
    return replace(scored, victims=victims)


def label_accuracy(found: Sequence[Reconstruction], truths: list[Truth], module: Attack) -> float | None:
    """Share of the true labels that the attacker recovered, a mean over updates and draws; None if it recovers none."""
    shares = [label_share(one.labels, _labels(truths, one.client, module)) for one in found if one.labels is not None]
    return sum(shares) / len(shares) if shares else None


def _labels(truths: list[Truth], update: int, module: Attack) -> Tensor:
    count = module.task.aggregated
    members = truths[update * count : (update + 1) * count]
    return torch.cat([one.labels.cpu() for one in members if isinstance(one, ClientBatch)])
