# SPDX-License-Identifier: Apache-2.0
"""The traffic light of a protection: what the tested attacks learned, and what theory leaves open to others.

Its thresholds are a convention, like those of "recognisable": they are the same for every audit.
"""

from collections.abc import Sequence
from typing import Literal

from lightning_recon.audit.aggregate import Point
from lightning_recon.audit.bit_exact import most_exact
from lightning_recon.audit.verdict import Level, Protection

Light = Literal["red", "amber", "green"]
# The most leakage first.
LIGHTS: tuple[Light, ...] = ("red", "amber", "green")
PRIOR_SUCCESS = 0.1
# An attack that a blind guess makes succeed in one case of ten may, under a green light, succeed in half of the cases.
GREEN_GAMMA = 0.5

FINDINGS: dict[Level, str] = {
    "recognisable": "recognisable images",
    "something": "coarse images",
    "identified": "images identified",
    "open": "too few images to decide",
    "nothing": "nothing found",
}
NOT_EXCLUDED = "nothing found, not excluded"
EXACT = "exact copies"


def light_of(level: Level, exact: bool, gamma: float | None) -> Light:
    """The light of a protection.

    Args:
        level: What the strongest attack recovers.
        exact: Whether an attack reconstructed an image bit for bit.
        gamma: Bound on the success of every attack whose prior success is `PRIOR_SUCCESS`; None where none is known.

    Returns:
        "red" for recognisable or exact images. "green" if no attack learned anything, and the bound is `GREEN_GAMMA` or
        less. Otherwise "amber".
    """
    if exact or level == "recognisable":
        return "red"
    return "green" if level == "nothing" and gamma is not None and gamma <= GREEN_GAMMA else "amber"


def light_of_protection(protection: Protection) -> Light:
    """The light of a protection of the sweep."""
    return light_of(protection.level, has_exact(protection.points), gamma_of(protection.best))


def finding_of(protection: Protection) -> str:
    """What the attacks of this audit learned, in a few words without numbers."""
    if has_exact(protection.points):
        return EXACT
    if protection.level == "nothing" and light_of_protection(protection) != "green":
        return NOT_EXCLUDED
    return FINDINGS[protection.level]


def has_exact(points: Sequence[Point]) -> bool:
    """Whether any of these attacks reconstructed an image bit for bit."""
    most = most_exact(points)
    return most is not None and most[1].came > 0


def gamma_of(point: Point) -> float | None:
    """The bound on the success of every attack, all rounds together; None where it is not known."""
    gamma = (point.privacy.get("rero_gamma") or {}).get(str(PRIOR_SUCCESS))
    return None if gamma is None else float(gamma)
