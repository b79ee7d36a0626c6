# SPDX-License-Identifier: Apache-2.0
"""Adapt a network for RGB images to images of another number of channels, in its first convolution alone."""

import torch
from torch import Tensor, nn


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Name and layer of the first convolution; None without one."""
    return next(((name, one) for name, one in network.named_modules() if isinstance(one, nn.Conv2d)), None)


def input_channels(network: nn.Module) -> int:
    """Channels of the images that a network takes, as its first convolution says; 3 without one."""
    found = first_convolution(network)
    return 3 if found is None else found[1].in_channels


def adapt_input(network: nn.Module, channels: int) -> None:
    """Replace the first convolution by one of the same kind for so many channels, with PyTorch's initial weights.

    Args:
        network: changed in place; left alone where its first convolution takes so many channels already.
        channels: of the images.
    """
    found = first_convolution(network)
    if found is None or found[1].in_channels == channels:
        return
    name, old = found
    new = nn.Conv2d(
        channels,
        old.out_channels,
        (old.kernel_size[0], old.kernel_size[1]),
        (old.stride[0], old.stride[1]),
        old.padding if isinstance(old.padding, str) else (old.padding[0], old.padding[1]),
        bias=old.bias is not None,
    )
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, new)


def adapt_weights(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The weights of an RGB network, for the same network with another number of channels.

    One channel: the sum over red, green and blue, so that a grey image gives what it gave as RGB. Other numbers: the
    three repeated in turn, times 3 / channels, as timm does.

    Args:
        weights: by name; those for the network's own number of channels are returned as they are.
        network: what they are for.
    """
    found = first_convolution(network)
    key = "" if found is None else f"{found[0]}.weight".removeprefix(".")
    if found is None or key not in weights or weights[key].dim() != 4 or weights[key].shape[1] != 3:
        return weights
    channels = found[1].in_channels
    if channels == 3 or found[1].groups != 1:
        return weights
    old = weights[key]
    repeated = old[:, torch.arange(channels) % 3] * (3 / channels)
    return {**weights, key: old.sum(dim=1, keepdim=True) if channels == 1 else repeated}
