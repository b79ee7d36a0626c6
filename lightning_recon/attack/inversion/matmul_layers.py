# SPDX-License-Identifier: Apache-2.0
"""Layers of the attacker's copy that take less work where pictures are small.

Convolutions as one product of matrices: derivatives of all orders are such products too, each computed only if it is
asked for, and side by side for many guesses. What a library prepares for a convolution takes longer than that there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMALL = 2**17  # numbers of all patches that a convolution sees; more are better left to the library


class _Convolution(nn.Conv2d):
    """`torch.nn.Conv2d`, by products of matrices where its input is small."""

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.Conv2d`."""
        if isinstance(self.padding, str) or input.dim() != 4 or torch.compiler.is_compiling():
            return super().forward(input)
        geometry = zip(input.shape[2:], self.padding, self.dilation, self.kernel_size, self.stride, strict=True)
        height, width = (
            (size + 2 * pad - step * (kernel - 1) - 1) // jump + 1 for size, pad, step, kernel, jump in geometry
        )
        count = len(input)
        if self.weight[0].numel() * count * height * width > _SMALL:
            return super().forward(input)
        patches = F.unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)
        weight, bias = self.weight.flatten(1), None if self.bias is None else self.bias[:, None]
        if count == 1:
            one = patches[0]
            found = weight @ one if bias is None else torch.addmm(bias, weight, one)
        else:
            found = weight @ patches if bias is None else weight @ patches + bias
        return found.view(count, -1, height, width)


class _Pooling(nn.AdaptiveAvgPool2d):
    """`torch.nn.AdaptiveAvgPool2d`, which leaves alone what has the right size already."""

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.AdaptiveAvgPool2d`."""
        size = self.output_size
        wanted = size if isinstance(size, tuple) else (size, size)
        return input if tuple(input.shape[-2:]) == wanted else super().forward(input)


def lighten(network: nn.Module) -> None:
    """Let a network's layers take less work, in place; what it computes stays the same but for rounding."""
    for layer in network.modules():
        if type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros":
            layer.__class__ = _Convolution
        elif type(layer) is nn.AdaptiveAvgPool2d:
            layer.__class__ = _Pooling
