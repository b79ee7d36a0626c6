# SPDX-License-Identifier: Apache-2.0
"""The verdict in plain words: only what was measured, with the protection that it was measured under."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_recon.audit.aggregate import CONFIDENCE, Point, smallest_noise
from lightning_recon.audit.bit_exact import exact_of, most_exact, share_sentence
from lightning_recon.audit.run import Setting, recorded_epsilon
from lightning_recon.evaluation.formatting import in_words
from lightning_recon.privacy.reconstruction_robustness import binomial_interval

Level = Literal["recognisable", "something", "nothing", "open"]
NAMES: dict[Level, str] = {
    "recognisable": "recognisable",
    "something": "more than a mean image",
    "nothing": "no better than a mean image",
    "open": "undecided",
}
_ORDER: tuple[Level, ...] = ("recognisable", "something", "open", "nothing")


@dataclass(frozen=True, eq=False)
class Protection:
    """One setting under one noise, with the attack that got furthest.

    Args:
        level: What that attack saw.
        best: That attack.
        points: All attacks under this protection.
    """

    level: Level
    best: Point
    points: tuple[Point, ...]

    @property
    def noise(self) -> float:
        """The noise multiplier."""
        return self.best.noise


def level_of(point: Point, tolerance: float) -> Level:
    """What an attack saw, by its gain over a mean image.

    Args:
        point: The attack under one protection.
        tolerance: Gain in dB that still counts as nothing.

    Returns:
        "nothing" only if the whole confidence interval of the mean gain keeps within the tolerance; "open" if the mean
        does and the interval does not, or if there is no interval.
    """
    if point.recognisable:
        return "recognisable"
    if point.gain.mean > tolerance:
        return "something"
    return "open" if point.gain.high is None or point.gain.high > tolerance else "nothing"


def protections_of(points: Sequence[Point], tolerance: float) -> list[Protection]:
    """The points of one setting by noise, the least noise first."""
    found = []
    for noise in sorted({point.noise for point in points}):
        here = tuple(point for point in points if point.noise == noise)
        best = min(here, key=lambda point: (_ORDER.index(level_of(point, tolerance)), -point.gain.mean))
        found.append(Protection(level_of(best, tolerance), best, here))
    return found


def summary_sentence(protections: Sequence[Protection], tolerance: float) -> str:
    """The whole audit in one sentence.

    Args:
        protections: At least one.
        tolerance: Gain in dB over a mean image that still counts as nothing seen.
    """
    count = {level: sum(one.level == level for one in protections) for level in _ORDER}
    parts = []
    if count["recognisable"]:
        parts.append(f"pictures came back recognisable under {count['recognisable']}")
    if count["something"]:
        parts.append(f"more than a mean image, but not a recognisable picture, under {count['something']}")
    if count["nothing"]:
        parts.append(f"no attack beat a mean image by more than {tolerance:g} dB under {count['nothing']}")
    if count["open"]:
        parts.append(f"these pictures are too few to say under {count['open']}")
    plural = "protection was" if len(protections) == 1 else "protections were"
    text = f"{len(protections)} {plural} audited: {'; '.join(parts)}."
    if exact := sum(bool((most := most_exact(one.points)) and most[1].came) for one in protections):
        # Not one of the parts: what came back bit for bit counts there too.
        of = "it" if len(protections) == 1 else f"{exact} of them"
        text += f" Under {of}, pictures came back bit for bit."
    return text


def sentences_of(protections: Sequence[Protection], tolerance: float) -> list[tuple[Level, str]]:
    """What is worth saying of one setting: where pictures come back, and where nothing was seen.

    Args:
        protections: Of one setting, the least noise first.
        tolerance: Gain in dB over a mean image that still counts as nothing.

    Returns:
        Levels with sentences.
    """
    seen = [one for one in protections if one.level == "recognisable"]
    told = list(dict.fromkeys([*seen[:1], *seen[-1:]]))
    quiet: list[Protection] = []
    for one in reversed(protections):  # from the most noise down, as long as nothing is seen
        if one.level != "nothing":
            told += [one] if one not in told else []
            break
        quiet = [one]
    told += quiet
    return [(one.level, _sentence(one, tolerance)) for one in sorted(told, key=lambda one: one.noise)]


def exact_sentences(protections: Sequence[Protection]) -> list[tuple[Level | Literal[""], str]]:
    """Where pictures came back bit for bit, and where not one did.

    Args:
        protections: Of one setting, the least noise first.

    Returns:
        Levels with sentences; none where no run looked.
    """
    told: list[tuple[Level | Literal[""], str]] = []
    never = []
    for one in protections:
        most = most_exact(one.points)
        if most is None:
            continue
        point, exact = most
        if not exact.came:
            never.append((one.noise, exact))
            continue
        batch = _batch(point.setting)
        start = f"At {promise(point)}, z = {one.noise:.3g}, {batch}"
        told.append(("recognisable", f"{start}: {exact.sentence}, by “{point.attack}”. {share_sentence(exact)}"))
    if never:
        fewest = min((exact for _, exact in never), key=lambda exact: exact.pictures)
        at = _listed([f"{noise:.3g}" for noise, _ in never])
        of = "the only picture" if fewest.pictures == 1 else f"one of {fewest.pictures} pictures"
        told.append(("", f"At z = {at}, not {of} came back bit for bit from any attack; {share_sentence(fewest)}"))
    return told


def setting_name(setting: Setting) -> str:
    """A setting in words, but for the network and the pictures."""
    clip = "every picture's gradient clipped alone" if setting.granularity == "sample" else "one clip for each update"
    batch = _batch(setting)
    rounds = "one round" if setting.rounds == 1 else f"{setting.rounds} rounds with the same pictures"
    layers = ", each tensor by itself" if setting.per_layer else ""
    text = f"{clip}{layers}; {batch}; {rounds}"
    if setting.aggregated > 1:
        noise = "each with all of the noise" if setting.noise_share == "local" else "the noise shared among them"
        text += f"; the sum of {setting.aggregated} clients, {noise}"
    return text if setting.participation in (1, None) else f"{text} with probability {setting.participation:g}"


def noise_sentence(points: Sequence[Point], tolerance: float) -> str:
    """The smallest audited noise that keeps every attack within the tolerance, with what the intervals allow."""
    found = smallest_noise(points, tolerance)
    start = f"Smallest audited noise that keeps every attack within {tolerance:g} dB of a mean image"
    if found is None:
        return f"{start}: cannot be told, which takes noise, two pictures or more, and their originals at hand."
    if found.mean is None:
        return f"{start}: none. More noise than z = {max(point.noise for point in points):.3g} was not tried."
    text = f"{start}: {_noise(found.mean, points)}."
    if found.sure is None:
        text += " The intervals over pictures and draws reach further up under every noise: more pictures would tell."
    elif found.sure > found.mean:
        text += f" With the whole 95 % interval over pictures and draws: {_noise(found.sure, points)}."
    elif any(point.detects for point in points if point.noise >= found.sure):
        text += " The whole 95 % interval over pictures and draws keeps within it too."
    else:
        pictures = min(point.psnr.pictures for point in points)
        rare = binomial_interval(0, pictures, CONFIDENCE)[1]
        text += (
            f" No attack detected any of the {pictures} pictures there; seen on so few, up to {100 * rare:.0f} % of "
            "such pictures might still be (95 % interval)."
        )
    below = [point.noise for point in points if 0 < point.noise < found.mean]
    if not below:
        return text + " Less noise was not tried."
    if found.exceeded is None:
        return text + " No smaller noise that was tried exceeds it with the whole interval."
    return text + f" With the whole interval it is exceeded up to z = {found.exceeded:.3g}: the threshold lies between."


def promise(point: Point) -> str:
    """What a protection promises, in a few words."""
    privacy = point.privacy
    if privacy["epsilon_accounted"] is None:
        return "without noise (no finite ε)"
    rounds = "" if privacy["rounds"] == 1 else f", {privacy['rounds']} rounds together"
    text = f"accounted ε = {in_words(privacy['epsilon_accounted'])}, δ = {number(privacy['delta'])}{rounds}"
    if privacy["adjacency"] == "replace_one":
        text += ", one record replaced"
    nominal = privacy["epsilon_nominal"]
    if 0.1 <= nominal <= 100 and privacy["epsilon_accounted"] > 100 * nominal:
        return f"{text} (the seed paper's formula calls this noise ε = {nominal:.3g})"
    return text


def number(value: float | None) -> str:
    """A number as people read it: 8, 0.333, 970, 1.2e7, 1e-5."""
    if value is None:
        return "–"
    if value == 0 or 0.01 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _batch(setting: Setting) -> str:
    return "one picture a client" if setting.batch_size == 1 else f"{setting.batch_size} pictures a client"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _noise(noise: float, points: Sequence[Point]) -> str:
    privacy = points[0].privacy
    epsilon = recorded_epsilon(privacy, noise, privacy["rounds"], privacy["adjacency"])
    return f"z = {noise:.3g} (accounted ε = {in_words(epsilon)})"


def _sentence(one: Protection, tolerance: float) -> str:
    best = one.best
    between = "" if best.gain.low is None else f" (95 % interval {best.gain.low:+.1f} to {best.gain.high:+.1f} dB)"
    start = f"At {promise(best)}, z = {one.noise:.3g}: "
    if not any(point.detects for point in one.points):
        return (
            f"{start}no attack in this audit detected any of {best.psnr.pictures} pictures; the best estimate left to "
            "them is the mean image."
        )
    if one.level == "nothing":
        return (
            f"{start}no attack in this audit beats a mean image by more than {tolerance:g} dB on average; the best, "
            f"“{best.attack}”, is at {best.gain.mean:+.1f} dB{between}."
        )
    if one.level == "open":
        return (
            f"{start}no attack's mean gain exceeds {tolerance:g} dB, but the pictures are too few to be sure: "
            f"“{best.attack}” is at {best.gain.mean:+.1f} dB{between}."
        )
    what = "subjects are recognisable" if one.level == "recognisable" else "more than a mean image comes back"
    exact = exact_of(best)
    clearest = "came back bit for bit" if exact and exact.came else f"{best.best:.1f} dB"
    oracles = f", told {' and '.join(best.oracles)}" if best.oracles else ""
    return (
        f"{start}{what}. “{best.attack}”{oracles} reaches {best.psnr.mean:.1f} dB, {best.gain.mean:.1f} dB above a "
        f"mean image{between}; the clearest single picture {clearest}."
    )
