# SPDX-License-Identifier: Apache-2.0
"""Valid ranges of numeric options, and choices of others, checked by every constructor that a config can call."""

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass

from lightning_recon.errors import UserError
from lightning_recon.suggestions import closest


@dataclass(frozen=True)
class Range:
    """A closed or open interval from `least` to `most`; NaN and infinity are never inside.

    Args:
        words: What to give, for the message.
        least: Smallest number.
        most: Largest number.
        inner: Whether the interval is open, that is, excludes both ends.
        zero: Whether 0 is allowed too.
        whole: Whether only whole numbers are allowed, of a type of integers.
    """

    words: str
    least: float
    most: float
    inner: bool = False
    zero: bool = False
    whole: bool = False

    def __contains__(self, value: float) -> bool:
        """Whether a number lies in the range; what is no number does not."""
        try:
            finite = math.isfinite(operator.index(value) if self.whole else value)  # type: ignore[arg-type]
        except (TypeError, OverflowError):
            return False
        if not finite:
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
COUNT = Range("a whole number of at least 1", 1, 2**31 - 1, whole=True)
COUNT_OR_NONE = Range("a whole number of at least 0", 0, 2**31 - 1, whole=True)
LEVELS = Range("a whole number from 1 to 65536", 1, 2**16, whole=True)
SIZE = Range("a whole number from 1 to 1048576", 1, 2**20, whole=True)
SIZE_OR_NONE = Range("a whole number from 0 to 1048576", 0, 2**20, whole=True)
SIZE_IN_BYTES = Range("a whole number of bytes, at least 1", 1, 2**63 - 1, whole=True)
CHANNELS = Range("a whole number from 1 to 64", 1, 64, whole=True)
BIT_DEPTH = Range("a whole number from 8 to 16", 8, 16, whole=True)
SIDE = Range("a whole number of pixels from 8 to 8192", 8, 2**13, whole=True)
# Seeds of torch's, Lightning's and OpenCV's random generators.
SEED = Range("a whole number from 0 to 18446744073709551615", 0, 2**64 - 1, whole=True)
SEED_32 = Range("a whole number from 0 to 4294967295", 0, 2**32 - 1, whole=True)
SEED_31 = Range("a whole number from 0 to 2147483647", 0, 2**31 - 1, whole=True)


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
            shown = repr(value) if isinstance(value, str) else value
            raise UserError(f"{prefix}{name} is {shown}: give {range_.words}")


def check_choices(prefix: str, **options: tuple[str, Iterable[str]]) -> None:
    """Refuse values that are none of the choices, which a call from Python may give.

    Args:
        prefix: Prefix of each option's name, for instance "--model.client.".
        options: For each option name, its value and its choices.

    Raises:
        UserError: Names the first option that is none of its choices, and what to give.
    """
    for name, (value, choices) in options.items():
        known = list(choices)
        if value not in known:
            near = closest(str(value), known)
            advice = f"did you mean {near}?" if near else f"choose one of {', '.join(known)}"
            raise UserError(f"{prefix}{name} is {value!r}: {advice}")
