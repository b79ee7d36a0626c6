# SPDX-License-Identifier: Apache-2.0
"""Lossless JPEG XL, an extra: fewer bytes than lossless WebP for photographs, and less time to make them."""

from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from lightning_recon.errors import UserError

# What a codestream without container begins with.
_SIGNATURE = b"\xff\x0a"
# Of 1 to 10. At 10 photographs took three times as long, and no fewer bytes.
_EFFORT = 9
# Releases of libjxl may write other bytes for the same image, but read each other's; the number of threads is fixed so
# that the bytes depend on nothing else.
_THREADS = 1


def chosen(wanted: bool | None) -> bool:
    """Whether to write JPEG XL: as wanted, or if the extra is installed.

    Raises:
        UserError: It is wanted, but the extra is not installed.
    """
    if wanted and not _installed():
        raise _missing()
    return _installed() if wanted is None else wanted


def written_jpeg_xl(pixels: npt.NDArray[np.uint8]) -> bytes:
    """An image losslessly, shape (H, W, 3), without container and signature.

    Raises:
        UserError: The extra is not installed.
    """
    if not _installed():
        raise _missing()
    from imagecodecs import jpegxl_encode

    file = jpegxl_encode(pixels, lossless=True, effort=_EFFORT, usecontainer=False, numthreads=_THREADS)
    return bytes(file).removeprefix(_SIGNATURE)


def read_jpeg_xl(data: bytes) -> npt.NDArray[np.uint8]:
    """The image of `written_jpeg_xl`, shape (H, W, 3).

    Raises:
        UserError: The extra is not installed.
    """
    if not _installed():
        raise _missing()
    from imagecodecs import jpegxl_decode

    return np.asarray(jpegxl_decode(_SIGNATURE + data, numthreads=_THREADS))


def _installed() -> bool:
    return find_spec("imagecodecs") is not None


def _missing() -> UserError:
    return UserError(
        "lossless images are sent as JPEG XL, for which this environment lacks imagecodecs: install "
        "'lightning_recon[jxl]', or let the payload be made with --model.structure.jpeg_xl false"
    )
