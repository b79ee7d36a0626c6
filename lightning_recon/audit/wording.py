# SPDX-License-Identifier: Apache-2.0
"""The verdict in sentences: each one states a measurement and the privacy parameters under which it was made."""

from collections.abc import Sequence
from typing import Literal

from lightning_recon.audit.aggregate import CONFIDENCE, Point, smallest_noise
from lightning_recon.audit.bit_exact import exact_of, most_exact, share_interval
from lightning_recon.audit.formatting import batch_of, enumerated, guarantee_of, noise_of
from lightning_recon.audit.identified import beats_a_guess, identified_of
from lightning_recon.audit.verdict import LEVELS, Level, Protection
from lightning_recon.privacy.reconstruction_robustness import binomial_interval


def summary_sentence(protections: Sequence[Protection], tolerance: float) -> str:
    """The result of the whole audit in one or two sentences.

    Args:
        protections: At least one.
        tolerance: Gain in dB over the mean image that still counts as no leakage.
    """
    count = {level: sum(one.level == level for one in protections) for level in LEVELS}
    parts = []
    if count["recognisable"]:
        parts.append(f"reconstructions were recognisable under {count['recognisable']}")
    if count["something"]:
        something = "reconstructions were better than the mean image, but not recognisable,"
        parts.append(f"{something} under {count['something']}")
    if count["identified"]:
        only = f"no attack exceeded the mean image by more than {tolerance:g} dB, but one identified victims,"
        parts.append(f"{only} under {count['identified']}")
    if count["nothing"]:
        parts.append(f"no attack exceeded the mean image by more than {tolerance:g} dB under {count['nothing']}")
    if count["open"]:
        parts.append(f"there were too few images to decide under {count['open']}")
    audited = "privacy setting was" if len(protections) == 1 else "privacy settings were"
    text = f"{len(protections)} {audited} audited: {'; '.join(parts)}."
    if exact := sum(bool((most := most_exact(one.points)) and most[1].came) for one in protections):
        # Not a level of its own: these settings are already counted among the recognisable ones.
        settings = "it" if len(protections) == 1 else f"{exact} of them"
        text += f" Under {settings}, images were reconstructed bit for bit."
    return text


def sentences_of(protections: Sequence[Protection], tolerance: float) -> list[tuple[Level, str]]:
    """Describe the settings where the level changes: recognisable images, and the onset of no leakage.

    Args:
        protections: Of one setting, the smallest noise multiplier first.
        tolerance: Gain in dB over the mean image that still counts as no leakage.

    Returns:
        Levels with sentences.
    """
    recognisable = [one for one in protections if one.level == "recognisable"]
    chosen = list(dict.fromkeys([*recognisable[:1], *recognisable[-1:]]))
    smallest_without_leakage: list[Protection] = []
    for one in reversed(protections):
        if one.level != "nothing":
            chosen += [one] if one not in chosen else []
            break
        smallest_without_leakage = [one]
    chosen += smallest_without_leakage
    return [(one.level, _sentence(one, tolerance)) for one in sorted(chosen, key=lambda one: one.noise)]


def exact_sentences(protections: Sequence[Protection]) -> list[tuple[Level | Literal[""], str]]:
    """State where images were reconstructed bit for bit, and where none was.

    Args:
        protections: Of one setting, the smallest noise multiplier first.

    Returns:
        Levels with sentences; none where no run compared bit for bit.
    """
    sentences: list[tuple[Level | Literal[""], str]] = []
    none_exact = []
    for one in protections:
        most = most_exact(one.points)
        if most is None:
            continue
        point, exact = most
        if not exact.came:
            none_exact.append((one.noise, exact))
            continue
        start = f"At {guarantee_of(point)}, z = {one.noise:.3g}, {batch_of(point.setting)}"
        sentences.append(("recognisable", f"{start}: {exact.sentence}, by “{point.attack}” ({share_interval(exact)})."))
    if none_exact:
        fewest = min((exact for _, exact in none_exact), key=lambda exact: exact.images)
        at = enumerated([f"{noise:.3g}" for noise, _ in none_exact])
        images = "the only image" if fewest.images == 1 else f"any of {fewest.images} images"
        sentences.append(("", f"At z = {at}, no attack reconstructed {images} bit for bit ({share_interval(fewest)})."))
    return sentences


