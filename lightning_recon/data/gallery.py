# SPDX-License-Identifier: Apache-2.0
"""Photographs beside those of the clients, among which scores look for the original of a reconstruction."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from lightning_recon.data.sources import ImageSource, open_folder, open_source, select


def gallery_photographs(folder: Path | None, source: ImageSource, rest: Iterable[int], count: int, size: int) -> Tensor:
    """Read up to `count` photographs: those of the folder, then those of the clients' source, then the bundled ones.

    Args:
        folder: folder of photographs; None: none.
        source: where the clients' images come from.
        rest: indices of its images that no client holds.
        count: number of images wanted; fewer are returned if there are not enough.
        size: side of the square images, in pixels.

    Returns:
        (M, 3, size, size), uint8.

    Raises:
        UserError: the folder is missing or holds no images.
    """
    bundled = open_source("samples", None)
    wanted = [(source, rest)] if source.origin == bundled.origin else [(source, rest), (bundled, range(len(bundled)))]
    if folder is not None:
        of_folder = open_folder(folder)
        wanted = [(of_folder, range(len(of_folder))), *wanted]
    found = torch.empty(0, 3, size, size, dtype=torch.uint8)
    for one, order in wanted:
        if len(found) < count:
            found = torch.cat([found, select(one, order, count - len(found), size).images])
    return found
