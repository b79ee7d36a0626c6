# SPDX-License-Identifier: Apache-2.0
"""Photographs beside those of the clients, among which scores look for the original of a reconstruction."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from lightning_recon.data.sources import ImageSource, open_folder, open_source, select
from lightning_recon.image_format import ImageFormat


def gallery_photographs(
    folder: Path | None, source: ImageSource, rest: Iterable[int], count: int, image_format: ImageFormat
) -> Tensor:
    """Read up to `count` photographs: those of the folder, then those of the clients' source, then the bundled ones.

    Args:
        folder: folder of photographs; None: none.
        source: where the clients' images come from.
        rest: indices of its images that no client holds.
        count: number of images wanted; fewer are returned if there are not enough.
        image_format: their format.

    Returns:
        (M, C, H, W), uint8, or int32 for more than 8 bits.

    Raises:
        UserError: the folder is missing or holds no images.
    """
    bundled, deep = open_source("samples", None), image_format.bit_depth > 8 or image_format.channels not in (1, 3)
    wanted = [(source, rest)]
    if source.origin != bundled.origin and image_format.channels in (1, 3):
        wanted.append((bundled, range(len(bundled))))
    if folder is not None:
        of_folder = open_folder(folder, value_range=source.value_range, deep=deep, gallery=True)
        wanted = [(of_folder, range(len(of_folder))), *wanted]
    found = torch.empty(0, *image_format.shape, dtype=image_format.dtype)
    for one, order in wanted:
        if len(found) < count:
            found = torch.cat([found, select(one, order, count - len(found), image_format).images])
    return found
