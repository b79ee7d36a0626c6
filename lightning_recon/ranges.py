# SPDX-License-Identifier: Apache-2.0
"""Valid ranges of numeric options, checked by every constructor that a config can call."""

import math
from dataclasses import dataclass

from lightning_recon.errors import UserError


@dataclass(frozen=True)
class Range:
    """A closed or open interval from `least` to `most`; NaN and infinity are never inside.

    Args:
        words: What to give, for the message.
        least: Smallest number.
        most: Largest number.
        inner: Whether the interval is open, that is, excludes both ends.
        zero: Whether 0 is allowed too.
    """

    words: str
    least: float
    most: float
    inner: bool = False
    zero: bool = False

    def __contains__(self, value: float) -> bool:
        """Whether a number lies in the range."""
        if not math.isfinite(value):
            return False
        if value == 0 and self.zero:
            return True
        return self.least < value < self.most if self.inner else self.least <= value <= self.most


# The squares of these numbers stay within float32, the precision of the gradients.
POSITIVE = Range("a number above 0, from 1e-18 to 1e18", 1e-18, 1e18)
NOT_NEGATIVE = Range("a number of at least 0: 0, or from 1e-18 to 1e18", 1e-18, 1e18, zero=True)
CLIP = Range("a number above 0, from 1e-18 to 1e18, or .inf for no clip", 1e-18, 1e18)
PROBABILITY = Range("a number between 0 and 1, neither included", 0, 1, inner=True)
SHARE = Range("a number above 0, up to 1", 1e-18, 1)
FRACTION = Range("a number from 0 to 1", 0, 1)
COUNT = Range("a whole number of at least 1", 1, 2**31 - 1)
COUNT_OR_NONE = Range("a whole number of at least 0", 0, 2**31 - 1)
LEVELS = Range("a whole number from 1 to 65536", 1, 2**16)
SIZE = Range("a whole number from 1 to 1048576", 1, 2**20)
SIZE_OR_NONE = Range("a whole number from 0 to 1048576", 0, 2**20)
SIZE_IN_BYTES = Range("a whole number of bytes, at least 1", 1, 2**63 - 1)
CHANNELS = Range("a whole number from 1 to 64", 1, 64)
BIT_DEPTH = Range("a whole number from 8 to 16", 8, 16)
SIDE = Range("a whole number of pixels from 8 to 8192", 8, 2**13)
# Seeds of torch's, Lightning's and OpenCV's random generators.
SEED = Range("a whole number from 0 to 18446744073709551615", 0, 2**64 - 1)
SEED_32 = Range("a whole number from 0 to 4294967295", 0, 2**32 - 1)
SEED_31 = Range("a whole number from 0 to 2147483647", 0, 2**31 - 1)


def check_ranges(prefix: str, **options: tuple[float | None, Range]) -> None:
    """Refuse numbers that are out of range.

    Args:
        prefix: Prefix of each option's name, for instance "--model.client.".
        options: For each option name, its value (None if the option was not given) and its range.

    Raises:
        UserError: Names the first option that is out of range, and what to give.
    """
    for name, (value, range_) in options.items():
        if value is not None and value not in range_:
            raise UserError(f"{prefix}{name} is {value}: give {range_.words}")
