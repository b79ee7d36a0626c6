# SPDX-License-Identifier: Apache-2.0
"""Lossy compression of a client's update, as it is received after decompression."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from lightning_recon.exchange import Compression

Tensors = Mapping[str, Tensor]


def compressed(update: Tensors, compression: Compression, generator: np.random.Generator) -> dict[str, Tensor]:
    """An update after compression and decompression.

    Args:
        update: floating point tensors by name.
        compression: the method; see `exchange.compression.Compression` for what each of them does.
        generator: for "qsgd" and "random_k".

    Returns:
        Dense tensors of the same shapes and types.
    """
    if compression.method in ("top_k", "random_k"):
        kept = kept_entries(update, compression, generator)
        return {name: torch.where(kept[name], tensor, 0) for name, tensor in update.items()}
    one = _QUANTIZERS.get(compression.method)
    if one is None:
        return {name: _qsgd(tensor, compression.levels, generator) for name, tensor in update.items()}
    return {name: one(tensor) for name, tensor in update.items()}


def kept_entries(update: Tensors, compression: Compression, generator: np.random.Generator) -> dict[str, Tensor]:
    """Which entries "top_k" or "random_k" keep.

    Args:
        update: tensors by name.
        compression: the share of entries, and whether it is of each tensor or of the whole update. At least one entry
            is kept.
        generator: for "random_k".

    Returns:
        Boolean tensors by name.
    """
    if compression.per_tensor:
        return {
            name: _kept(tensor.reshape(-1), compression, generator).view_as(tensor) for name, tensor in update.items()
        }
    whole = _kept(torch.cat([tensor.reshape(-1) for tensor in update.values()]), compression, generator)
    pieces = torch.split(whole, [tensor.numel() for tensor in update.values()])
    return {name: piece.view_as(tensor) for (name, tensor), piece in zip(update.items(), pieces, strict=True)}


def _kept(entries: Tensor, compression: Compression, generator: np.random.Generator) -> Tensor:
    count = max(1, round(compression.share * entries.numel()))
    if compression.method == "top_k":
        chosen = torch.topk(entries.abs(), count, sorted=False).indices
    else:
        chosen = torch.from_numpy(generator.choice(entries.numel(), count, replace=False)).to(entries.device)
    return torch.zeros(entries.shape, dtype=torch.bool, device=entries.device).index_fill_(0, chosen, True)


def _int8(tensor: Tensor) -> Tensor:
    """Rounded to the nearest of 255 multiples of the largest magnitude / 127."""
    scale = _largest(tensor) / 127
    return torch.round(tensor / scale) * scale


def _sign(tensor: Tensor) -> Tensor:
    """The mean magnitude with each entry's sign, one bit: zero counts as positive.

    Source: Karimireddy et al. 2019 (arXiv 1901.09847), algorithm 1, without its error feedback.
    """
    return torch.where(tensor >= 0, tensor.abs().mean(), -tensor.abs().mean()) if tensor.numel() else tensor.clone()


def _qsgd(tensor: Tensor, levels: int, generator: np.random.Generator) -> Tensor:
    """Rounded at random, without bias, to a multiple of the largest magnitude / levels.

    Source: Alistarh et al. 2017 (arXiv 1610.02132), section 3.1, scaled by the largest magnitude as in their section 5.
    """
    scale = _largest(tensor) / levels
    drawn = torch.from_numpy(generator.random(tensor.shape, dtype=np.float32)).to(tensor)
    return torch.floor(tensor / scale + drawn).clamp(-levels, levels) * scale


def _largest(tensor: Tensor) -> Tensor:
    """Largest magnitude; 1 where all entries are zero, so that zeros stay zeros."""
    largest = tensor.abs().max() if tensor.numel() else tensor.new_zeros(())
    return torch.where(largest > 0, largest, 1)


def _rounded_to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Rounded to a format; what exceeds its range becomes its largest number."""
    largest = torch.finfo(dtype).max
    return lambda tensor: tensor.clamp(-largest, largest).to(dtype).to(tensor.dtype)


_QUANTIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "float16": _rounded_to(torch.float16),
    "bfloat16": _rounded_to(torch.bfloat16),
    "int8": _int8,
    "sign": _sign,
}
