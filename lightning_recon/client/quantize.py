# SPDX-License-Identifier: Apache-2.0
"""From clients' updates to the sum of integers that secure aggregation shows the server."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lightning_recon.client.noise_key import Generators
from lightning_recon.errors import UserError
from lightning_recon.exchange import Quantization
from lightning_recon.privacy.integer_noise import IntegerMechanism
from lightning_recon.privacy.parameters import Privacy

CHUNK = 1 << 17  # numbers that are rounded at a time


def quantized(update: Mapping[str, Tensor], quantization: Quantization, generators: Generators) -> dict[str, Tensor]:
    """An update in whole steps, rounded at random without bias.

    Args:
        update: floating point tensors by name.
        quantization: what was announced.
        generators: one generator for each tensor.

    Returns:
        int64 tensors by name.

    Source: Flower's `quantize`, without the offset that makes its numbers positive.
    """
    found = {}
    most = quantization.quantization_range / 2
    for name, tensor in update.items():
        generator, pieces = generators(name), []
        for piece in torch.split(tensor.reshape(-1), CHUNK):
            # In host memory, because not every device has float64.
            steps = (piece.cpu().double() / quantization.step).clamp(-most, most)
            drawn = torch.from_numpy(generator.random(piece.numel()))
            pieces.append(torch.floor(steps + drawn).clamp(max=math.floor(most)).long().to(piece.device))
        found[name] = torch.cat(pieces).view(tensor.shape)
    return found


def add_steps(
    update: Mapping[str, Tensor], privacy: Privacy, quantization: Quantization, generators: Generators
) -> dict[str, Tensor]:
    """Add the noise of a mechanism of whole numbers, in place; nothing for other mechanisms.

    Args:
        update: int64 tensors by name, from `quantized`.
        privacy: mechanism and scale of the noise.
        quantization: what was announced.
        generators: one generator for each tensor.
    """
    mechanism, std = privacy.noise, privacy.noise_scale / quantization.step
    if isinstance(mechanism, IntegerMechanism) and std > 0:
        for name, tensor in update.items():
            generator = generators(name)
            for piece in torch.split(tensor.view(-1), CHUNK):
                piece += mechanism.sample_steps(piece.numel(), std, generator).to(piece)
    return dict(update)


def modular_sum(updates: Iterable[Mapping[str, Tensor]], quantization: Quantization) -> dict[str, Tensor]:
    """The sum of clients' updates modulo the announced number, lifted to the numbers around zero.

    Args:
        updates: int64 tensors by name, made one by one.
        quantization: what was announced.

    Returns:
        float32 tensors by name, in the unit of an update.
    """
    total: dict[str, Tensor] = {}
    for update in updates:
        for name, tensor in update.items():
            total[name] = total[name].add_(tensor) if name in total else tensor.clone()
    modulus, found = quantization.modulus_range, {}
    for name, tensor in total.items():
        rest = torch.remainder(tensor, modulus)
        lifted = torch.where(rest >= (modulus + 1) // 2, rest - modulus, rest)
        found[name] = (lifted.cpu().double() * quantization.step).float().to(tensor.device)
    return found


def shrunk_for_rounding(update: dict[str, Tensor], privacy: Privacy, quantization: Quantization) -> dict[str, Tensor]:
    """Scale a clipped update down, in place, so that its norm keeps to the clip after rounding.

    Rounding moves each of d numbers by less than a step, and the norm by less than the square root of d steps. Under a
    mechanism of whole numbers only: other noise is added before rounding.

    Raises:
        UserError: The steps are too coarse for so many numbers.
    """
    if not isinstance(privacy.noise, IntegerMechanism) or privacy.max_grad_norm is None:
        return update
    count = sum(tensor.numel() for tensor in update.values())
    kept = 1 - quantization.step * math.sqrt(count) / privacy.max_grad_norm
    if kept <= 0:
        raise UserError(
            f"rounding to steps of {quantization.step:.3g} may change the norm of {count} numbers by more than the "
            f"clip, {privacy.max_grad_norm:g}: raise --model.client.quantization.quantization_range, or lower "
            "clipping_range"
        )
    for tensor in update.values():
        tensor.mul_(kept)
    return update
