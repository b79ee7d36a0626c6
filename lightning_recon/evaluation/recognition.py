# SPDX-License-Identifier: Apache-2.0
"""Recognition: whether a classifier sees in a reconstruction what it sees in the original.

The reference is the classifier's own prediction on the original, so no true label is needed and the classifier's
errors on originals do not count against the reconstruction. The attack sees neither the originals nor the classifier.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize

_TOP = 5
_CHUNK = 32  # images that the classifier gets at a time


@dataclass(frozen=True)
class Recognition:
    """Agreement between predictions on reconstructions and on originals.

    Args:
        top1: Share of reconstructions whose most probable class is that of their original.
        top5: Share of reconstructions whose five most probable classes include the most probable one of their original.
    """

    top1: float
    top5: float


def recognition(reconstructions: Tensor, originals: Tensor, classifier: nn.Module, side: int) -> Recognition:
    """Compare the classes that a classifier predicts for reconstructions and for their originals.

    A class that every image gets, such as that of a classifier without skill at this resolution, agrees always:
    compare the shares with those of constant images or noise.

    Args:
        reconstructions: Shape (N, C, H, W), values in [0, 1], in the order of the originals.
        originals: Shape (N, C, H, W).
        classifier: Returns logits of shape (N, classes) for images in [0, 1]; at least five classes. It is used in
            evaluation mode and left in the mode in which it came.
        side: Height and width of the classifier's input, to which the images are resized.

    Raises:
        ValueError: If there is no image, the shapes differ, or there are fewer than five classes.
    """
    if reconstructions.shape != originals.shape or not len(originals):
        raise ValueError(f"{tuple(reconstructions.shape)} reconstructions for {tuple(originals.shape)} originals")
    expected = _logits(originals, classifier, side).argmax(dim=1, keepdim=True)
    logits = _logits(reconstructions, classifier, side)
    if logits.shape[1] < _TOP:
        raise ValueError(f"{logits.shape[1]} classes; the agreement of the best {_TOP} needs as many")
    agrees = logits.topk(_TOP, dim=1).indices == expected
    return Recognition(float(agrees[:, 0].double().mean()), float(agrees.any(dim=1).double().mean()))


@torch.no_grad()
def _logits(images: Tensor, classifier: nn.Module, side: int) -> Tensor:
    """Logits of all images, clamped to [0, 1] and resized."""
    modes = {module: module.training for module in classifier.modules()}
    classifier.eval()
    try:
        parts = (chunk.clamp(0, 1) for chunk in torch.split(images, _CHUNK))
        return torch.cat([classifier(resize(part, [side, side], antialias=True)) for part in parts])
    finally:
        for module, mode in modes.items():
            module.training = mode
