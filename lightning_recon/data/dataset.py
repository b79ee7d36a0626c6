# SPDX-License-Identifier: Apache-2.0
"""Data sets for training a target network: images with their subject on black, read lazily, without damaged files."""

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import Dataset

from lightning_recon.data.mask_cache import read_mask
from lightning_recon.data.masks import SubjectMasks
from lightning_recon.data.sources import ImageSource, Selection, select
from lightning_recon.data.targets import Targets
from lightning_recon.errors import UserError
from lightning_recon.image_format import ImageFormat

logger = logging.getLogger("lightning_recon")


class SubjectImages(Dataset[tuple[Tensor, Tensor]]):
    """Images with their subject on black, and labels or other targets; a damaged file is replaced by the next one."""

    def __init__(
        self,
        source: ImageSource,
        order: list[int],
        image_format: ImageFormat,
        masks: SubjectMasks,
        mask_cache: Path,
        warned: set[str],
        targets: Targets = Targets("labels"),  # noqa: B008 - frozen
    ) -> None:
        """Store the arguments; nothing is read.

        Args:
            source: where the images come from.
            order: indices into it.
            image_format: their format.
            masks: how subjects were found; only stored masks are used.
            mask_cache: where masks are stored.
            warned: damaged files about which a warning was given; shared and extended.
            targets: where the targets come from; images stay whole where these are masks.
        """
        self.source, self.order, self.image_format = source, order, image_format
        self.masks, self.mask_cache, self.warned, self.targets = masks, mask_cache, warned, targets

    def __len__(self) -> int:
        """Number of images, readable or not."""
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The image with its subject on black, (C, H, W) float32 in [0, 1], and its label, int64, or other target."""
        count = len(self.order)
        onwards = (self.order[(index + step) % count] for step in range(count))
        chosen = select(self.source, onwards, 1, self.image_format)
        warn_skipped(self.source, chosen, self.warned)
        if not len(chosen.images):
            raise UserError(f"{self.source.origin} has no readable image to train on: check the files")
        images, targets = self.with_targets(chosen)
        return images[0], targets[0]

    def with_targets(self, chosen: Selection) -> tuple[Tensor, Tensor]:
        """Selected images as a client trains on them, (B, C, H, W) float32 in [0, 1], with their targets (B, ...)."""
        found = [read_mask(image, self.masks, self.mask_cache) for image in chosen.images]
        masks = torch.stack(found) if found else torch.zeros(0, 1, *self.image_format.size, dtype=torch.bool)
        targets, images = self.targets.of(chosen.names, chosen.labels, masks), self.image_format.values(chosen.images)
        return images if self.targets.whole_images else images * masks, targets

    def readable(self) -> Iterator[Tensor]:
        """Every readable image, (C, H, W), uint8 or int32; a warning names the others."""
        for index in self.order:
            chosen = select(self.source, [index], 1, self.image_format)
            warn_skipped(self.source, chosen, self.warned)
            yield from chosen.images


class SubjectBatches(Dataset[tuple[Tensor, Tensor]]):
    """The same images by lists of indices, for a sampler that draws whole batches.

    A damaged file is left out: a replacement would take part more often than its sampling rate allows.
    """

    def __init__(self, subjects: SubjectImages) -> None:
        """Store the images.

        Args:
            subjects: the images one by one.
        """
        self.subjects = subjects

    def __len__(self) -> int:
        """Number of images, readable or not."""
        return len(self.subjects)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """The readable images of a batch, (B, C, H, W) float32 in [0, 1], and their targets, (B, ...); B may be 0."""
        subjects = self.subjects
        chosen = select(
            subjects.source, [subjects.order[index] for index in indices], len(indices), subjects.image_format
        )
        warn_skipped(subjects.source, chosen, subjects.warned)
        return subjects.with_targets(chosen)


def warn_skipped(source: ImageSource, selection: Selection, warned: set[str]) -> None:
    """Warn once of each damaged file.

    Args:
        source: where the images come from.
        selection: what was read of it.
        warned: files about which a warning was given; extended.
    """
    for name, reason in selection.skipped:
        if name not in warned:
            warned.add(name)
            warn(f"{source.origin}: {name} cannot be read, skipped ({reason})")


@rank_zero_only
def warn(message: str) -> None:
    """Log a warning on the first rank only."""
    logger.warning(message)
