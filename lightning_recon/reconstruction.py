# SPDX-License-Identifier: Apache-2.0
"""The result of an attack on one update."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    from lightning_recon.structure.clipping_budget import BudgetShare


# Source codes of files, as `results.json` names them.
CodecName = Literal["webp", "jxl", "avif", "jpeg2000", "tensor"]


@dataclass(frozen=True)
class ReceivedFile:
    """An image file that the server decoded from a digital code, as the server itself can tell.

    Args:
        codec: "webp" or "jxl", lossless; "avif", or "tensor", the codec of tensor operations, lossy; or "jpeg2000",
            either.
        rate: Message bits an input of its codeword.
        bits: Message bits of its codeword: file, length and checksum, filled up to what the rate carries.
        capacity: Bits that so many ±1 inputs can carry at most at the signal-to-noise ratio of the release.
    """

    codec: CodecName
    rate: float
    bits: int
    capacity: float


@dataclass(frozen=True)
class Mismatch:
    """What an update shows where it contradicts what was announced; None where it does not.

    Args:
        subjects: Whether subjects are cut out on black.
        noise_multiplier: Noise multiplier of each client.
        images: Number of images in the update.
    """

    subjects: bool | None = None
    noise_multiplier: float | None = None
    images: int | None = None

    def __bool__(self) -> bool:
        """Whether anything contradicts."""
        return self != NO_MISMATCH


NO_MISMATCH = Mismatch()


@dataclass(frozen=True)
class RoundsSeen:
    """In which rounds an attacker saw an image, where batches change from round to round.

    Args:
        first: Index of the round in which it was seen first.
        expected: Expected number of rounds that it was in.
    """

    first: int
    expected: float


@dataclass(frozen=True)
class Reconstruction:
    """What the attacker reconstructed from one update under one noise draw, in the attacker's own order.

    Args:
        client: Index of the update.
        draw: Index of the noise draw.
        images: Shape (M, C, H, W), values in [0, 1]: about as many as the update has victims.
        initial: The same before refinement.
        unresolved: Rows whose content no single image explains.
        evident: Whether the images explain more of the update than its noise does.
        labels: The labels that the attacker recovered, (victims,); None if the attack uses none.
        files: For each image the file that was received, or None where none was; None if nothing was sent digitally.
        share: The structure's share of the clipping budget, as the update shows it; None where that cannot be
            estimated.
        mismatch: Where the update contradicts the announcement.
        mean_image: The estimate of a victim without a reconstruction, shape (C, H, W), where the update shows that
            images are not as announced; None: that of the announcement.
        seen: For each image the rounds that it was seen in; None where all are in all rounds.
    """

    client: int
    draw: int
    images: Tensor
    initial: Tensor
    unresolved: int
    evident: bool = True
    labels: Tensor | None = None
    files: tuple[ReceivedFile | None, ...] | None = None
    share: "BudgetShare | None" = None
    mismatch: Mismatch = NO_MISMATCH
    mean_image: Tensor | None = None
    seen: tuple[RoundsSeen, ...] | None = None

    def compact(self) -> "Reconstruction":
        """The same with tensors of their own: a part of a larger tensor is sent to other ranks with all of it."""
        labels = None if self.labels is None else self.labels.clone()
        mean_image = None if self.mean_image is None else self.mean_image.clone()
        images, initial = self.images.clone(), self.initial.clone()
        return replace(self, images=images, initial=initial, labels=labels, mean_image=mean_image)
