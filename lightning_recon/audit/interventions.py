# SPDX-License-Identifier: Apache-2.0
"""The effect of each intervention: by how many decibels it lowers what the strongest attack recovers."""

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from lightning_recon.audit.aggregate import Interval, Point, by_image, interval_of, points_of
from lightning_recon.audit.load import Intervention
from lightning_recon.audit.traffic_light import Light, light_of_protection
from lightning_recon.audit.verdict import LEVEL_NAMES, Level, level_of, protections_of


@dataclass(frozen=True, eq=False)
class InterventionEffect:
    """The effect of one intervention.

    Args:
        name: Name of the intervention.
        cost: Its cost in words; may be empty.
        before: The strongest attack without it.
        after: The strongest attack with it.
        psnr_before: Mean PSNR in dB of the attack before, on the images that both sides have in common, if any.
        psnr_after: The same for the attack after.
        reduction: Reduction of the PSNR in dB, with its interval over the common images; without common images, the
            reduction of the gain over the mean image, without an interval.
        level: What the strongest attack still recovers of these images.
        lights: The traffic lights without and with it.
    """

    name: str
    cost: str
    before: Point
    after: Point
    psnr_before: float
    psnr_after: float
    reduction: Interval
    level: Level
    lights: tuple[Light, Light]


def effect_of(trial: Intervention, tolerance: float) -> InterventionEffect:
    """Compare the strongest attacks without and with an intervention, image by image where the images are the same.

    Args:
        trial: The cells of both sides, each in one privacy setting.
        tolerance: Gain in dB over the mean image that still counts as no leakage.
    """
    sides = [protections_of(points_of(side), tolerance)[0] for side in (trial.before, trial.after)]
    before, after = (side.best for side in sides)
    lights = light_of_protection(sides[0]), light_of_protection(sides[1])
    scores = [by_image(point.outcomes, gain=False) for point in (before, after)]
    # Images are identified by their names; those without a name are not comparable.
    common = [image for image in scores[0] if isinstance(image, str) and image in scores[1]]
    psnr_before, psnr_after = before.psnr.mean, after.psnr.mean
    reduction = Interval(before.gain.mean - after.gain.mean, None, None, 0)
    level = level_of(after, tolerance)
    if common:
        level = level_of(_restricted_to(after, set(common)), tolerance)
        means = [[statistics.fmean(score[image]) for image in common] for score in scores]
        psnr_before, psnr_after = map(statistics.fmean, means)
        reduction = interval_of({image: [a - b] for image, a, b in zip(common, *means, strict=True)})
    return InterventionEffect(trial.name, trial.cost, before, after, psnr_before, psnr_after, reduction, level, lights)


def best_intervention_sentence(effects: Sequence[InterventionEffect]) -> str:
    """Name the most effective intervention.

    Args:
        effects: At least one.
    """
    best = max(effects, key=lambda one: one.reduction.mean)
    low = best.reduction.low
    if best.reduction.mean <= 0 or (low is not None and low <= 0):
        return "No tested change reliably reduces the leakage."
    interval = "" if low is None else f" (95 % confidence interval {low:.1f} to {best.reduction.high:.1f} dB)"
    return (
        f"The most effective of the tested changes is “{best.name}”: it lowers the PSNR of the strongest attack by "
        f"{best.reduction.mean:.1f} dB{interval}. The reconstructions are then {LEVEL_NAMES[best.level]}."
    )


def _restricted_to(point: Point, images: Collection[object]) -> Point:
    """The results of an attack on some of its images: a larger batch contains further ones."""
    gains = {image: values for image, values in by_image(point.outcomes, gain=True).items() if image in images}
    ssim = [
        float(victim["ssim"])
        for outcome in point.outcomes
        for victim in outcome.record["victims"]
        if outcome.image_of(victim) in images
    ]
    # Without the scores of a mean image there is no gain on these images alone.
    return replace(point, gain=interval_of(gains) if gains else point.gain, ssim=statistics.fmean(ssim))
