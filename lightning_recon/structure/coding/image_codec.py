# SPDX-License-Identifier: Apache-2.0
"""Image compression: lossless WebP or JPEG XL where that fits, else AVIF at the best quality that does.

The payload says which of the first two, see `coding.jpeg_xl`; `coding.messages` chooses between AVIF and a codec of
tensor operations. Grey images are repeated over three channels for these. Images of more than 8 bits, or of other than
1 or 3 channels, are JPEG 2000 in either case, see `plane_codec`.

Pillow writes whole files, with containers that cost more than a small image itself. Both sides know the image's
size and the settings, so the container is left out and put back.
"""

import io
import struct
import zlib
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from lightning_recon.display import as_rgb
from lightning_recon.errors import UserError
from lightning_recon.image_format import ImageFormat, format_of
from lightning_recon.reconstruction import CodecName
from lightning_recon.structure.coding.jpeg_xl import read_jpeg_xl, written_jpeg_xl
from lightning_recon.structure.coding.plane_codec import decoded_planes, lossless_planes, lossy_planes

# Length of the file, the top bit telling lossless ones; and a checksum over length and file.
_HEAD, _CHECK = 3, 4
OVERHEAD = _HEAD + _CHECK
_LOSSLESS = 1 << 23
# What precedes the data of a lossless WebP: "RIFF", length, "WEBPVP8L", length.
_RIFF = 20
# Speeds of the AVIF encoder: for the search, and for the files of images of at most so many pixels, which gain 0.2 dB;
# larger ones gain 0.1 dB and would cost the client seconds.
_FAST, _SLOW, _SMALL = 4, 2, 2**14
# Images whose files are kept.
_REMEMBERED = 64


def codec_of(exact: bool, image_format: ImageFormat, jpeg_xl: bool = False) -> CodecName:
    """Name of the codec of a file, as in `results.json`."""
    if not is_common(image_format):
        return "jpeg2000"
    if not exact:
        return "avif"
    return "jxl" if jpeg_xl else "webp"


def lossless(image: Tensor, bit_depth: int = 8, jpeg_xl: bool = False) -> bytes:
    """The image losslessly, without container.

    Args:
        image: Shape (C, H, W), uint8, or int32 for more than 8 bits.
        bit_depth: Bits of a value.
        jpeg_xl: Whether as JPEG XL instead of WebP; needs the extra `jxl`.
    """
    image_format = format_of(image, bit_depth)
    return _lossless(image.cpu().numpy().tobytes(), image_format, jpeg_xl)


def lossy(image: Tensor, most: int, bit_depth: int = 8) -> bytes:
    """The image without container, at the best quality of at most `most` bytes.

    Args:
        image: Shape (C, H, W), uint8, or int32 for more than 8 bits.
        most: Bytes.
        bit_depth: Bits of a value.

    Returns:
        The data; nothing, if not even the worst quality fits.
    """
    return _lossy(image.cpu().numpy().tobytes(), format_of(image, bit_depth), most)


def framed(data: bytes, exact: bool, bits: int) -> Tensor:
    """Length, data and checksum as bits, filled up with pseudo-random bits and whitened.

    The checksum determines the bits that fill up: if all images had the same, the codewords of short files would be
    correlated, and decoders would mistake one for another.

    Args:
        data: What `lossless` or `lossy` gave, at most `bits // 8 - OVERHEAD` bytes.
        exact: Whether it is lossless.
        bits: How many bits there are to fill.

    Returns:
        Shape (bits,), int64.
    """
    content = (len(data) | (_LOSSLESS if exact else 0)).to_bytes(_HEAD, "big") + data
    checksum = zlib.crc32(content)
    content += checksum.to_bytes(_CHECK, "big")
    padded = _random_bits(bits, checksum)
    padded[: 8 * len(content)] = np.unpackbits(np.frombuffer(content, np.uint8))
    return torch.from_numpy(padded).long() ^ _whitening(bits)


def unframed(bits: Tensor, image_format: ImageFormat, jpeg_xl: bool = False) -> tuple[Tensor, bool] | None:
    """The image that bits hold.

    Args:
        bits: Shape (bits,), int64, as `framed` gave them.
        image_format: Format of the image.
        jpeg_xl: Whether lossless images are JPEG XL.

    Returns:
        The image, shape (C, H, W), uint8 or int32, and whether it is the original itself; None if the checksum fails.
    """
    content = np.packbits((bits ^ _whitening(len(bits))).to(torch.uint8).numpy()).tobytes()
    length = int.from_bytes(content[:_HEAD], "big")
    exact, end = bool(length & _LOSSLESS), _HEAD + (length & (_LOSSLESS - 1))
    if end == _HEAD or content[end : end + _CHECK] != zlib.crc32(content[:end]).to_bytes(_CHECK, "big"):
        return None
    data = content[_HEAD:end]
    if not is_common(image_format):
        planes = torch.from_numpy(decoded_planes(data, exact, image_format))
        return planes.to(image_format.dtype), exact
    if exact and jpeg_xl:
        pixels = read_jpeg_xl(data)
    elif exact:
        padded = len(data) + len(data) % 2
        file = b"RIFF" + struct.pack("<I", padded + 12) + b"WEBPVP8L" + struct.pack("<I", len(data)) + data
        pixels = _opened(file + bytes(padded - len(data)), "WEBP")
    else:
        pixels = _opened(_refilled(_container(image_format.height, image_format.width), len(data)) + data, "AVIF")
    found = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    return found[: image_format.channels].contiguous(), exact


