# SPDX-License-Identifier: Apache-2.0
"""Convert a decoded image to the format that clients train on: channels, height, width, and bit depth."""

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from lightning_recon.data.array_files import Numbers
from lightning_recon.data.image_files import to_rgb, upright
from lightning_recon.image_format import ImageFormat

# Luminance of red, green and blue as Pillow and JPEG weigh them (ITU-R BT.601).
_LUMINANCE = (0.299, 0.587, 0.114)


def fitted(
    image: Image.Image | Numbers, image_format: ImageFormat, value_range: tuple[float, float] | None = None
) -> Tensor:
    """Turn upright, crop the center to the format's proportions, and resize (bilinear, antialiased).

    Grey images become RGB by repetition, and RGB images grey by their luminance; other numbers of channels must be
    those of the format. Transparent parts become black unless the format has 4 channels.

    Args:
        image: decoded image of any mode, or numbers.
        image_format: the format.
        value_range: numbers that mean 0 and 1 in images of more than 8 bits or of floats; numbers beyond are set to the
            nearest of the two. None: the range of the file's type or header.

    Returns:
        (C, H, W), uint8, or int32 for more than 8 bits.

    Raises:
        ValueError: numbers out of their range, an unknown range, or another number of channels.
    """
    eight_bits = isinstance(image, Image.Image) and not _wide(image)
    plain = isinstance(image, Image.Image) and (value_range is None or eight_bits)
    if plain and image_format.bit_depth == 8 and image_format.channels in (1, 3):
        assert isinstance(image, Image.Image)
        shown = to_rgb(image)
        # fit() crops first, so that an extremely long image does not become huge.
        fit = ImageOps.fit(
            shown.convert("L") if image_format.channels == 1 else shown,
            (image_format.width, image_format.height),
            method=Image.Resampling.BILINEAR,
        )
        return torch.Tensor(transforms.pil_to_tensor(fit)).to(torch.uint8)
    numbers = image if isinstance(image, Numbers) else _numbers_of(image, image_format.channels)
    channels = _with_channels(
        _scaled(numbers, image_format.channels, None if eight_bits else value_range),
        image_format.channels,
        numbers.alpha,
    )
    planes = [_resized(channels[..., one], image_format, numbers.turn) for one in range(image_format.channels)]
    return image_format.integers(torch.from_numpy(np.stack(planes)))


def _wide(image: Image.Image) -> bool:
    """Whether the image has more than 8 bits a channel."""
    return image.mode == "F" or image.mode.startswith("I")


def _numbers_of(image: Image.Image, channels: int) -> Numbers:
    """The numbers of an image that Pillow decoded."""
    image = upright(image)
    if image.mode == "F":
        return Numbers(np.asarray(image), None)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        high = int(values.max(initial=0))
        if image.mode != "I" or image.format == "PPM" or 255 < high < 1 << 16:
            return Numbers(values, (0, 65535))
        if high <= 255:
            return Numbers(values, (0, 255))
        return Numbers(values, (0, (1 << 31) - 1) if high >= 1 << 24 else None)
    if channels == 4 and image.mode == "RGBA":
        return Numbers(np.asarray(image), (0, 255))
    if channels == 4:
        raise ValueError(f"an image of mode {image.mode}, and 4 channels are asked for: give RGBA, TIFF or NPY")
    shown = to_rgb(image)
    return Numbers(np.asarray(shown.convert("L") if channels == 1 else shown), (0, 255))


def _scaled(numbers: Numbers, channels: int, value_range: tuple[float, float] | None) -> npt.NDArray[np.float64]:
    """(H, W, C), values in [0, 1]."""
    values = _channels_last(numbers.values, channels).astype(np.float64)
    if not values.size:
        raise ValueError("an image without pixels")
    if not np.isfinite(values).all():
        raise ValueError("values with NaN or infinity: replace them first")
    low, high = float(values.min()), float(values.max())
    limits = value_range or numbers.limits
    if limits is None and numbers.values.dtype.kind == "f":
        limits = (0, 1)
    if limits is None:
        raise ValueError(
            f"{numbers.values.dtype} values from {low:.4g} to {high:.4g}, whose range the file does not tell: give "
            "--data.value_range [LOW, HIGH]"
        )
    if value_range is None and not (min(limits) <= low and high <= max(limits)):
        raise ValueError(
            f"values from {low:.4g} to {high:.4g} exceed {limits[0]:.4g} to {limits[1]:.4g}: give --data.value_range "
            "[LOW, HIGH]"
        )
    return np.clip((values - limits[0]) / (limits[1] - limits[0]), 0, 1)


def _channels_last(values: npt.NDArray[np.generic], channels: int) -> npt.NDArray[np.generic]:
    if values.ndim == 2:
        return values[..., None]
    if values.ndim != 3:
        raise ValueError(f"values of shape {values.shape}: give (H, W), (H, W, C) or (C, H, W)")
    first, last = values.shape[0] == channels, values.shape[2] == channels
    if first and last:
        raise ValueError(f"values of shape {values.shape}, whose axis of channels is not clear: give another format")
    if first:
        return np.moveaxis(values, 0, 2)
    return values


def _with_channels(values: npt.NDArray[np.float64], channels: int, alpha: bool) -> npt.NDArray[np.float64]:
    """(H, W, C) with so many channels."""
    if alpha and channels < values.shape[2]:
        values = values[..., :-1] * values[..., -1:]
    found = values.shape[2]
    if found == channels:
        return values
    if found == 1 and channels == 3:
        return np.repeat(values, 3, axis=2)
    if found == 3 and channels == 1:
        return np.asarray(values @ np.array(_LUMINANCE)[:, None])
    raise ValueError(f"{found} channels, and {channels} are asked for: set --data.channels {found}")


def _resized(
    plane: npt.NDArray[np.float64], image_format: ImageFormat, turn: Image.Transpose | None
) -> npt.NDArray[np.float32]:
    image = Image.fromarray(plane.astype(np.float32))
    image = image if turn is None else image.transpose(turn)
    fit = ImageOps.fit(image, (image_format.width, image_format.height), method=Image.Resampling.BILINEAR)
    return np.array(fit, dtype=np.float32)
