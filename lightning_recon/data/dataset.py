# SPDX-License-Identifier: Apache-2.0
"""Images to train a target network on: cut out, read when asked for, with damaged files dealt with."""

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import Dataset

from lightning_recon.data.mask_cache import read_mask
from lightning_recon.data.masks import SubjectMasks
from lightning_recon.data.sources import Pictures, Selection, select
from lightning_recon.errors import UserError

logger = logging.getLogger("lightning_recon")


class Subjects(Dataset[tuple[Tensor, Tensor]]):
    """Cut-out images with labels, read when asked for; a damaged file is replaced by the next one."""

    def __init__(
        self,
        pictures: Pictures,
        order: list[int],
        image_size: int,
        masks: SubjectMasks,
        mask_cache: Path,
        named: set[str],
    ) -> None:
        """Name the images.

        Args:
            pictures: the source.
            order: indices into it.
            image_size: side in pixels.
            masks: whose stored masks to use.
            mask_cache: where they are stored.
            named: damaged files that a warning has named already.
        """
        self.pictures, self.order, self.image_size = pictures, order, image_size
        self.masks, self.mask_cache, self.named = masks, mask_cache, named

    def __len__(self) -> int:
        """How many images there are, readable or not."""
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The image with its subject on black, (3, H, W) float32 in [0, 1], and its label, int64."""
        count = len(self.order)
        onwards = (self.order[(index + step) % count] for step in range(count))
        chosen = select(self.pictures, onwards, 1, self.image_size)
        name_skipped(self.pictures, chosen, self.named)
        if not len(chosen.images):
            raise UserError(f"{self.pictures.origin} has no readable picture to train on: check the files")
        image = chosen.images[0]
        return image.float() / 255 * read_mask(image, self.masks, self.mask_cache), chosen.labels[0]

    def readable(self) -> Iterator[Tensor]:
        """Every readable image, (3, H, W) uint8; the others are named in a warning."""
        for index in self.order:
            chosen = select(self.pictures, [index], 1, self.image_size)
            name_skipped(self.pictures, chosen, self.named)
            yield from chosen.images


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """The same images by lists of indices, for a sampler that draws whole batches.

    A damaged file is left out: an image in its place would take part more often than its sampling rate says.
    """

    def __init__(self, subjects: Subjects) -> None:
        """Name the images.

        Args:
            subjects: one by one.
        """
        self.subjects = subjects

    def __len__(self) -> int:
        """How many images there are, readable or not."""
        return len(self.subjects)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """The readable images of a batch, (B, 3, H, W) float32 in [0, 1], and their labels, (B,); B may be 0."""
        source, size = self.subjects, self.subjects.image_size
        chosen = select(source.pictures, [source.order[index] for index in indices], len(indices), size)
        name_skipped(source.pictures, chosen, source.named)
        masks = [read_mask(image, source.masks, source.mask_cache) for image in chosen.images]
        subject = torch.stack(masks) if masks else torch.zeros(0, 1, size, size, dtype=torch.bool)
        return chosen.images.float() / 255 * subject, chosen.labels


def name_skipped(pictures: Pictures, selection: Selection, named: set[str]) -> None:
    """Warn of each damaged file, once."""
    for name, reason in selection.skipped:
        if name not in named:
            named.add(name)
            warn(f"{pictures.origin}: {name} cannot be read, skipped ({reason})")


@rank_zero_only
def warn(message: str) -> None:
    """Say it once, whatever the number of ranks."""
    logger.warning(message)
