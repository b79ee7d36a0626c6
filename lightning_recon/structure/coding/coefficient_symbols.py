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
# Magnitudes beyond `_LARGEST` do not occur: the largest mean of 1024 x 1024 pixels has 19 binary digits at the finest
# step. Costs are tabled up to `_COSTED`; larger magnitudes cost a little more.
_LARGEST, _COSTED = (1 << 19) - 1, 1023
# No symbol has as many bits, those beside it included; float64 holds them.
_MOST_DIGITS = 53
# Squared steps that a bit is worth, and the largest magnitude that is set to 0, in steps: in contexts where nearly all
# magnitudes are 0.
_LAMBDA, _MOST_SAVED = 0.12, 1.1
# Units of the costs of symbols in a bit.
COST_UNIT = 1 << 10


class CoefficientSymbols(nn.Module):
    """Splits coefficients into symbols of a `NumeralCoder` and bits that are sent as they are."""

    last: Tensor
    low_digits: Tensor
    digits_of: Tensor
    powers: Tensor
    costs: Tensor
    worthwhile: Tensor

    def __init__(self) -> None:
        """Make the tables."""
        super().__init__()
        self.coder = NumeralCoder(FREQUENCIES)
        low_digits = [max(0, math.floor(math.log2(expected(level)) - _LEADING)) for level in range(LEVELS)]
        constants = {
            # Of each context: the symbol of all magnitudes that are too large for another one, and the number of digits
            # that are sent as they are.
            "last": [len(counts) - 1 for counts in FREQUENCIES],
            "low_digits": low_digits,
            # Number of binary digits of numbers.
            "digits_of": [number.bit_length() for number in range(_LARGEST + 1)],
        }
        for name, values in constants.items():
            self.register_buffer(name, torch.tensor(values), persistent=False)
        # Numbers that are shifted by dividing them: in float64 that is exact, and faster than with integers.
        self.register_buffer("powers", 2 ** torch.arange(_MOST_DIGITS), persistent=False)
        # From where on a magnitude of 1 is worth its bits, in steps by `COST_UNIT`: D(0) - D(1) = λ (bits of 1 - of 0).
        saved = [math.log2(counts[0] / counts[1]) + 1 for counts in FREQUENCIES]
        least = [_MOST_SAVED if level < 3 else (1 + _LAMBDA * saved[level]) / 2 for level in range(LEVELS)]
        worthwhile = torch.tensor(least, dtype=torch.float64).clamp(min=0.5) * COST_UNIT
        self.register_buffer("worthwhile", worthwhile.round().long(), persistent=False)
        # What magnitudes up to `_COSTED` cost in each context.
        every = torch.arange(_COSTED + 1, dtype=torch.float64).repeat(LEVELS, 1)
        levels = torch.arange(LEVELS)[:, None].expand(every.shape)
        rows, _, count = self.split(every, levels)
        cost = torch.tensor([math.log2(sum(counts) / one) for counts in FREQUENCIES for one in counts])
        costs = ((cost[rows] + count) * COST_UNIT).round().long().flatten()
        self.register_buffer("costs", costs, persistent=False)

    def split(self, quantised: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the coder's tables, and what is sent beside them.

        Args:
            quantised: Shape (B, N), float64, integers.
            levels: Contexts, shape (B, N), int64.

        Returns:
            Rows, int64; the other bits as a number, float64; how many these are, int64. Shape (B, N).
        """
        magnitude = quantised.abs()
        last, digits = looked_up(self.last, levels), looked_up(self.low_digits, levels)
        unit = looked_up(self.powers, digits).double()
        leading = (magnitude / unit).floor()
        symbol = torch.minimum(leading, last)
        # Above the last symbol: Elias's gamma code of the excess and one, whose length as many zeros tell.
        escaped = (leading >= last).double()
        excess = escaped * (leading - symbol + 1)
        length = looked_up(self.digits_of, excess.clamp(max=_LARGEST).long())
        sign = (magnitude > 0).long()
        bits = (excess - leading) * unit + magnitude
        bits = bits * (1 + sign) + (quantised < 0).double()
        count = 2 * length - escaped.long() + digits + sign
        return looked_up(self.coder.first, levels) + symbol.long(), bits, count

    def cost(self, quantised: Tensor, levels: Tensor) -> Tensor:
        """Bits of all coefficients of an image in units of 1 / `COST_UNIT`, nearly: shape (B,), int64.

        Args:
            quantised: Shape (B, ...), in any order.
            levels: Their contexts.
        """
        places = levels * (_COSTED + 1) + quantised.abs().clamp(max=_COSTED).long()
        return looked_up(self.costs, places).flatten(1).sum(dim=1)


def looked_up(table: Tensor, places: Tensor) -> Tensor:
    """Entries of a table of shape (n,) at places of any shape."""
    return table.index_select(0, places.flatten()).view(places.shape)