def is_common(image_format: ImageFormat) -> bool:
    """Whether WebP, JPEG XL and AVIF hold such images."""
    return image_format.bit_depth == 8 and image_format.channels in (1, 3)


# Every noise draw sends the same images again, and nothing here takes as long as writing their files.
@lru_cache(maxsize=_REMEMBERED)
def _lossless(pixels: bytes, image_format: ImageFormat, jpeg_xl: bool) -> bytes:
    if not is_common(image_format):
        return lossless_planes(image_from(pixels, image_format).numpy(), image_format)
    image = as_rgb(image_from(pixels, image_format))
    if jpeg_xl:
        return written_jpeg_xl(image.permute(1, 2, 0).contiguous().numpy())
    return _saved(image, "WEBP", lossless=True, quality=100, method=6)[_RIFF:]


@lru_cache(maxsize=_REMEMBERED)
def _lossy(pixels: bytes, image_format: ImageFormat, most: int) -> bytes:
    if not is_common(image_format):
        return lossy_planes(image_from(pixels, image_format).numpy(), image_format, most)
    image, start = as_rgb(image_from(pixels, image_format)), len(_container(image_format.height, image_format.width))
    best, low, high = b"", 0, 100
    while low <= high:
        quality = (low + high) // 2
        data = _avif(image, quality)[start:]
        if len(data) <= most:
            best, low = data, quality + 1
        else:
            high = quality - 1
    if image_format.pixels > _SMALL:
        return best
    # The slower encoder makes smaller files of the same quality, so that a little more quality may fit.
    for quality in range(min(high + 1, 100), max(high - 1, -1), -1):
        data = _avif(image, quality, _SLOW)[start:]
        if len(data) <= most:
            return data
    return best


def image_from(pixels: bytes, image_format: ImageFormat) -> Tensor:
    """The image of a format, shape (C, H, W), whose memory held these bytes."""
    return torch.frombuffer(bytearray(pixels), dtype=image_format.dtype).view(image_format.shape)


def _saved(image: Tensor, kind: str, **options: object) -> bytes:
    if not features.check(kind.lower()):
        raise UserError(f"this Pillow writes no {kind}: install the wheel from PyPI, 11.3 or later")
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(file, kind, **options)
    return file.getvalue()


def _opened(file: bytes, kind: str) -> np.typing.NDArray[np.uint8]:
    """The pixels of a file, shape (H, W, 3)."""
    with Image.open(io.BytesIO(file), formats=[kind]) as opened:
        return np.array(opened.convert("RGB"))


def _avif(image: Tensor, quality: int, speed: int = _FAST) -> bytes:
    # One thread, or the same image may give other bytes.
    options = {"subsampling": "4:4:4", "speed": speed, "max_threads": 1, "advanced": {"tune": "psnr"}}
    return _saved(image, "AVIF", quality=quality, **options)


@lru_cache(maxsize=8)
def _container(height: int, width: int) -> bytes:
    """The bytes before the data of every AVIF of this size, apart from the data's length."""
    file = _avif(torch.zeros(3, height, width, dtype=torch.uint8), 0)
    return file[: file.index(b"mdat") + 4]


def _refilled(container: bytes, length: int) -> bytes:
    """The container of data of the given length: that length precedes "mdat", and in the table of items."""
    place = container.index(b"iloc")
    # One item with one extent: its length is the last entry of the box.
    end = place - 4 + int.from_bytes(container[place - 4 : place], "big")
    head, tail = container[: end - 4], container[end:-8]
    return head + length.to_bytes(4, "big") + tail + (length + 8).to_bytes(4, "big") + b"mdat"


def _random_bits(count: int, seed: int) -> np.typing.NDArray[np.uint8]:
    """Pseudo-random bits, the same on every machine, shape (count,)."""
    words = np.random.Philox(key=seed).random_raw(-(-count // 64)).astype("<u8")
    return np.unpackbits(words.view(np.uint8))[:count]


@lru_cache(maxsize=8)
def _whitening(bits: int) -> Tensor:
    """Random bits, always the same, shape (bits,), int64."""
    return torch.randint(0, 2, (bits,), generator=torch.Generator().manual_seed(7))
