# SPDX-License-Identifier: Apache-2.0
"""Bit-exact reconstructions in words: how many, under which protection, with their confidence interval."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_recon.audit.aggregate import CONFIDENCE, Point
from lightning_recon.privacy.reconstruction_robustness import binomial_interval


@dataclass(frozen=True)
class BitExactCount:
    """How many images one attack reconstructed bit for bit.

    Args:
        came: In any noise draw.
        always: In every noise draw.
        images: Number of attacked images.
        draws: Noise draws of each.
    """

    came: int
    always: int
    images: int
    draws: int

    @property
    def sentence(self) -> str:
        """The count in words."""
        were = "image was" if self.images == 1 else "images were"
        return f"{self.came} of {self.images} {were} reconstructed bit for bit{self._draws_in_words()}"

    def _draws_in_words(self) -> str:
        if self.draws == 1:
            return ""
        if self.always == self.came:
            return f" in each of {self.draws} noise draws"
        return f" in at least one of {self.draws} noise draws ({self.always} in all of them)"


def exact_of(point: Point) -> BitExactCount | None:
    """Count the images that an attack reconstructed bit for bit; None where its runs did not compare.

    Args:
        point: The attack under one protection.
    """
    found: dict[object, list[bool]] = defaultdict(list)
    for outcome in point.outcomes:
        for victim in outcome.record["victims"]:
            if victim.get("bit_exact") is None:
                return None
            found[outcome.image_of(victim)].append(bool(victim["bit_exact"]))
    came, always = (sum(map(some, found.values())) for some in (any, all))
    return BitExactCount(came, always, len(found), max(map(len, found.values())))


def most_exact(points: Sequence[Point]) -> tuple[Point, BitExactCount] | None:
    """The attack with the most bit-exact images under one protection; None where no run compared."""
    counted = [(point, exact) for point in points if (exact := exact_of(point)) is not None]
    return max(counted, key=lambda pair: (pair[1].came, pair[1].always), default=None)


def share_interval(exact: BitExactCount) -> str:
    """The confidence interval of the share of bit-exact images, in words."""
    low, high = binomial_interval(exact.came, exact.images, CONFIDENCE)
    return f"95 % confidence interval of the share of such images: {100 * low:.0f} to {100 * high:.0f} %"
