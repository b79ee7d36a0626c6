# SPDX-License-Identifier: Apache-2.0
"""From the message that a codeword carried to the image, by whichever source code the plan names."""

from typing import Literal

from torch import Tensor

from lightning_recon.image_format import ImageFormat
from lightning_recon.structure.coding.code_plan import Plan
from lightning_recon.structure.coding.image_codec import codec_of, unframed
from lightning_recon.structure.coding.tensor_codec import tensor_codec


def codec_name(
    exact: bool, plan: Plan, image_format: ImageFormat
) -> Literal["webp", "jxl", "avif", "jpeg2000", "tensor"]:
    """The name of the source code of a received image, as `results.json` has it."""
    return "tensor" if plan.tensor else codec_of(exact, image_format, plan.jpeg_xl)


def image_of(bits: Tensor, plan: Plan, image_format: ImageFormat) -> tuple[Tensor, bool] | None:
    """The image of a message.

    Args:
        bits: Shape (bits,), int64.
        plan: What was shipped.
        image_format: Format of the image.

    Returns:
        The image, shape (C, H, W), integers, and whether it was sent losslessly; None if its checksum fails.
    """
    if not plan.tensor:
        return unframed(bits.cpu(), image_format, plan.jpeg_xl)
    found = tensor_codec(*image_format.size, len(bits)).decode(bits.cpu())
    return None if found is None else (image_format.integers(found), False)
