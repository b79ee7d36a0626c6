# SPDX-License-Identifier: Apache-2.0
"""From the message that a codeword carried to the image, by whichever source code the plan names."""

from torch import Tensor

from lightning_recon.structure.coding.code_plan import Plan
from lightning_recon.structure.coding.image_codec import unframed
from lightning_recon.structure.coding.tensor_codec import tensor_codec


def image_of(bits: Tensor, plan: Plan, size: tuple[int, int]) -> tuple[Tensor, bool] | None:
    """The image of a message.

    Args:
        bits: Shape (bits,), int64.
        plan: What was shipped.
        size: Height and width of the image.

    Returns:
        The image, shape (3, H, W), uint8, and whether it was sent losslessly; None if its checksum fails.
    """
    if not plan.tensor:
        return unframed(bits.cpu(), *size)
    found = tensor_codec(*size, len(bits)).decode(bits.cpu())
    return None if found is None else ((found * 255).round().byte(), False)
