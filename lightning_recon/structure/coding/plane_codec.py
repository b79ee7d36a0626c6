# SPDX-License-Identifier: Apache-2.0
"""Compression of images of more than 8 bits, or of other than 1 or 3 channels: each channel as JPEG 2000.

Both sides know the size of the images and the settings, so the headers, which hold nothing else, are left out and put
back. Lossless channels are differences to the channel before where that is shorter; a byte for each tells.
"""

import io
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, features

from lightning_recon.errors import UserError
from lightning_recon.image_format import ImageFormat

_LENGTH = 3  # bytes of the length of a channel's data
_DATA = b"\xff\x90"  # the marker after the header
_END = b"\xff\xd9"  # the marker at the end
# Qualities of a lossy file, in decibels relative to 16 bits.
_WORST, _BEST, _STEP = 10.0, 120.0, 0.25

Plane = npt.NDArray[Any]


def lossless_planes(planes: Plane, image_format: ImageFormat) -> bytes:
    """All channels, shape (C, H, W), exactly."""
    parts, before = [], None
    for plane in planes:
        plain = _encoded(plane, image_format, None)
        data, kind = plain, 0
        if before is not None:
            # Modulo the number of values, so that differences have as many bits; 0 becomes the middle of them.
            shifted = (plane.astype(np.int64) - before + _middle(image_format)) % (image_format.largest + 1)
            difference = _encoded(shifted, image_format, None)
            data, kind = min((plain, 0), (difference, 1), key=lambda one: len(one[0]))
        parts.append(bytes([kind]) + data)
        before = plane
    return _joined(parts)


def lossy_planes(planes: Plane, image_format: ImageFormat, most: int) -> bytes:
    """All channels, shape (C, H, W), with the same mean squared error, the least for which they fit into `most` bytes.

    Returns:
        The data; nothing, if not even the worst quality fits.
    """
    best, low, high = b"", 0, round((_BEST - _WORST) / _STEP)
    while low <= high:
        step = (low + high) // 2
        quality = _WORST + _STEP * step
        data = _joined([b"\0" + _encoded(plane, image_format, quality) for plane in planes])
        if len(data) <= most:
            best, low = data, step + 1
        else:
            high = step - 1
    return best


def decoded_planes(data: bytes, exact: bool, image_format: ImageFormat) -> Plane:
    """All channels of `lossless_planes` (`exact`) or `lossy_planes`, shape (C, H, W), int64."""
    found: list[Plane] = []
    for part in _parted(data, image_format.channels):
        kind, body = part[0], part[1:]
        file = _header(image_format, exact) + body + _END
        with Image.open(io.BytesIO(file), formats=["JPEG2000"]) as opened:
            values = np.asarray(opened).astype(np.int64)
        if kind == 1:
            values = (values + found[-1] - _middle(image_format)) % (image_format.largest + 1)
        found.append(values.clip(0, image_format.largest))
    return np.stack(found)


def _middle(image_format: ImageFormat) -> int:
    return 1 << image_format.bit_depth - 1


def _encoded(plane: Plane, image_format: ImageFormat, quality: float | None) -> bytes:
    """The data of one channel without header; losslessly without a quality."""
    file = _file(plane, image_format, quality)
    return file[file.index(_DATA) : -len(_END)]


@lru_cache(maxsize=8)
def _header(image_format: ImageFormat, exact: bool) -> bytes:
    file = _file(np.zeros(image_format.size, np.int64), image_format, None if exact else _WORST)
    return file[: file.index(_DATA)]


def _file(plane: Plane, image_format: ImageFormat, quality: float | None) -> bytes:
    if not features.check("jpg_2000"):
        raise UserError("this Pillow writes no JPEG 2000: install the wheel from PyPI")
    image = Image.fromarray(plane.astype(np.uint8 if image_format.bit_depth == 8 else np.uint16))
    file, options = io.BytesIO(), dict[str, Any](irreversible=False)
    if quality is not None:
        options = {"irreversible": True, "quality_mode": "dB", "quality_layers": [quality]}
    image.save(file, "JPEG2000", no_jp2=True, **options)
    return file.getvalue()


def _joined(parts: list[bytes]) -> bytes:
    """Channels one after the other; the last one needs no length."""
    return b"".join(len(part).to_bytes(_LENGTH, "big") + part for part in parts[:-1]) + parts[-1]


def _parted(data: bytes, count: int) -> list[bytes]:
    parts = []
    for _ in range(count - 1):
        length = int.from_bytes(data[:_LENGTH], "big")
        parts.append(data[_LENGTH : _LENGTH + length])
        data = data[_LENGTH + length :]
    return [*parts, data]
