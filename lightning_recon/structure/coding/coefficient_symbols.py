# SPDX-License-Identifier: Apache-2.0
"""Quantised coefficients as symbols: the leading digits of a magnitude are entropy coded, the others sent as they are.

The distributions of symbols were counted on crops of the bundled photographs, at quantiser steps from 3 to 90.
"""

import math

import torch
from torch import Tensor, nn

from lightning_recon.structure.coding.asymmetric_numeral import NumeralCoder
from lightning_recon.structure.coding.coefficient_contexts import LEVELS, expected

# How often each symbol occurs in each context: magnitudes from 0 up, the last one for all larger ones.
FREQUENCIES = (
    (127, 1),
    (127, 1),
    (127, 1),
    (127, 1),
    (126, 2),
    (125, 3),
    (122, 6),
    (118, 10),
    (111, 16, 1),
    (102, 24, 2),
    (89, 34, 4, 1),
    (75, 42, 8, 2, 1),
    (62, 46, 14, 4, 1, 1),
    (49, 46, 20, 8, 3, 1, 1),
    (39, 41, 23, 12, 6, 3, 1, 1, 1, 1),
    (30, 35, 24, 15, 9, 5, 3, 2, 1, 1, 1, 1, 1),
    (23, 29, 22, 16, 12, 8, 5, 4, 2, 2, 1, 1, 1, 1, 1),
    (19, 24, 19, 16, 12, 10, 7, 5, 4, 3, 2, 2, 1, 1, 3),
    (15, 19, 16, 13, 11, 10, 8, 7, 6, 4, 4, 3, 2, 2, 8),
    (13, 15, 13, 11, 10, 9, 8, 7, 6, 5, 5, 4, 3, 3, 16),
    (23, 20, 16, 13, 11, 9, 7, 6, 5, 4, 3, 2, 2, 1, 6),
    (18, 16, 14, 11, 10, 9, 8, 7, 6, 5, 4, 3, 3, 2, 12),
    (30, 22, 17, 13, 10, 8, 6, 5, 4, 3, 2, 2, 1, 1, 4),
    (22, 18, 14, 12, 10, 9, 7, 6, 5, 4, 4, 3, 3, 2, 9),
    (22, 17, 13, 10, 9, 7, 6, 5, 5, 4, 4, 3, 3, 3, 17),
    (29, 20, 14, 11, 9, 8, 6, 5, 5, 4, 3, 2, 2, 2, 8),
    (12, 11, 11, 10, 10, 10, 9, 8, 7, 6, 5, 5, 4, 3, 17),
    (17, 17, 15, 14, 13, 11, 9, 7, 6, 5, 3, 2, 2, 2, 5),
    (13, 13, 13, 10, 12, 11, 9, 7, 7, 5, 5, 5, 3, 2, 13),
    (10, 11, 11, 8, 8, 10, 8, 8, 6, 6, 5, 4, 4, 4, 25),
    (20, 17, 14, 12, 12, 10, 10, 6, 5, 5, 4, 3, 2, 2, 6),
    (11, 11, 11, 9, 9, 8, 6, 6, 5, 5, 5, 4, 4, 3, 31),
)
# What a context expects, in bits, minus this, is how many low digits of its magnitudes are sent as they are.
_LEADING = 2
# Units of the costs of symbols in a bit.
COST_UNIT = 1 << 10


class CoefficientSymbols(nn.Module):
    """Constants of each context."""

    last: Tensor
    low_digits: Tensor
    costs: Tensor

    def __init__(self) -> None:
        """Make the tables."""
        super().__init__()
        self.coder = NumeralCoder(FREQUENCIES)
        digits = [max(0, math.floor(math.log2(expected(level)) - _LEADING)) for level in range(LEVELS)]
        costs = [math.log2(sum(counts) / count) * COST_UNIT for counts in FREQUENCIES for count in counts]
        # The symbol of all magnitudes that are too large for another one; the digits that are sent as they are; and the
        # cost of each row of the coder's tables.
        constants = {"last": [len(counts) - 1 for counts in FREQUENCIES], "low_digits": digits}
        for name, values in constants.items():
            self.register_buffer(name, torch.tensor(values), persistent=False)
        self.register_buffer("costs", torch.tensor(costs).round().long(), persistent=False)

    def split(self, quantised: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the coder's tables, and what is sent beside them.

        Args:
            quantised: Shape (B, N), int32.
            levels: Contexts, shape (B, N), int64.

        Returns:
            Rows; the other bits as a number; how many these are. Shape (B, N), int64.
        """
        magnitude, last, digits = quantised.abs().long(), self.last[levels], self.low_digits[levels]
        leading = magnitude >> digits
        symbol = torch.minimum(leading, last)
        # Above the last symbol: Elias's gamma code of the excess and one, whose length is told by as many zeros.
        excess = leading - symbol + 1
        length = torch.zeros_like(excess)
        for power in range(1, 16):
            length = length + (excess >> power > 0)
        sign = (magnitude > 0).long()
        escaped = (leading >= last).long()
        count = escaped * (2 * length + 1)
        bits = escaped * excess
        bits = (bits << digits) | (magnitude & ((1 << digits) - 1))
        bits = (bits << sign) | (quantised < 0).long()
        return self.coder.first[levels] + symbol, bits, count + digits + sign

    def cost(self, quantised: Tensor, levels: Tensor) -> Tensor:
        """Bits of all coefficients of an image in units of 1 / `COST_UNIT`, but for some 0.3 %: shape (B,), int64."""
        rows, _, count = self.split(quantised, levels)
        return (self.costs[rows] + COST_UNIT * count).sum(dim=1)
