# SPDX-License-Identifier: Apache-2.0
"""Layers that are faster for small images: convolutions as matrix products.

Derivatives of all orders are matrix products too, each is computed only if it is needed, and all candidates share one
product. For small images the set-up of a library's convolution takes longer than that.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMALL = 2**17  # numbers of all patches of a convolution's input; above, the library's convolution is faster


class _Convolution(nn.Conv2d):
    """`torch.nn.Conv2d`, as a matrix product if its input is small."""

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
    """`torch.nn.AdaptiveAvgPool2d` that returns inputs of the right size as they are."""

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.AdaptiveAvgPool2d`."""
        size = self.output_size
        wanted = size if isinstance(size, tuple) else (size, size)
        return input if tuple(input.shape[-2:]) == wanted else super().forward(input)


def lighten(network: nn.Module) -> None:
    """Replace a network's layers by faster ones, in place; the results differ by rounding only."""
    for layer in network.modules():
        if type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros":
            layer.__class__ = _Convolution
        elif type(layer) is nn.AdaptiveAvgPool2d:
            layer.__class__ = _Pooling
