# SPDX-License-Identifier: Apache-2.0
"""How much the strongest attack recovers under each noise multiplier, as one of five levels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_recon.audit.aggregate import Point
from lightning_recon.audit.identified import beats_a_guess

Level = Literal["recognisable", "something", "identified", "nothing", "open"]
LEVEL_NAMES: dict[Level, str] = {
    "recognisable": "recognisable",
    "something": "better than the mean image",
    "identified": "no better than the mean image, but identified",
    "nothing": "no better than the mean image",
    "open": "undecided",
}
# The most leakage first.
LEVELS: tuple[Level, ...] = ("recognisable", "something", "identified", "open", "nothing")


@dataclass(frozen=True, eq=False)
class Protection:
    """One setting under one noise multiplier, with the attack that recovers most.

    Args:
        level: What the strongest attack recovers.
        best: The strongest attack.
        points: All attacks.
    """

    level: Level
    best: Point
    points: tuple[Point, ...]

    @property
    def noise(self) -> float:
        """The noise multiplier."""
        return self.best.noise


def level_of(point: Point, tolerance: float) -> Level:
    """Classify an attack by its gain in PSNR over the mean image, and by whether it identifies victims.

    Args:
        point: The attack under one noise multiplier.
        tolerance: Gain in dB that still counts as no leakage.

    Returns:
        "identified" if the mean gain is within the tolerance, but victims are identified more often than by a guess.
        Otherwise "nothing" only if the whole confidence interval of the mean gain is within the tolerance; "open" if
        the mean is within it but the interval is not, or if there is no interval.
    """
    if point.recognisable:
        return "recognisable"
    if point.gain.mean > tolerance:
        return "something"
    if beats_a_guess(point):
        return "identified"
    return "open" if point.gain.high is None or point.gain.high > tolerance else "nothing"


def protections_of(points: Sequence[Point], tolerance: float) -> list[Protection]:
    """Group the attacks of one setting by noise multiplier, the smallest first."""
    found = []
    for noise in sorted({point.noise for point in points}):
        here = tuple(point for point in points if point.noise == noise)
        best = min(here, key=lambda point: (LEVELS.index(level_of(point, tolerance)), -point.gain.mean))
        found.append(Protection(level_of(best, tolerance), best, here))
    return found
