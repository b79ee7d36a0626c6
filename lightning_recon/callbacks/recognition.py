# SPDX-License-Identifier: Apache-2.0
"""Score a run by recognition, with a pretrained classifier that only the scoring uses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightning_recon.errors import UserError
from lightning_recon.evaluation.recognition import Recognition, recognition
from lightning_recon.evaluation.scoring import Scored, Truth
from lightning_recon.networks.construction import build_network
from lightning_recon.networks.normalization import Normalization


@dataclass(frozen=True)
class Classifier:
    """A pretrained classifier.

    Args:
        network: torchvision or timm name, or the path of a class that takes `num_classes`.
        num_classes: number of its classes, at least 5.
        weights: file of a state dict; null: those that the network's class loads itself.
        normalization: how the network normalizes images in [0, 1], as `--model.client.normalization`.
        image_size: side of its input in pixels, to which images are resized.
    """

    network: str
    num_classes: int = 1000
    weights: str | None = None
    normalization: Normalization = "auto"
    image_size: int = 224


def recognition_of(
    scored: Sequence[Scored], truths: Sequence[Truth], classifier: Classifier | None
) -> Recognition | None:
    """How often the classifier predicts of a reconstruction what it predicts of the original; None without one.

    Args:
        scored: Every client and draw after matching.
        truths: The batch of each of them, in the same order.
        classifier: The classifier.

    Raises:
        UserError: It cannot be built, or does not take the images.
    """
    if classifier is None:
        return None
    network = build_network(
        classifier.network, classifier.num_classes, classifier.weights, normalization=classifier.normalization
    )
    reconstructions, originals = (torch.cat([one.images.cpu() for one in part]) for part in (scored, truths))
    try:
        return recognition(reconstructions, originals, network, classifier.image_size)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"--results.classifier {classifier.network} cannot classify the images ({' '.join(str(error).split())}): "
            "check its num_classes and image_size"
        ) from error
