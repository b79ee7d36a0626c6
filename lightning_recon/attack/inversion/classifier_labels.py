# SPDX-License-Identifier: Apache-2.0
"""The labels of an update, read from the gradient of the network's classifier."""

import logging

import torch
from torch import Tensor

from lightning_recon.attack.inversion.classifier_head import Head
from lightning_recon.attack.inversion.distances import announced_std
from lightning_recon.attack.inversion.forward_model import Update
from lightning_recon.attack.inversion.functional_model import FunctionalModel
from lightning_recon.attack.inversion.label_recovery import expected_share, label_counts
from lightning_recon.errors import UserError
from lightning_recon.exchange import Task
from lightning_recon.networks.batch_norm import BatchNorm
from lightning_recon.priors.dct import synthesise
from lightning_recon.priors.image_statistics import PublicStatistics

log = logging.getLogger(__name__)

_PUBLIC_IMAGES = 64  # from which the network's mean prediction is estimated
_RELIABLE = 0.75  # expected share of correct labels below which a warning is given


def public_images(statistics: PublicStatistics, seed: int, count: int = _PUBLIC_IMAGES) -> Tensor:
    """Samples of the public Gaussian model of images, (count, C, H, W), values in [0, 1].

    Args:
        statistics: The public model.
        seed: Of the samples.
        count: Number of samples.
    """
    generator = torch.Generator().manual_seed(seed)
    waves = torch.randn(count, *statistics.mean.shape, generator=generator)
    return synthesise(waves * statistics.variance.sqrt(), statistics.mean, statistics.colour).clamp(0, 1)


def public_predictions(model: FunctionalModel, images: Tensor, batch_size: int) -> Tensor:
    """The network's predictions for public images, (N, classes): probabilities.

    Args:
        model: The network.
        images: Public images, (N, C, H, W).
        batch_size: Number of images in one step of a client. Batch normalisation by the batch's statistics makes
            predictions depend on it, so the public images are then passed in batches of this size.
    """
    device = next(iter(model.parameters.values())).device
    mixing = any(isinstance(layer, BatchNorm) and layer.running_mean is None for layer in model.network.modules())
    parts = torch.split(images.to(device), max(batch_size, 1) if mixing else len(images))
    with torch.no_grad():
        return torch.cat([model.network(part).softmax(-1) for part in parts if len(part) == len(parts[0])])


def read_labels(
    update: Update, head: Head | None, task: Task, predictions: Tensor, index: int, warn: bool = True
) -> tuple[Tensor, bool]:
    """The labels of an update for a search, and whether the update shows any; with a warning if most may be wrong.

    Args:
        update: As received.
        head: The network's classifier; None if it was not found.
        task: The announced training parameters.
        predictions: From `public_predictions`.
        index: Of the update, for messages.
        warn: Whether to estimate how many labels are correct, and to warn if few are.

    Returns:
        (victims,), int64; zeros if the update shows no labels.
    """
    labels = counted_labels(update, head, task, predictions)
    if not len(labels):
        log.warning("Update %d shows no labels: the gradient of the network's last layer is all zeros.", index)
        return torch.zeros(task.victims, dtype=torch.int64), False
    if head is not None and warn:
        share = expected_accuracy(update, head, task, predictions)
        if share < _RELIABLE:
            log.warning(
                "Of the labels read from update %d about %.0f %% are correct, estimated on public images: set "
                "--model.labels joint to optimise them with the images, or oracle to take the true ones.",
                index,
                100 * share,
            )
    return labels, True


def counted_labels(update: Update, head: Head | None, task: Task, predictions: Tensor) -> Tensor:
    """The labels that the classifier's gradient shows, (victims,), int64; none, (0,), if it is all zeros.

    Args:
        update: As received.
        head: The network's classifier; None if it was not found.
        task: The announced training parameters.
        predictions: From `public_predictions`.

    Raises:
        UserError: The labels of so many images cannot be read from this network.
    """
    advice = "set --model.labels joint, which optimises them with the images, or oracle, which takes the true ones"
    if head is None:
        raise UserError(f"no parameter of the network has the gradient softmax - one-hot that shows labels: {advice}")
    if task.victims > 1 and not head.of_batches:
        raise UserError(
            f"the network's last layer has no bias, and the gradient of its weight does not show the labels of "
            f"{task.victims} images: {advice}"
        )
    errors, noise = head.errors(update, announced_std(task))
    if not bool(errors.any()):
        return torch.zeros(0, dtype=torch.int64)
    return label_counts(errors, task.victims, predictions.mean(0), noise)


def recovered_targets(update: Update, head: Head | None, task: Task) -> Tensor:
    """Several labels of a single image, (1, labels) float32: those whose error, sigmoid minus label, is negative.

    Args:
        update: As received.
        head: The network's last layer; None if it was not found.
        task: The announced training parameters, with a loss other than the cross-entropy.

    Raises:
        UserError: The last layer does not show the targets of this loss, or of several images.
    """
    advice = "set --model.labels joint, which optimises them with the images, or oracle, which takes the true ones"
    if task.loss != "binary_cross_entropy":
        raise UserError(f"under --model.client.loss {task.loss} the last layer's gradient shows no targets: {advice}")
    if task.victims > 1:
        raise UserError(f"the last layer's gradient shows the labels of one image, not of {task.victims}: {advice}")
    if head is None or not head.of_batches:
        raise UserError(f"no parameter of the network has the gradient sigmoid - label that shows labels: {advice}")
    errors, _ = head.errors(update, announced_std(task))
    return (errors < 0).float()[None].cpu()


def expected_accuracy(update: Update, head: Head, task: Task, predictions: Tensor) -> float:
    """Expected share of the labels that `counted_labels` recovers correctly; arguments as there."""
    errors, noise = head.errors(update, announced_std(task))
    return expected_share(errors, task.victims, predictions, noise)
