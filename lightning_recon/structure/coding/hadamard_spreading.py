# SPDX-License-Identifier: Apache-2.0
"""Spreading against per-layer clipping: each row is spread over many tensors, which together get most of the budget.

Per-layer clipping gives each of the L tensors of an update the budget C/√L. A structure of one tensor among many gets
1/L of the power; spread over M tensors of its own it gets M/(M + L'), with L' the network's: nearly all of it. Each
tensor is clipped to the same norm, so every one has to hold about the same energy: a Hadamard transform gives each
tensor a share of each input. The remaining differences count as noise.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

# Tensors of the structure for each one of the network: 8 keep 8/9 of the power, half a decibel short of one clip.
_TENSORS_FOR_ONE = 8
# Energies of blocks of fewer entries differ too much; fewer inputs are padded to this width.
_LEAST_WIDTH = 16


def block_count(network_tensors: int, power: Tensor, noise: float) -> int:
    """Over how many tensors to spread rows of norm 1, so that noise and distortion together are least.

    M tensors raise the energy of the noise, n z², to n z² (1 + L'/M); more tensors hold fewer inputs each, whose
    energies differ more, see `distortion`.

    Args:
        network_tensors: Tensors of the network, L'.
        power: Expected energy of each input, strongest first, shape (n,), of sum 1.
        noise: Noise standard deviation of each input if the structure had the whole budget, z.

    Returns:
        A power of two, no greater than keeps nearly all of the power anyway.
    """
    inputs = len(power)

    def harm(blocks: int) -> float:
        return inputs * (noise**2 * network_tensors / blocks + distortion(power, blocks) ** 2)

    most = math.ceil(math.log2(_TENSORS_FOR_ONE * network_tensors))
    return min((1 << step for step in range(most + 1)), key=harm)


def spreading_gain_db(network_tensors: int) -> float:
    """Decibels of power that rows gain, at most, by spreading over several tensors, if each is clipped on its own.

    Args:
        network_tensors: Tensors of the network, L'.
    """
    return 10 * math.log10((1 + network_tensors) * _TENSORS_FOR_ONE / (_TENSORS_FOR_ONE + 1))


def block_width(inputs: int, blocks: int) -> int:
    """Entries of each block, for a number of inputs that is spread over a number of blocks."""
    return max(math.ceil(inputs / blocks), min(inputs, _LEAST_WIDTH))


def spread(inputs: Tensor, blocks: int) -> Tensor:
    """Distribute inputs over blocks of almost equal energy.

    Args:
        inputs: Shape (..., n), the strongest first.
        blocks: Number of blocks M, a power of two; 1 changes nothing.

    Returns:
        Shape (..., M · width), block after block: an isometry of the inputs, padded with zeros.
    """
    if blocks == 1:
        return inputs
    width = block_width(inputs.shape[-1], blocks)
    padded = torch.nn.functional.pad(inputs, (0, blocks * width - inputs.shape[-1]))
    # The strongest, which come first, go to different columns, whose energies simply add.
    return _mixed(padded.reshape(*padded.shape[:-1], blocks, width))


def gather(entries: Tensor, inputs: int, blocks: int) -> Tensor:
    """Undo `spread`: shape (..., M · width) to (..., n)."""
    if blocks == 1:
        return entries
    return _mixed(entries.reshape(*entries.shape[:-1], blocks, -1))[..., :inputs]


def distortion(power: Tensor, blocks: int) -> float:
    """Standard deviation that clipping each block by itself adds to each entry of a row of norm 1.

    Inputs in one column meet in every block with other signs, so the energy of a block scatters by their products;
    its norm, relative to itself, by half of that.

    Args:
        power: Expected energy of each input, in the order in which they are spread, shape (n,), of sum 1.
        blocks: Number of blocks M.
    """
    if blocks == 1:
        return 0.0
    width = block_width(len(power), blocks)
    columns = torch.nn.functional.pad(power.double(), (0, blocks * width - len(power))).view(blocks, width)
    products = columns.sum(dim=0).square().sum() - columns.square().sum()
    return math.sqrt(float(products) / 2 / len(power))


def _mixed(columns: Tensor) -> Tensor:
    """Hadamard transform of each column, its own inverse: shape (..., M, width) to (..., M · width)."""
    blocks = columns.shape[-2]
    # As the Kronecker product of two smaller matrices it costs a few dozen operations an entry, not thousands.
    major = 1 << (blocks.bit_length() - 1) // 2
    minor = blocks // major
    grid = columns.reshape(*columns.shape[:-2], major, minor, columns.shape[-1])
    grid = torch.einsum("ij,...jkw->...ikw", _hadamard(major).to(columns), grid)
    return torch.einsum("kl,...ilw->...ikw", _hadamard(minor).to(columns), grid).flatten(-3)


def hadamard_matrix(order: int) -> Tensor:
    """Symmetric ±1 matrix with orthogonal rows (Sylvester's construction), of an order that is a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < order:
        matrix = torch.cat([torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)])
    return matrix


@lru_cache(maxsize=8)
def _hadamard(order: int) -> Tensor:
    """Orthonormal symmetric Hadamard matrix, shape (order, order)."""
    return hadamard_matrix(order) / math.sqrt(order)
