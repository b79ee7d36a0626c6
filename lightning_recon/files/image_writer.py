# SPDX-License-Identifier: Apache-2.0
"""Write images as PNG in the depth of their source, and beside it as NumPy array where PNG has no such format."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor
from torchvision.utils import save_image

from lightning_recon.display import Window, as_rgb
from lightning_recon.files.atomic import write

# Keyword of the text in a PNG file that tells between which values of [0, 1] it is meant to be shown.
WINDOW = "window"
_HEADER = 33  # bytes of a PNG file up to the end of its first chunk


def write_image(path: Path, image: Tensor, bit_depth: int = 8, window: Window | None = None) -> None:
    """Write an image, atomically.

    PNG holds grey and RGB of 8 or 16 bits; of more than 8 bits the largest value is stored as 65,535. Of images with
    another number of channels it holds what `display.as_rgb` shows, and a .npy file beside it all channels as integers.

    Args:
        path: ends in .png.
        image: (C, H, W), values in [0, 1].
        bit_depth: bits of a value.
        window: values between which the image is meant to be shown, stored as text in the PNG file; None: 0 and 1.
    """
    channels = image.shape[0]
    if channels not in (1, 3):
        largest = (1 << bit_depth) - 1
        kind = np.uint8 if bit_depth == 8 else np.uint16
        integers = (image.detach().cpu().clamp(0, 1) * largest).round().numpy().astype(kind)
        write(path.with_suffix(".npy"), lambda partial: _save_array(partial, integers))
        image = as_rgb(image)
    if bit_depth == 8 and channels != 1:
        write(path, lambda partial: save_image(image, partial, format="png"))
        return
    content = _png(image, 255 if bit_depth == 8 else 65535)
    if window is not None:
        content = content[:_HEADER] + _text(f"{window[0]:.6f} {window[1]:.6f}") + content[_HEADER:]
    write(path, lambda partial: partial.write_bytes(content))


def _save_array(path: Path, integers: np.ndarray) -> None:
    with path.open("wb") as file:  # np.save appends an extension to a name
        np.save(file, integers)


def _png(image: Tensor, largest: int) -> bytes:
    """An image with 1 or 3 channels as PNG, its values as integers up to `largest`."""
    kind = np.uint8 if largest == 255 else np.uint16
    integers = (image.detach().cpu().clamp(0, 1) * largest).round().numpy().astype(kind)
    # OpenCV takes blue, green and red.
    pixels = integers[0] if len(integers) == 1 else np.ascontiguousarray(integers[::-1].transpose(1, 2, 0))
    done, content = cv2.imencode(".png", pixels)
    assert done
    return bytes(content.tobytes())


def _text(content: str) -> bytes:
    """A chunk of text of a PNG file."""
    data = b"tEXt" + WINDOW.encode() + b"\0" + content.encode()
    return struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