def noise_sentence(points: Sequence[Point], tolerance: float) -> str:
    """State the smallest audited noise that keeps every attack within the tolerance, and how certain that is."""
    found = smallest_noise(points, tolerance)
    start = f"Smallest audited noise that keeps every attack within {tolerance:g} dB of the mean image"
    if found is None:
        return f"{start}: not determined. This needs noise, at least two images, and the true images."
    if found.mean is None:
        return f"{start}: none. No noise multiplier above z = {max(point.noise for point in points):.3g} was tried."
    text = f"{start}: {noise_of(found.mean, points)}."
    if found.sure is None:
        text += " The 95 % confidence interval exceeds the tolerance at every noise multiplier: use more images."
    elif found.sure > found.mean:
        text += f" With the whole 95 % confidence interval within the tolerance: {noise_of(found.sure, points)}."
    elif any(point.detects for point in points if point.noise >= found.sure):
        text += " The whole 95 % confidence interval is within the tolerance, too."
    else:
        images = min(point.psnr.pictures for point in points)
        share = binomial_interval(0, images, CONFIDENCE)[1]
        text += (
            f" No attack detected any of the {images} images there; with so few images, the share that can be detected "
            f"may still be up to {100 * share:.0f} % (95 % confidence interval)."
        )
    if known := sorted({point.noise for point in points if point.noise >= found.mean and beats_a_guess(point)}):
        at = enumerated([f"{noise:.3g}" for noise in known])
        text += f" This is not enough to hide who the victims are: at z = {at}, an attack identifies them."
    if not any(0 < point.noise < found.mean for point in points):
        return text + " No smaller noise multiplier was tried."
    if found.exceeded is None:
        return text + " At no smaller noise multiplier does the whole interval lie above the tolerance."
    at = f" At z = {found.exceeded:.3g}, the whole interval lies above the tolerance"
    return f"{text}{at}, so the threshold lies between these values of z."


def _sentence(one: Protection, tolerance: float) -> str:
    best = one.best
    low, high = best.gain.low, best.gain.high
    interval = "" if low is None else f" (95 % confidence interval {low:+.1f} to {high:+.1f} dB)"
    start = f"At {guarantee_of(best)}, z = {one.noise:.3g}: "
    within = f"{start}no attack exceeds the mean image by more than {tolerance:g} dB on average"
    if one.level == "identified" and (found := identified_of(best)):
        return f"{within}, but “{best.attack}” identifies {found.sentence}."
    if not any(point.detects for point in one.points):
        images = f"any of the {best.psnr.pictures} images"
        return f"{start}no attack detected {images}; the mean image remains the best estimate."
    if one.level == "nothing":
        return f"{within}; the best, “{best.attack}”, is at {best.gain.mean:+.1f} dB{interval}."
    if one.level == "open":
        return (
            f"{within}, but there are too few images to be certain: “{best.attack}” is at "
            f"{best.gain.mean:+.1f} dB{interval}."
        )
    recovered = "recognisable" if one.level == "recognisable" else "better than the mean image, but not recognisable"
    exact = exact_of(best)
    single = "is bit-exact" if exact and exact.came else f"has {best.best:.1f} dB"
    oracles = f", given {' and '.join(best.oracles)} as oracle information," if best.oracles else ""
    return (
        f"{start}reconstructions are {recovered}. “{best.attack}”{oracles} reaches {best.psnr.mean:.1f} dB, "
        f"{best.gain.mean:.1f} dB above the mean image{interval}; the best single image {single}."
    )
