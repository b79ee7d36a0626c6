# SPDX-License-Identifier: Apache-2.0
"""Effect of each change of a protection in decibels, and alarms of the payload check."""

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from lightning_recon.audit.aggregate import Interval, Point, by_picture, interval_of, points_of
from lightning_recon.audit.load import Intervention
from lightning_recon.audit.run import Outcome
from lightning_recon.audit.wording import NAMES, Level, level_of, protections_of

# What the checks of `defense.inspect_model` look for.
CHECKS = {
    "repeated_rows": "units that all measure the same quantity",
    "constant_inputs": "inputs that are the same for every image",
    "energy_share": "one layer that takes nearly all of the gradient",
    "false_gradient": "a gradient that is not the derivative of the loss",
    "silent_layer": "a layer with a large gradient that does not change the output",
    "linear_gradient": "a gradient that is a linear copy of the image",
}


@dataclass(frozen=True, eq=False)
class Advice:
    """The effect of one change.

    Args:
        name: Of the change.
        cost: Its cost in words; may be empty.
        before: The strongest attack without it.
        after: The strongest attack with it.
        psnr_before: That attack's mean PSNR in dB on the images of both sides; on its own images if they share none.
        psnr_after: The same with the change.
        bought: Reduction of PSNR in dB, with its interval over those images; if they share none, the reduction of the
            gain over a mean image, without an interval.
        level: Result of the strongest attack on these images with the change.
    """

    name: str
    cost: str
    before: Point
    after: Point
    psnr_before: float
    psnr_after: float
    bought: Interval
    level: Level


def advice_of(trial: Intervention, tolerance: float) -> Advice:
    """Compare the strongest attack without and with a change, image by image where the images are the same.

    Args:
        trial: The cells of both sides, each of one protection.
        tolerance: Gain in dB over a mean image that still counts as no reconstruction.
    """
    before = protections_of(points_of(trial.before), tolerance)[0].best
    after = protections_of(points_of(trial.after), tolerance)[0].best
    scores = [by_picture(point.outcomes, gain=False) for point in (before, after)]
    # Only equal names identify the same image.
    common = [picture for picture in scores[0] if isinstance(picture, str) and picture in scores[1]]
    psnr_before, psnr_after = before.psnr.mean, after.psnr.mean
    bought = Interval(before.gain.mean - after.gain.mean, None, None, 0)
    level = level_of(after, tolerance)
    if common:
        level = level_of(_on(after, set(common)), tolerance)
        means = [[statistics.fmean(score[picture]) for picture in common] for score in scores]
        psnr_before, psnr_after = map(statistics.fmean, means)
        bought = interval_of({picture: [a - b] for picture, a, b in zip(common, *means, strict=True)})
    return Advice(trial.name, trial.cost, before, after, psnr_before, psnr_after, bought, level)


def _on(point: Point, pictures: Collection[object]) -> Point:
    """The results of an attack on some of its images, since batches of another size hold others too."""
    gains = {
        picture: values for picture, values in by_picture(point.outcomes, gain=True).items() if picture in pictures
    }
    ssim = [
        float(victim["ssim"])
        for outcome in point.outcomes
        for victim in outcome.record["victims"]
        if outcome.originals[victim["client"], victim["index"]]["name"] in pictures
    ]
    return replace(point, gain=interval_of(gains), ssim=statistics.fmean(ssim))


def advice_sentence(advice: Sequence[Advice]) -> str:
    """The most effective change in words."""
    best = max(advice, key=lambda one: one.bought.mean)
    low = best.bought.low
    if best.bought.mean <= 0 or (low is not None and low <= 0):
        return "No tested change reliably reduces the leakage."
    between = "" if low is None else f" (95 % interval {low:.1f} to {best.bought.high:.1f} dB)"
    return (
        f"Of the tested changes, “{best.name}” has the largest effect: the strongest attack loses "
        f"{best.bought.mean:.1f} dB{between}. Its remaining result: {NAMES[best.level]}."
    )


@dataclass(frozen=True)
class Warned:
    """Alarms that checking the shipped model would have raised at the clients of one attack.

    Args:
        attack: Its name.
        refused: Number of runs with an alarm.
        runs: Number of runs that were checked.
        checks: What the checks that alarm in any of them look for.
    """

    attack: str
    refused: int
    runs: int
    checks: tuple[str, ...]


def warned_of(outcomes: Sequence[Outcome]) -> list[Warned]:
    """Alarms of `defense.inspect_model` by attack; empty where no run was checked.

    Args:
        outcomes: Finished runs.
    """
    found = []
    for attack in dict.fromkeys(outcome.attack for outcome in outcomes):
        looks = [outcome.record.get("payload_alarms") for outcome in outcomes if outcome.attack == attack]
        known = [alarms for alarms in looks if alarms is not None]
        names = dict.fromkeys(CHECKS.get(name, name) for alarms in known for name in alarms)
        if known:
            found.append(Warned(attack, sum(bool(alarms) for alarms in known), len(known), tuple(names)))
    return found
