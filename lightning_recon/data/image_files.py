# SPDX-License-Identifier: Apache-2.0
"""Open image files safely, and convert every kind of image to 8-bit RGB."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageCms

from lightning_recon.files.faults import check_regular

# The formats of torchvision's image folders, GIF and AVIF. Pillow reads many more, among them PostScript, for which it
# starts Ghostscript. (JPEG includes the MPO files of phones.)
FORMATS: Final = ("JPEG", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF", "AVIF")

_ORIENTATION = 0x0112  # of EXIF
_BITS_PER_SAMPLE, _PLANAR_CONFIGURATION, _SEPARATE = 258, 284, 2  # of TIFF
_ORIENTED = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # metadata in which Pillow looks for it
_GIVE_A_RANGE = "give --data.value_range [LOW, HIGH], or convert to 8 bit"
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: Path | BytesIO, max_pixels: int | None = None, decode: bool = True) -> Image.Image:
    """Decode an image of one of the allowed formats, whatever the file's extension.

    Args:
        source: a regular file, or its content.
        max_pixels: largest accepted number of pixels; None: Pillow's limit of about 179 million.
        decode: whether to decode the values; if not, only the header is read.

    Raises:
        OSError: the file is missing, not a regular file, damaged, or of another format.
        ValueError: the image has too many pixels, or is damaged in another way. Decoders raise other types, too, on
            damaged files.
    """
    if isinstance(source, Path):
        check_regular(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # large images, odd EXIF, truncated color profiles: readable, or an error
        try:
            with Image.open(source, formats=FORMATS) as image:
                if max_pixels is not None and image.width * image.height > max_pixels:
                    raise ValueError(f"too large: {image.width} x {image.height} pixels")
                if decode and has_deep_planes(image):
                    raise ValueError(
                        "a TIFF with each channel in a plane of more than 8 bits: give --data.bit_depth 16, or store "
                        "its channels together"
                    )
                if decode:
                    image.load()
        except Image.DecompressionBombError as error:
            raise ValueError(f"too large: {str(error).partition(',')[0]}") from error
    return image


def has_deep_planes(image: Image.Image) -> bool:
    """Whether a TIFF has each of several channels in a plane of more than 8 bits, which Pillow reads as bytes."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, ())
    several = isinstance(bits, tuple) and len(bits) > 1
    return several and max(bits) > 8 and tags.get(_PLANAR_CONFIGURATION) == _SEPARATE


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to upright RGB with 8 bits per channel.

    Transparent parts become black. 16-bit grey is divided by 257. 32-bit integers are read as 8 bits if the largest is
    at most 255, as 16 bits if it is at most 65,535, and as 31 bits if it is at least 2^24. Floats from 0 to 1 are
    multiplied by 255.

    Args:
        image: decoded image of any mode.

    Raises:
        ValueError: the values have another range, so that the image would become black or white, or include NaN.
    """
    image = upright(image)
    if image.mode == "F":
        return _from_float(np.asarray(image))
    if image.mode.startswith("I"):  # Pillow's own conversion clips at 255 instead of scaling
        return _from_integers(np.asarray(image).astype(np.int64), wide=image.mode != "I" or image.format == "PPM")
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert converted is not None  # because the conversion is not in place
        return converted
    if image.has_transparency_data:
        plain = {"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)  # premultiplied alpha
        image = image.convert(plain).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("RGB")


def orientation_of(image: Image.Image) -> Image.Transpose | None:
    """How the orientation in the image's EXIF data turns it upright; None for upright and for unreadable EXIF data."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            orientation = image.getexif().get(_ORIENTATION)
        return _TURNED.get(int(orientation)) if orientation is not None else None
    except Exception:  # Pillow's reader raises struct.error, SyntaxError, TypeError, ... on odd entries
        return None


def upright(image: Image.Image) -> Image.Image:
    """Apply the orientation in the image's EXIF data; unreadable EXIF data are ignored.

    What was turned has no such data any more, so that nothing turns it again.
    """
    method = orientation_of(image)
    if method is None:
        return image
    turned = image.transpose(method)
    turned.format = image.format
    for name in _ORIENTED:
        turned.info.pop(name, None)
    return turned


def _from_float(grey: np.ndarray) -> Image.Image:
    if not np.isfinite(grey).all():
        raise ValueError("float values with NaN or infinity: replace them first")
    low, high = float(grey.min()), float(grey.max())
    if low < 0 or high > 1:
        raise ValueError(f"float values from {low:.4g} to {high:.4g}: {_GIVE_A_RANGE}")
    return Image.fromarray((grey * 255).round().astype(np.uint8)).convert("RGB")


def _from_integers(grey: np.ndarray, wide: bool) -> Image.Image:
    """Convert integers of 16 bits (`wide`), or of 32, whose bits in use follow from the largest value."""
    low, high = int(grey.min()), int(grey.max())
    if wide or 255 < high < 1 << 16:
        scale = 257
    elif high <= 255:
        scale = 1
    else:
        scale = 1 << 23
    if low < 0 or 1 << 16 <= high < 1 << 24:
        raise ValueError(f"integer values from {low} to {high}: {_GIVE_A_RANGE}")
    return Image.fromarray((grey // scale).astype(np.uint8)).convert("RGB")
