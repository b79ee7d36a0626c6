# SPDX-License-Identifier: Apache-2.0
"""The models and batches that a verifying server sends: its network silenced, with rows of its own for canaries.

A canary is a sample whose gradient has a known direction and norm. The server's linear layers read only the first
pixels of an image; the image of canary k is zero but for pixel k. Their weights are zero, and so are the logits of the
silenced network. The gradient of cross-entropy with respect to a layer's weights is therefore (p - y) at column k,
where p is uniform, and y is the label, 0. One more pixel is set in all images. Its gain may be far below the noise, so
that no gradient is exactly zero: Flower's LocalDpMod, for one, divides by the norm of the update.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_recon.verification.client_under_test import Batch

BLANK = -1  # in place of a canary's number: an image without a gradient
LAYERS = 2  # of the server: two show whether they are clipped together or alone
LABEL = 0


class ProbeModel(nn.Module):
    """The network under test, silenced, beside the server's linear layers.

    Args:
        network: images to logits.
        canaries: how many pixels of an image the server's layers read, each a canary's.
        classes: number of logits.
        gains: factor of those pixels for each of the server's layers; 0 sends no gradient into it.
        common_gain: factor of the pixel after them, which is set in all images.
        silent: whether the network's own logits, and with them its gradients, are multiplied by 0.
    """

    def __init__(
        self,
        network: nn.Module,
        canaries: int,
        classes: int,
        gains: Sequence[float],
        common_gain: float = 0.0,
        silent: bool = True,
    ) -> None:
        """Keep the network as `network`, so that its tensors are named `network.*`."""
        super().__init__()
        self.network = network
        # Initialized without random numbers: those of the client under test are left as they are.
        self.canary = nn.ModuleList(_zero_layer(canaries + 1, classes) for _ in gains)
        self.canaries = canaries
        self.gains, self.common_gain, self.silent = tuple(gains), common_gain, silent

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (B, classes)."""
        output: Tensor = self.network(images) * (0.0 if self.silent else 1.0)
        pixels = images.flatten(1)
        for layer, gain in zip(self.canary, self.gains, strict=True):
            rows, common = pixels[:, : self.canaries], pixels[:, self.canaries : self.canaries + 1]
            output = output + layer(torch.cat([gain * rows, self.common_gain * common], dim=1))
        return output


@dataclass(frozen=True)
class Canaries:
    """The geometry of the canaries.

    Args:
        count: how many there are, each with a direction of its own.
        classes: number of logits.
        image_shape: shape of an image.
    """

    count: int
    classes: int
    image_shape: tuple[int, ...]

    @property
    def profile(self) -> Tensor:
        """The gradient at a canary's column, scaled to Euclidean norm 1: shape (classes,), float64."""
        profile = torch.full((self.classes,), 1 / self.classes, dtype=torch.float64)
        profile[LABEL] -= 1
        length: Tensor = torch.linalg.vector_norm(profile)
        return profile / length

    def gain(self, norm: float) -> float:
        """The factor of the pixels at which a canary's gradient in one layer has a Euclidean norm."""
        return norm / math.sqrt(1 - 1 / self.classes)

    def batch(self, numbers: Tensor) -> Batch:
        """A batch with these canaries, (B,) int64, in which `BLANK` is an image without a gradient."""
        images = torch.zeros(len(numbers), math.prod(self.image_shape))
        present = (numbers != BLANK).nonzero().flatten()
        images[present, numbers[present]] = 1.0
        images[:, self.count] = 1.0
        labels = torch.full((len(numbers),), LABEL, dtype=torch.int64)
        return images.reshape(len(numbers), *self.image_shape), labels

    def scores(self, gradient: Tensor) -> Tensor:
        """How far a layer's gradient, (classes, count + 1), reaches in every canary's direction: (count,), float64."""
        return torch.einsum("c,ck->k", self.profile, gradient[:, : self.count].double())


def _zero_layer(canaries: int, classes: int) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(canaries, classes, bias=False)
    layer.weight = nn.Parameter(torch.zeros(classes, canaries))
    return layer


def layer_name(number: int) -> str:
    """The name of the weights of one of the server's layers."""
    return f"canary.{number}.weight"
