# SPDX-License-Identifier: Apache-2.0
"""Forward passes for the layers of the attacker's copy that take less work where images are small.

A convolution becomes one product of matrices. Its derivatives of all orders are such products too, each of which is
computed only if it is asked for, and side by side for many candidates. The set-up of a library's convolution takes
longer than that for small images.
"""

from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMALL = 2**17  # numbers in all patches of a convolution's input; with more the library is faster


def lighten(network: nn.Module) -> None:
    """Give a network's layers, in place, forward passes that compute the same but for rounding, with less work."""
    for layer in network.modules():
        if type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros":
            layer.forward = MethodType(_convolved, layer)  # type: ignore[method-assign]
        elif type(layer) is nn.AdaptiveAvgPool2d:
            layer.forward = MethodType(_pooled, layer)  # type: ignore[method-assign]


def _convolved(layer: nn.Conv2d, input: Tensor) -> Tensor:
    """As `torch.nn.Conv2d`, by products of matrices where the input is small."""
    if isinstance(layer.padding, str) or input.dim() != 4 or torch.compiler.is_compiling():
        return nn.Conv2d.forward(layer, input)
    geometry = zip(input.shape[2:], layer.padding, layer.dilation, layer.kernel_size, layer.stride, strict=True)
    height, width = (
        (size + 2 * pad - step * (kernel - 1) - 1) // jump + 1 for size, pad, step, kernel, jump in geometry
    )
    count = len(input)
    if layer.weight[0].numel() * count * height * width > _SMALL:
        return nn.Conv2d.forward(layer, input)
    patches = F.unfold(input, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    weight, bias = layer.weight.flatten(1), None if layer.bias is None else layer.bias[:, None]
    if count == 1:
        one = patches[0]
        found = weight @ one if bias is None else torch.addmm(bias, weight, one)
    else:
        found = weight @ patches if bias is None else weight @ patches + bias
    return found.view(count, -1, height, width)


def _pooled(layer: nn.AdaptiveAvgPool2d, input: Tensor) -> Tensor:
    """As `torch.nn.AdaptiveAvgPool2d`, which returns what has the right size already as it is."""
    size = layer.output_size
    wanted = size if isinstance(size, tuple) else (size, size)
    return input if tuple(input.shape[-2:]) == wanted else nn.AdaptiveAvgPool2d.forward(layer, input)
