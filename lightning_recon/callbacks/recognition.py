# SPDX-License-Identifier: Apache-2.0
"""Score a run by recognition, with a pretrained classifier that only the scoring uses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_recon.display import as_rgb
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

    def build(self) -> nn.Module:
        """The network, tried on one image, so that a mistake is found before anything is attacked.

        Raises:
            UserError: It cannot be built, or does not take images of that size.
        """
        network = build_network(self.network, self.num_classes, self.weights, normalization=self.normalization)
        image = torch.zeros(1, 3, self.image_size, self.image_size)
        try:
            recognition(image, image, network, self.image_size)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"--results.classifier {self.network} cannot classify images ({' '.join(str(error).split())}): check "
                "its num_classes and image_size"
            ) from error
        return network


def recognition_of(
    scored: Sequence[Scored], truths: Sequence[Truth], mean_image: Tensor, network: nn.Module, image_size: int
) -> tuple[Recognition, Recognition]:
    """How often a classifier predicts of a reconstruction what it predicts of the original, and of the mean image.

    The classifier sees RGB images: what `display.as_rgb` shows of others.

    Args:
        scored: Every client and draw after matching.
        truths: The batch of each of them, in the same order.
        mean_image: The public mean image, shape (C, H, W), which needs no attack.
        network: The classifier.
        image_size: Side of its input in pixels.
    """
    reconstructions, originals = (torch.cat([as_rgb(one.images.cpu()) for one in part]) for part in (scored, truths))
    baseline = as_rgb(mean_image).to(originals).expand_as(originals)
    return (
        recognition(reconstructions, originals, network, image_size),
        recognition(baseline, originals, network, image_size),
    )
