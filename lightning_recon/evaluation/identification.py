# SPDX-License-Identifier: Apache-2.0
"""Identification: whether a reconstruction is nearer to its own original than to every other image of a gallery.

PSNR does not say whether a person or an object can be told apart from others. Identification does: whoever holds the
gallery and compares a reconstruction with each of its images finds the right one, or does not. The attack sees neither
the gallery nor the originals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recon.evaluation.scoring import Scored, Truth
from lightning_recon.files.digests import sha256
from lightning_recon.image_format import ImageFormat
from lightning_recon.reconstruction import Reconstruction

MOST_IMAGES = 1000
# The side to which images are averaged before they are compared, see scripts/identification_distance.py.
_SIDE = 16
_TIE = 1e-9  # what rounding may leave between equal distances of normalised features


@dataclass(frozen=True)
class Gallery:
    """The images among which originals are searched, bit-exact duplicates once.

    Args:
        features: What is compared of each image, shape (N, features).
        places: Row of each image, by a digest of its pixels.
    """

    features: Tensor
    places: Mapping[str, int]

    @classmethod
    def of(cls, truths: Sequence[Truth], others: Tensor, image_format: ImageFormat | None = None) -> "Gallery":
        """Collect the gallery.

        Args:
            truths: Each client's batch.
            others: Further photographs, shape (M, C, H, W), integers of the format. Where clients cut
                subjects out, each is cut out along the mask of one of the clients' images, so that no silhouette
                belongs to an original alone. Of more than `MOST_IMAGES` images in all, the last are left out.
            image_format: The format of all images; None: 8 bits a value.
        """
        features: dict[str, Tensor] = {}
        masks = torch.cat([truth.masks for truth in truths]).cpu()
        for truth in truths:
            for image in truth.images.cpu():
                features.setdefault(sha256(image), _features(image))
        known = {sha256(photograph.cpu()) for truth in truths for photograph in truth.photographs}
        for place, photograph in enumerate(others):
            if len(features) >= MOST_IMAGES:
                break
            whole = photograph / (255 if image_format is None else image_format.largest)
            if sha256(whole) not in known:
                image = whole * masks[place % len(masks)]
                features.setdefault(sha256(image), _features(image))
        return cls(torch.stack(list(features.values())), {digest: place for place, digest in enumerate(features)})

    def __len__(self) -> int:
        """Number of images, N."""
        return len(self.features)

    def identifies(self, images: Tensor, originals: Tensor) -> list[bool]:
        """Whether each image is nearer to its own original than to all others; a tie is not an identification.

        Args:
            images: Reconstructions, shape (B, C, H, W), values in [0, 1].
            originals: Their originals, which the gallery holds, shape (B, C, H, W).
        """
        found = []
        for image, original in zip(images.cpu(), originals.cpu(), strict=True):
            distances = torch.linalg.vector_norm(self.features - _features(image), dim=1)
            own = self.places[sha256(original)]
            others = torch.cat([distances[:own], distances[own + 1 :]])
            found.append(bool((distances[own] < others - _TIE).all()))
        return found


def identified(scored: Sequence[Scored], truths: Sequence[Truth], gallery: Gallery) -> list[Scored]:
    """Add to every victim's score whether its reconstruction identifies it.

    Args:
        scored: Every client and draw after matching.
        truths: The batch of each of them, in the same order.
        gallery: What is searched.
    """
    found = []
    for one, truth in zip(scored, truths, strict=True):
        flags = gallery.identifies(one.images, truth.images)
        victims = [replace(victim, identified=flag) for victim, flag in zip(one.victims, flags, strict=True)]
        found.append(replace(one, victims=victims))
    return found


def guess_success(found: Sequence[Reconstruction], truths: Sequence[Truth], gallery: Gallery) -> float:
    """Probability with which a victim is identified by images that are guessed without the releases, at most.

    Reconstructions of an update are matched with its victims, so that a guess may be any of them, and an attack that
    returns more images than there are victims has as many guesses.

    Args:
        found: Every client and draw.
        truths: The batch of each of them, in the same order.
        gallery: What is searched.
    """
    guesses = max(max(len(truth.images), len(one.images)) for one, truth in zip(found, truths, strict=True))
    return min(1.0, guesses / len(gallery))


def _features(image: Tensor) -> Tensor:
    """What is compared of an image: averages over squares, without their mean and contrast, shape (features,)."""
    small = F.adaptive_avg_pool2d(image.double(), _SIDE)
    return F.normalize((small - small.mean((1, 2), keepdim=True)).flatten(), dim=0)
