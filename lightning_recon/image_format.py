# SPDX-License-Identifier: Apache-2.0
"""The format of images: number of channels, height, width, and bit depth."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageFormat:
    """What all images of a task have in common.

    Args:
        channels: 1 for grey, 3 for red, green and blue; any other number has no colours.
        height: in pixels.
        width: in pixels.
        bit_depth: bits of a value, 8 to 16: values are multiples of 1 / (2^bits - 1) in [0, 1].
    """

    channels: int
    height: int
    width: int
    bit_depth: int = 8

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width, as of a tensor."""
        return self.channels, self.height, self.width

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def pixels(self) -> int:
        """Number of pixels, each with one value a channel."""
        return self.height * self.width

    @property
    def raw_bits(self) -> int:
        """Bits of a pixel without compression: 24 for 8-bit RGB."""
        return self.channels * self.bit_depth

    @property
    def largest(self) -> int:
        """The integer that stands for 1: 255 for 8 bits, 65,535 for 16."""
        return (1 << self.bit_depth) - 1

    @property
    def dtype(self) -> torch.dtype:
        """Type of the integers: uint8, or int32 where 8 bits are not enough."""
        return torch.uint8 if self.bit_depth == 8 else torch.int32

    def integers(self, images: Tensor) -> Tensor:
        """Values in [0, 1] rounded to integers from 0 to `largest`; the same shape."""
        return (images.clamp(0, 1) * self.largest).round().to(self.dtype)

    def values(self, integers: Tensor) -> Tensor:
        """The inverse: float32 in [0, 1]; the same shape."""
        return integers.float() / self.largest


def rgb(height: int, width: int | None = None) -> ImageFormat:
    """The format of 8-bit RGB images; square ones without `width`."""
    return ImageFormat(3, height, height if width is None else width)


def format_of(image: Tensor, bit_depth: int = 8) -> ImageFormat:
    """The format of one image, (C, H, W)."""
    channels, height, width = image.shape
    return ImageFormat(channels, height, width, bit_depth)
