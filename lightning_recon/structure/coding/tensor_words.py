# SPDX-License-Identifier: Apache-2.0
"""The digital inputs of a layer by tensor operations alone: message, channel code and header."""

import torch
from torch import Tensor, nn

from lightning_recon.structure.coding.channel_code import message_bits, parity_groups
from lightning_recon.structure.coding.code_plan import Plan
from lightning_recon.structure.coding.modulation import header_words
from lightning_recon.structure.coding.pulses import pulses
from lightning_recon.structure.coding.tensor_codec import TensorCodec


class TensorWords(nn.Module):
    """What `modulation.word` makes with an image library, with a codec of tensor operations.

    It can be exported (`torch.export`, TorchScript, ONNX), mapped (`vmap`) and run on any device, with the same result
    to the last bit. All images are sent at the plan's fair rate, which the codec fills.
    """

    groups: Tensor
    header: Tensor

    def __init__(self, plan: Plan, height: int, width: int) -> None:
        """Make the constants.

        Args:
            plan: What the server shipped.
            height: Of the images.
            width: Likewise.
        """
        super().__init__()
        self.plan = plan
        self.codec = TensorCodec(height, width, message_bits(plan.fair, plan.inputs))
        groups = parity_groups(plan.fair, plan.inputs)
        self.shape = tuple(groups.shape)
        self.register_buffer("groups", groups.flatten(), persistent=False)
        self.register_buffer("header", plan.header * header_words()[plan.fair], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """The digital inputs of images.

        Args:
            images: Shape (B, 3, H, W), values in [0, 1].

        Returns:
            Shape (B, words), of the images' dtype; without gradient.
        """
        bits = self.codec(images)
        layers, size, lanes = self.shape
        sums = bits.index_select(1, self.groups).reshape(-1, layers, size, lanes).sum(dim=2)
        codeword = torch.cat([bits, sums.transpose(1, 2).flatten(1).cumsum(dim=1) & 1], dim=1)
        words = self.plan.amplitudes[self.plan.fair] * (1.0 - 2.0 * codeword.to(torch.float32))
        if self.plan.positions > 1:
            words = pulses(words, self.plan.positions)
        words = torch.cat([self.header.expand(len(words), -1), words], dim=1)
        return words.repeat(1, self.plan.repeats).to(images)
