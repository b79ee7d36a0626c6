# SPDX-License-Identifier: Apache-2.0
"""Image files opened safely, and whatever they hold turned into 8-bit RGB by stated rules."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageCms

from lightning_recon.files.faults import check_regular

# What the endings of torchvision's image folders stand for, and GIF, which people rename. Pillow knows many more, among
# them PostScript, for which it starts Ghostscript. (JPEG takes in the MPO of phones.)
FORMATS: Final = ("JPEG", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF")

_ORIENTATION = 0x0112  # of EXIF
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(source: Path | BytesIO, most_pixels: int | None = None) -> Image.Image:
    """Decode an image of one of the known formats, whatever its file is called.

    Args:
        source: a plain file, or its content.
        most_pixels: refuse an image that has more; None: what Pillow allows.

    Raises:
        OSError: there is none, it is no plain file, damaged, or of another format.
        ValueError: it has more pixels than an image has (about 179 million), or is damaged in another way. Decoders
            raise further types on damaged files.
    """
    if isinstance(source, Path):
        check_regular(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large images, odd EXIF, truncated colour profiles: read, or an error
        try:
            with Image.open(source, formats=FORMATS) as picture:
                if most_pixels is not None and picture.width * picture.height > most_pixels:
                    raise ValueError(f"too large: {picture.width} x {picture.height} pixels")
                picture.load()
        except Image.DecompressionBombError as error:
            raise ValueError(f"too large: {str(error).partition(',')[0]}") from error
    return picture


def to_rgb(picture: Image.Image) -> Image.Image:
    """The image upright, in RGB with 8 bits a channel.

    Transparent parts become black. 16-bit grey is divided by 257. Of 32-bit integers, values up to 255 are taken as 8
    bits, up to 65,535 as 16 bits, and those that reach 2^24 as 31 bits; floats from 0 to 1 are multiplied by 255.

    Args:
        picture: decoded, of any mode.

    Raises:
        ValueError: numbers of another range, where every guess would give a black or a white image; or NaN.
    """
    picture = _upright(picture)
    if picture.mode == "F":
        return _from_float(np.asarray(picture))
    if picture.mode.startswith("I"):  # Pillow's own conversion clips at 255 instead of scaling
        return _from_integers(np.asarray(picture).astype(np.int64), wide=picture.mode != "I" or picture.format == "PPM")
    if picture.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(picture, *profiles, outputMode="RGB")
        assert converted is not None  # it is not in place
        return converted
    if picture.has_transparency_data:
        plain = {"La": "LA", "RGBa": "RGBA"}.get(picture.mode, picture.mode)  # colours multiplied by their opacity
        picture = picture.convert(plain).convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    return picture.convert("RGB")


def _upright(picture: Image.Image) -> Image.Image:
    """The image turned as its EXIF says; what cannot be read of that is ignored."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            orientation = picture.getexif().get(_ORIENTATION)
        method = _TURNED.get(int(orientation)) if orientation is not None else None
    except Exception:  # Pillow's reader raises struct.error, SyntaxError, TypeError, ... on odd entries
        return picture
    if method is None:
        return picture
    turned = picture.transpose(method)
    turned.format = picture.format
    return turned


def _from_float(grey: np.ndarray) -> Image.Image:
    if not np.isfinite(grey).all():
        raise ValueError("float values with NaN or infinity: convert to 8 bit first")
    low, high = float(grey.min()), float(grey.max())
    if low < 0 or high > 1:
        raise ValueError(f"float values from {low:.4g} to {high:.4g}: convert to 8 bit first")
    return Image.fromarray((grey * 255).round().astype(np.uint8)).convert("RGB")


def _from_integers(grey: np.ndarray, wide: bool) -> Image.Image:
    """Integers of 16 bits (`wide`), or of 32, whose number of bits in use is told from the largest."""
    low, high = int(grey.min()), int(grey.max())
    if wide or 255 < high < 1 << 16:
        scale = 257
    elif high <= 255:
        scale = 1
    else:
        scale = 1 << 23
    if low < 0 or 1 << 16 <= high < 1 << 24:
        raise ValueError(f"integer values from {low} to {high}: convert to 8 bit first")
    return Image.fromarray((grey // scale).astype(np.uint8)).convert("RGB")
