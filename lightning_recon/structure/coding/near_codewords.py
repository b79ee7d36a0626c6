# SPDX-License-Identifier: Apache-2.0
"""Codewords of the channel code that are so near to another one that noise may decide between the two.

Bits that are repeated least change the parities between their first and second place along the running sum, between
the third and the fourth, and so on. In short codes some pairs of them change nearly the same parities.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from lightning_recon.structure.coding.channel_code import LADDER, parity_groups

# Codewords that differ in at most this share of their inputs, or in so few, can be mistaken for each other; the nearest
# of them are tried, up to this number.
_NEAR_SHARE, _NEAR_INPUTS, _NEIGHBOURS = 0.01, 40, 32
# In codes with more bits of the lowest degree, the nearest codewords are too far apart to be mistaken.
_MOST_LOW_DEGREE = 3000
_BLOCK = 256  # bits that are compared with all others at once


def neighbours(bits: Tensor, rung: int, inputs: int) -> Iterator[Tensor]:
    """Messages whose codewords differ from that of a message in few inputs, the nearest first; none in long codes.

    Args:
        bits: The message, shape (`message_bits`,), int64.
        rung: Place on the ladder.
        inputs: Length of the codeword.
    """
    for pair in near_pairs(rung, inputs).tolist():
        changed = bits.clone()
        changed[pair] ^= 1
        yield changed


@lru_cache(maxsize=len(LADDER))
def near_pairs(rung: int, inputs: int) -> Tensor:
    """Pairs of message bits that together change few parities, the fewest first, shape (n, 2), int64."""
    groups, times = parity_groups(rung, inputs), min(LADDER[rung].repetitions)
    sockets = groups.permute(2, 0, 1).flatten().long()
    low = torch.nonzero(torch.bincount(sockets) == times).flatten()
    pairs, distances = [torch.zeros(0, 2, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
    if len(low) > _MOST_LOW_DEGREE:
        return pairs[0]
    places = torch.nonzero(torch.isin(sockets, low)).flatten()
    places = places[sockets[places].argsort(stable=True)].view(len(low), times) // groups.shape[1]
    for first in range(0, len(low), _BLOCK):
        block = torch.arange(first, min(first + _BLOCK, len(low)))
        one, other = (index.flatten() for index in torch.meshgrid(block, torch.arange(len(low)), indexing="ij"))
        one, other = one[one < other], other[one < other]
        # The sums between the first and the second of all places change, between the third and the fourth, and so on.
        both = torch.cat([places[one], places[other]], dim=1).sort(dim=1).values
        distance = (both[:, 1::2] - both[:, ::2]).sum(dim=1)
        near = distance < max(_NEAR_INPUTS, _NEAR_SHARE * inputs)
        pairs.append(torch.stack([low[one[near]], low[other[near]]], dim=1))
        distances.append(distance[near])
    return torch.cat(pairs)[torch.cat(distances).argsort(stable=True)[:_NEIGHBOURS]]
