# SPDX-License-Identifier: Apache-2.0
"""From an image to the message that a codeword carries, and back, by whichever source code the plan names."""

from functools import lru_cache
from itertools import chain

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from lightning_recon.image_format import ImageFormat, format_of
from lightning_recon.reconstruction import CodecName
from lightning_recon.structure.coding.channel_code import LADDER, message_bits
from lightning_recon.structure.coding.code_plan import Plan, has_tensor_codec
from lightning_recon.structure.coding.image_codec import codec_of, framed, image_from, lossless, lossy, unframed
from lightning_recon.structure.coding.near_codewords import neighbours
from lightning_recon.structure.coding.tensor_codec import tensor_codec

_REMEMBERED = 64  # messages that are kept


def message_of(image: Tensor, plan: Plan) -> tuple[int, Tensor]:
    """The rung for an image, and its message.

    Losslessly at the lowest rate that takes it, which needs the least power; if none does, as well as the rate of an
    equal share allows: by the image library or by tensor operations, whichever comes nearer to the image. The library
    is better at few bits a pixel, and cannot make its files as small as the other's messages.

    Args:
        image: Shape (C, H, W), uint8, or int32 for more than 8 bits; in host memory.
        plan: What the server shipped.

    Returns:
        Place on the ladder, and shape (`message_bits`,), int64.
    """
    data = lossless(image, plan.bit_depth, plan.jpeg_xl)
    for rung in range(len(LADDER)):
        if len(data) <= plan.bytes_of(rung):
            return rung, framed(data, True, message_bits(rung, plan.inputs))
    return plan.fair, _lossy_message(image.numpy().tobytes(), format_of(image, plan.bit_depth), plan)


# Of a client that releases an image several times, which makes the message once.
@lru_cache(maxsize=_REMEMBERED)
def _lossy_message(pixels: bytes, image_format: ImageFormat, plan: Plan) -> Tensor:
    """The message of an image that no rung takes losslessly."""
    image, bits = image_from(pixels, image_format), message_bits(plan.fair, plan.inputs)
    if not has_tensor_codec(image_format):
        return framed(_fitting_file(image, plan.bytes_of(plan.fair), plan.bit_depth), False, bits)
    file = framed(lossy(image, plan.bytes_of(plan.fair), plan.bit_depth), False, bits)
    other: Tensor = tensor_codec(*image_format.size, bits)(image_format.values(image)[None])[0]
    return min((file, other), key=lambda message: _error(message, image, plan))


def _fitting_file(image: Tensor, most: int, bit_depth: int) -> bytes:
    """The best file of at most `most` bytes; where even the worst is longer, that of the least blurred image that fits.

    Empty if even the file of a single colour is too long.
    """
    file, cells = lossy(image, most, bit_depth), max(image.shape[1:])
    while not file and cells > 1:
        cells = 2 * cells // 3
        file = lossy(_blurred(image, cells), most, bit_depth)
    return file


def _blurred(image: Tensor, cells: int) -> Tensor:
    """Means over a grid of at most `cells` cells along each side, interpolated to the size of the image."""
    height, width = image.shape[1:]
    means = adaptive_avg_pool2d(image.float(), (min(cells, height), min(cells, width)))
    wide = interpolate(means[None], (height, width), mode="bilinear")[0]
    return wide.round().to(image.dtype)


def image_of(bits: Tensor, plan: Plan, image_format: ImageFormat) -> tuple[Tensor, CodecName] | None:
    """The image of a message.

    Args:
        bits: Shape (bits,), int64.
        plan: What was shipped.
        image_format: Format of the image.

    Returns:
        The image, shape (C, H, W), integers, and the source code that it was sent by; None if every checksum fails.
    """
    bits = bits.cpu()
    opened = None if plan.tensor else unframed(bits, image_format, plan.jpeg_xl)
    if opened is not None:
        return opened[0], codec_of(opened[1], image_format, plan.jpeg_xl)
    found = tensor_codec(*image_format.size, len(bits)).decode(bits) if has_tensor_codec(image_format) else None
    return None if found is None else (image_format.integers(found), "tensor")


def checked_message(
    bits: Tensor, rung: int, plan: Plan, image_format: ImageFormat
) -> tuple[Tensor, Tensor, CodecName] | None:
    """A decoded message, or else the nearest one to it, that passes its checksum.

    Args:
        bits: As the channel code was decoded, shape (`message_bits`,), int64.
        rung: Place on the ladder.
        plan: What was shipped.
        image_format: Format of the image.

    Returns:
        The message in host memory, its image, and its source code, see `image_of`; None if no checksum fits.
    """
    bits = bits.cpu()
    for candidate in chain([bits], neighbours(bits, rung, plan.inputs)):
        if (content := image_of(candidate, plan, image_format)) is not None:
            return candidate, *content
    return None


def _error(message: Tensor, image: Tensor, plan: Plan) -> float:
    """Mean squared error of what a message holds; infinite if that is nothing."""
    found = image_of(message, plan, format_of(image, plan.bit_depth))
    return float((found[0].double() - image.double()).square().mean()) if found is not None else float("inf")
