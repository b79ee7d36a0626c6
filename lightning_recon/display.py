# SPDX-License-Identifier: Apache-2.0
"""Show images of any format as 8-bit RGB: which channels are drawn, and which values become black and white."""

import torch
from torch import Tensor

# Shares of the values of deep images that are drawn black and white.
_DARKEST, _BRIGHTEST = 0.005, 0.995
_MOST_VALUES = 1 << 20  # from which they are estimated

Window = tuple[float, float]


def as_rgb(images: Tensor) -> Tensor:
    """Three channels to draw: grey as it is, of more than three channels the first three, of two the first one.

    Args:
        images: Shape (..., C, H, W).

    Returns:
        Shape (..., 3, H, W).
    """
    channels = images.shape[-3]
    if channels == 3:
        return images
    if channels > 3:
        return images[..., :3, :, :]
    return images[..., :1, :, :].expand(*images.shape[:-3], 3, -1, -1)


def window_of(images: Tensor, bit_depth: int) -> Window | None:
    """The values that become black and white where images have more than 8 bits; None for 8 bits: 0 and 1.

    Args:
        images: True images if they are known, any shape, values in [0, 1].
        bit_depth: Bits of a value.
    """
    values = images.detach().float().flatten()
    if bit_depth == 8 or not values.numel():
        return None
    values = values[:: max(1, values.numel() // _MOST_VALUES)]
    low, high = torch.quantile(values[: 2 * _MOST_VALUES], torch.tensor([_DARKEST, _BRIGHTEST]).to(values)).tolist()
    return (low, high) if high > low else None


def windowed(images: Tensor, window: Window | None) -> Tensor:
    """Values in [0, 1] relative to the window; the same shape."""
    if window is None:
        return images
    return ((images - window[0]) / (window[1] - window[0])).clamp(0, 1)


def visible(image: Tensor) -> Tensor:
    """An image of integers, (C, H, W), as (3, H, W) uint8; deep ones relative to their own window."""
    if image.dtype == torch.uint8:
        return as_rgb(image)
    largest = max(1, int(image.max()))
    values = image.float() / largest
    return as_rgb((windowed(values, window_of(values, 16)) * 255).round().to(torch.uint8))
