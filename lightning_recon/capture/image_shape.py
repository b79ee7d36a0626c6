# SPDX-License-Identifier: Apache-2.0
"""The shape of images from the options of captures."""

from collections.abc import Sequence

from lightning_recon.errors import UserError
from lightning_recon.ranges import CHANNELS, SIDE, check_ranges


def image_shape(channels: int, image_size: int | Sequence[int], prefix: str = "") -> tuple[int, int, int]:
    """Channels, height and width of an image.

    Args:
        channels: number of channels.
        image_size: side of square images, or height and width, in pixels.
        prefix: what stands before the options' names in messages.

    Raises:
        UserError: a number is out of range, or there are not two sides.
    """
    sides = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
    if len(sides) != 2:
        raise UserError(f"{prefix}image_size is {sides}: give one number, or height and width")
    check_ranges(prefix, channels=(channels, CHANNELS))
    for side in sides:
        check_ranges(prefix, image_size=(side, SIDE))
    return channels, sides[0], sides[1]
