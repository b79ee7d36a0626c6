# SPDX-License-Identifier: Apache-2.0
"""Pool cells over seeds: intervals over images and draws, and the smallest noise that defeats all attacks."""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import t as student

from lightning_recon.audit.run import Outcome, Setting
from lightning_recon.evaluation.wording import RECOGNISABLE_GAIN, RECOGNISABLE_SSIM

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Args:
        mean: Mean over all images and draws.
        low: Lower end; None for a single image.
        high: Upper end; None for a single image.
        pictures: Number of images.
    """

    mean: float
    low: float | None
    high: float | None
    pictures: int


def interval_of(values: Mapping[object, Sequence[float]], confidence: float = CONFIDENCE) -> Interval:
    """Confidence interval of a mean over images and noise draws.

    The draws of one image are correlated, so each image counts once, with the mean over its draws; the noise that
    remains in that mean widens the interval by itself.

    Args:
        values: Measured values of every draw, by image; at least one image.
        confidence: Probability that the interval contains the mean over such images, in (0, 1).

    Returns:
        Student's interval over the images' means. For few images it is wider than the bootstrap interval of a run's
        `results.json`, which then covers less than its confidence: verdicts rest on this one.

    Source: Student (1908); one mean a cluster as in Donner and Klar, "Design and Analysis of Cluster Randomization
    Trials" (2000), chapter 6.
    """
    means = [statistics.fmean(draws) for draws in values.values()]
    mean, count = statistics.fmean(means), len(means)
    if count == 1:
        return Interval(mean, None, None, 1)
    half = float(student.ppf((1 + confidence) / 2, count - 1)) * statistics.stdev(means) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


@dataclass(frozen=True, eq=False)
class Point:
    """One attack under one protection, all seeds together.

    Args:
        attack: Name of the attack.
        setting: The protection without the noise.
        noise: Noise multiplier.
        psnr: PSNR in dB.
        gain: PSNR in dB above that of a mean image, on the same images.
        ssim: Mean structural similarity.
        worst: Lowest PSNR in dB of any image and draw.
        best: Highest PSNR in dB of any image and draw.
        oracles: Oracle information that the attack used.
        outcomes: The cells, one a seed.
    """

    attack: str
    setting: Setting
    noise: float
    psnr: Interval
    gain: Interval
    ssim: float
    worst: float
    best: float
    oracles: tuple[str, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def privacy(self) -> Mapping[str, Any]:
        """The section `privacy`; the same for all seeds."""
        privacy: Mapping[str, Any] = self.outcomes[0].record["privacy"]
        return privacy

    @property
    def recognisable(self) -> bool:
        """Whether reconstructions are recognisable, by the report's convention."""
        return self.gain.mean >= RECOGNISABLE_GAIN and self.ssim >= RECOGNISABLE_SSIM

    @property
    def detects(self) -> bool:
        """Whether the attack detected a victim in any draw of any seed."""
        return any(outcome.detects for outcome in self.outcomes)

    def mean_of(self, part: str, name: str) -> float | None:
        """Mean over seeds of a number of the record; None where one of them has none."""
        values = [(outcome.record[part] or {}).get(name) for outcome in self.outcomes]
        known = [float(value) for value in values if value is not None]
        return statistics.fmean(known) if len(known) == len(values) else None


def gaussian_reference_of(point: Point) -> tuple[float, float, float] | tuple[None, None, None]:
    """The Gaussian reference with the ends of its interval, a mean over seeds.

    Records of earlier versions have no interval, and their value was that of the server's statistics: it is left out.
    """
    found = [point.mean_of("bounds", f"gaussian_reference_{end}") for end in ("psnr", "low", "high")]
    psnr, low, high = found
    return (None, None, None) if psnr is None or low is None or high is None else (psnr, low, high)


def points_of(outcomes: Sequence[Outcome]) -> list[Point]:
    """Pool cells that differ in their seed alone.

    Args:
        outcomes: Finished cells whose true images are known.

    Returns:
        Points, in the order of the cells.
    """
    groups: dict[tuple[str, Setting, float], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.attack, outcome.setting, outcome.noise].append(outcome)
    return [_point(*key, tuple(group)) for key, group in groups.items()]


@dataclass(frozen=True)
class Threshold:
    """The smallest audited noise that keeps every attack within a tolerance of the mean image.

    Nothing is read between audited noises: how the gain falls there was not measured.

    Args:
        exceeded: The most noise under which the whole interval of some attack's gain lies above the tolerance; None if
            there is none.
        mean: The least noise from which on every attack's mean gain keeps within it; None if not even the most does.
        sure: The least noise from which on all of every attack's interval does; None if not even the most does.
    """

    exceeded: float | None
    mean: float | None
    sure: float | None


def smallest_noise(points: Sequence[Point], tolerance: float) -> Threshold | None:
    """Find the smallest noise that keeps every attack within a tolerance.

    Args:
        points: All attacks under one setting.
        tolerance: Gain in dB over a mean image, > 0.

    Returns:
        The threshold; None without noise, or where a gain has no interval.
    """
    noisy = [point for point in points if point.noise > 0]
    if not noisy or any(point.gain.low is None for point in noisy):
        return None
    above = [p.noise for p in noisy if p.gain.low is not None and p.gain.low > tolerance]
    return Threshold(
        exceeded=max(above, default=None),
        mean=_from(noisy, [point.gain.mean <= tolerance for point in noisy]),
        sure=_from(noisy, [p.gain.high is not None and p.gain.high <= tolerance for p in noisy]),
    )


def _from(points: Sequence[Point], kept: Sequence[bool]) -> float | None:
    """The least noise from which on all points keep within."""
    broken = max((point.noise for point, fine in zip(points, kept, strict=True) if not fine), default=0.0)
    return min((point.noise for point in points if point.noise > broken), default=None)


def by_image(outcomes: Sequence[Outcome], gain: bool) -> dict[object, list[float]]:
    """`Outcome.by_image` of several seeds together; empty if that of one is."""
    found: dict[object, list[float]] = defaultdict(list)
    parts = [outcome.by_image(gain) for outcome in outcomes]
    for part in parts:
        for image, values in part.items():
            found[image] += values
    return dict(found) if all(parts) else {}


def _point(attack: str, setting: Setting, noise: float, outcomes: tuple[Outcome, ...]) -> Point:
    scores, gains = (by_image(outcomes, gain) for gain in (False, True))
    psnr = interval_of(scores)
    baseline = statistics.fmean(outcome.record["baselines"]["mean_image_psnr"] for outcome in outcomes)
    return Point(
        attack=attack,
        setting=setting,
        noise=noise,
        psnr=psnr,
        gain=interval_of(gains) if gains else Interval(psnr.mean - baseline, None, None, psnr.pictures),
        ssim=statistics.fmean(outcome.record["summary"]["ssim_mean"] for outcome in outcomes),
        worst=min(value for values in scores.values() for value in values),
        best=max(value for values in scores.values() for value in values),
        oracles=tuple(sorted({oracle for outcome in outcomes for oracle in outcome.record["oracles"]})),
        outcomes=outcomes,
    )
