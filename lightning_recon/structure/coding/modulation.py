# SPDX-License-Identifier: Apache-2.0
"""Modulation in the shipped network: an image file as a ±1 codeword, after a header that names its rate.

The client runs this as it runs any layer of the model it was sent. Nothing here has a gradient, nor needs one: the
gradient of a weight is its input times what flows back, whatever made that input.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from lightning_recon.image_format import format_of
from lightning_recon.structure.coding.channel_code import LADDER, encode
from lightning_recon.structure.coding.code_plan import HEADER, Plan
from lightning_recon.structure.coding.hadamard_spreading import hadamard_matrix
from lightning_recon.structure.coding.messages import message_of
from lightning_recon.structure.coding.pulses import pulses


@lru_cache(maxsize=1)
def header_words() -> Tensor:
    """A ±1 word for every rung, shape (rungs, HEADER): rows of a Hadamard matrix, hence orthogonal."""
    return hadamard_matrix(HEADER)[1 : len(LADDER) + 1]


def symbols(bits: Tensor, rung: int, inputs: int) -> Tensor:
    """The codeword of a message as ±1, shape (inputs,), float32."""
    return 1.0 - 2.0 * encode(bits, rung, inputs)


def word(image: Tensor, plan: Plan) -> Tensor:
    """The digital inputs of one image.

    Args:
        image: Shape (C, H, W), values in [0, 1]; in host memory, without gradient.
        plan: What the server shipped.

    Returns:
        Shape (words,), float32.
    """
    pixels = format_of(image, plan.bit_depth).integers(image)
    rung, bits = message_of(pixels, plan)
    codeword = plan.amplitudes[rung] * symbols(bits, rung, plan.inputs)
    if plan.positions > 1:
        codeword = pulses(codeword, plan.positions)
    return torch.cat([plan.header * header_words()[rung], codeword]).repeat(plan.repeats)


class DigitalWords(torch.autograd.Function):
    """`word` of each image; under `vmap`, which cannot map over a file format, of all of them one by one."""

    @staticmethod
    def forward(images: Tensor, plan: Plan) -> Tensor:
        """Shape (B, C, H, W) to (B, words)."""
        return torch.stack([word(image, plan) for image in images.detach().cpu()]).to(images)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, Plan], output: Tensor) -> None:
        """Save nothing: there is no gradient."""
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[None, None]:
        """No gradient."""
        return None, None

    @staticmethod
    def vmap(info: object, in_dims: tuple[int | None, None], images: Tensor, plan: Plan) -> tuple[Tensor, int]:
        """The mapped dimension joins the batch, and leaves it afterwards."""
        mapped = images.movedim(in_dims[0] or 0, 0)
        words = DigitalWords.apply(mapped.flatten(0, 1), plan)
        return words.view(*mapped.shape[:2], -1), 0
