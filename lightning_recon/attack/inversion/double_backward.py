# SPDX-License-Identifier: Apache-2.0
"""Convolutions whose second backward pass computes only the gradients that are needed.

PyTorch's own also computes, and discards, a gradient with respect to the weights: one of seven convolutions of a layer
and step.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from lightning_recon.networks.torch_internals import will_execute

# ruff: noqa: ANN401 - the arguments of these hooks have no type of their own

Numbers = tuple[int, int]


def _asked(ctx: Any) -> list[bool]:
    """For each input of a node of the graph, whether the present backward pass needs its gradient."""
    nodes = [node for node, _ in ctx.next_functions]
    # The engine cannot be asked about leaves, which have no next function: their gradient is always computed.
    return [node is not None and (not node.next_functions or will_execute(node)) for node in nodes]


class _Convolution(Function):
    """`torch.conv2d`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Numbers, padding: Numbers, dilation: Numbers,
        groups: int,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight)
        ctx.settings = stride, padding, dilation, groups
        ctx.biased = bias is not None
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        found = _Gradients.apply(grads[0], x, weight, ctx.settings, (*_asked(ctx)[:2], ctx.biased))
        return *found, None, None, None, None


class _Gradients(Function):
    """The first backward pass: gradients with respect to input, weights and bias."""

    @staticmethod
    def forward(
        ctx: Any, above: Tensor, x: Tensor, weight: Tensor, settings: tuple[Any, ...], asked: tuple[bool, bool, bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(above, x, weight)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        return _backward(above, x, weight, settings, asked)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        by_input, by_weight, by_bias = grads
        above, x, weight = ctx.saved_tensors
        to_above, to_x, to_weight = _asked(ctx)[:3]
        parts = []
        if to_above and by_input is not None:
            parts.append(torch.conv2d(by_input, weight, None, *ctx.settings))
        if to_above and by_weight is not None:
            parts.append(torch.conv2d(x, by_weight, None, *ctx.settings))
        if to_above and by_bias is not None:
            parts.append(by_bias.view(1, -1, 1, 1).to(above).expand_as(above))
        second = third = None
        if to_x and by_weight is not None:
            second = _backward(above, x, by_weight, ctx.settings, (True, False, False))[0]
        if to_weight and by_input is not None:
            third = _backward(above, by_input, weight, ctx.settings, (False, True, False))[1]
        first = sum(parts[1:], parts[0]) if parts else None
        return first, second, third, None, None


def _backward(
    above: Tensor, x: Tensor, weight: Tensor, settings: tuple[Any, ...], asked: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    stride, padding, dilation, groups = settings
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        above, x, weight, [weight.shape[0]], stride, padding, dilation, False, [0, 0], groups, asked
    )
    return found


class LeanConvolutions(TorchFunctionMode):
    """Replaces every two-dimensional convolution; works neither under `torch.func` nor under `torch.compile`."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Replace `torch.conv2d`."""
        if func is not torch.conv2d:
            return func(*args, **(kwargs or {}))
        return _convolved(*args, **(kwargs or {}))


def _convolved(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """As `torch.conv2d`, with its names."""
    if isinstance(padding, str) or input.dim() != 4:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, weight, bias = input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    twice = [(one, one) if isinstance(one, int) else tuple(one) for one in (stride, padding, dilation)]
    convolved: Tensor = _Convolution.apply(input, weight, bias, *twice, groups)
    return convolved
