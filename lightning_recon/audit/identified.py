# SPDX-License-Identifier: Apache-2.0
"""Whether reconstructions identify their victims, which images with a lower PSNR than the mean image may do, too."""

import statistics
from collections import defaultdict
from dataclasses import dataclass

from lightning_recon.audit.aggregate import CONFIDENCE, Point
from lightning_recon.privacy.reconstruction_robustness import binomial_interval


@dataclass(frozen=True)
class IdentifiedShare:
    """How often an attack identifies its victims, see `evaluation.identification`.

    Args:
        share: Share of the images, a mean over draws.
        images: Number of attacked images.
        gallery: Number of images that each reconstruction is compared with; the least of all seeds.
        chance: Success of a guess without the updates; the most of all seeds.
    """

    share: float
    images: int
    gallery: int
    chance: float

    @property
    def beats_a_guess(self) -> bool:
        """Whether the share is above that of a guess, with the whole confidence interval.

        The draws of one image are correlated, so it counts once, with its mean.
        """
        return binomial_interval(int(self.share * self.images + 1e-9), self.images, CONFIDENCE)[0] > self.chance

    @property
    def sentence(self) -> str:
        """The share in words."""
        return (
            f"{100 * self.share:.0f} % of {self.images} images among {self.gallery} (a guess identifies "
            f"{100 * self.chance:.3g} %)"
        )


def identified_of(point: Point) -> IdentifiedShare | None:
    """How often an attack under one protection identifies its victims; None where a run had no gallery."""
    found: dict[object, list[bool]] = defaultdict(list)
    galleries, chances = [], []
    for outcome in point.outcomes:
        summary = outcome.record["summary"]
        flags = [victim.get("identified") for victim in outcome.record["victims"]]
        if summary.get("gallery_size") is None or summary.get("identification_chance") is None or None in flags:
            return None
        galleries.append(int(summary["gallery_size"]))
        chances.append(float(summary["identification_chance"]))
        for victim, flag in zip(outcome.record["victims"], flags, strict=True):
            found[outcome.image_of(victim)].append(bool(flag))
    share = statistics.fmean(statistics.fmean(draws) for draws in found.values())
    return IdentifiedShare(share, len(found), min(galleries), max(chances))


def beats_a_guess(point: Point) -> bool:
    """Whether an attack identifies victims more often than a guess does, as far as that can be said."""
    found = identified_of(point)
    return found is not None and found.beats_a_guess
