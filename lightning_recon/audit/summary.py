# SPDX-License-Identifier: Apache-2.0
"""The executive summary of a report: a traffic light for every protection, and what to change, without jargon."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import ndtri

from lightning_recon.audit.formatting import enumerated, number, setting_name
from lightning_recon.audit.images import EmbeddedImage, pairs_of
from lightning_recon.audit.interventions import InterventionEffect
from lightning_recon.audit.run import Setting
from lightning_recon.audit.traffic_light import (
    FINDINGS,
    GREEN_GAMMA,
    LIGHTS,
    NOT_EXCLUDED,
    PRIOR_SUCCESS,
    Light,
    finding_of,
    has_exact,
    light_of_protection,
)
from lightning_recon.audit.verdict import LEVELS, Protection
from lightning_recon.audit.verification_file import VerificationRecord, covers
from lightning_recon.evaluation.formatting import ADJACENCIES

_SETTINGS = 3  # settings whose necessary noise is stated in a sentence each
_AMBER = {
    FINDINGS["something"]: "the attacks recovered images that are coarse, but better than a guess",
    FINDINGS["identified"]: "an attack told whose image it was more often than a guess, without a recognisable image",
    FINDINGS["open"]: "too few images were attacked to decide",
    NOT_EXCLUDED: "the attacks found nothing, but theory does not rule out that another attack does",
}
_COUNTS = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class LightCell:
    """One protection in the table of lights.

    Args:
        light: Its traffic light.
        finding: What the attacks learned, in a few words.
        epsilon: Accounted epsilon of all rounds, in few digits: infinite without noise, "–" where it is not known.
    """

    light: Light
    finding: str
    epsilon: str


@dataclass(frozen=True)
class LightRow:
    """A setting in the table of lights.

    Args:
        title: The setting in words.
        cells: One for each noise multiplier of the table; None where it was not audited.
    """

    title: str
    cells: tuple[LightCell | None, ...]


@dataclass(frozen=True)
class Summary:
    """The executive summary.

    Args:
        light: The worst light of all protections.
        headline: What was found, in a sentence.
        findings: Further sentences.
        noises: Noise multipliers of the table of lights.
        rows: Its rows.
        originals: Images of clients, as the clients trained on them.
        reconstructions: What the server made of each of them under the protection that leaks most.
        example: That protection in words.
        changes: What to change, in sentences.
    """

    light: Light
    headline: str
    findings: tuple[str, ...]
    noises: tuple[float, ...]
    rows: tuple[LightRow, ...]
    originals: tuple[EmbeddedImage, ...]
    reconstructions: tuple[EmbeddedImage, ...]
    example: str
    changes: tuple[str, ...]


def summary_of(
    protections: Sequence[Protection],
    effects: Sequence[InterventionEffect],
    verification: VerificationRecord | None,
) -> Summary | None:
    """Summarise an audit for readers who do not know its metrics.

    Args:
        protections: All protections of the sweep.
        effects: Of the tested changes.
        verification: Result of `recon verify` for the client's code; None if there is none.

    Returns:
        None without protections, when the true images are not known.
    """
    if not protections:
        return None
    lights = {one: light_of_protection(one) for one in protections}
    red = [one for one, light in lights.items() if light == "red"]
    given = sorted({oracle for one in red or protections for point in one.points for oracle in point.oracles})
    # Whether every red light rests on information that no server has.
    only_given = bool(red) and all(one.best.oracles for one in red)
    worst = min(protections, key=lambda one: (LIGHTS.index(lights[one]), LEVELS.index(one.level), -one.best.gain.mean))
    refuted = verification is not None and not verification["holds"]
    names = _names(list(dict.fromkeys(one.best.setting for one in protections)))
    noises = tuple(sorted({one.noise for one in protections}))
    here = {(one.best.setting, one.noise): one for one in protections}
    rows = [
        LightRow(name, tuple(_cell(here.get((setting, noise))) for noise in noises)) for setting, name in names.items()
    ]
    originals, reconstructions = pairs_of(worst)
    return Summary(
        light="red" if refuted else lights[worst],
        headline=_headline(list(lights.values()), refuted, only_given),
        findings=tuple(_findings(protections, given, verification)),
        noises=noises,
        rows=tuple(rows),
        originals=tuple(originals),
        reconstructions=tuple(reconstructions),
        example=f"noise z = {number(worst.noise)}, by “{worst.best.attack}”"
        + (f", given {enumerated(worst.best.oracles)}" if worst.best.oracles else ""),
        changes=tuple(_changes(names, protections, effects, refuted)),
    )


def _names(settings: Sequence[Setting]) -> dict[Setting, str]:
    """Settings in words; with network, images and delta where others would have the same words."""
    plain = {
        one: setting_name(one) + ("" if one.mechanism == "gaussian" else f"; {one.mechanism} noise") for one in settings
    }
    taken = list(plain.values())
    return {
        one: name
        if taken.count(name) == 1
        else f"{name}; {one.about or 'source not recorded'}; δ = {number(one.delta)}, {ADJACENCIES[one.adjacency]}"
        for one, name in plain.items()
    }


def _cell(protection: Protection | None) -> LightCell | None:
    if protection is None:
        return None
    epsilon = number(protection.best.privacy["epsilon_accounted"]) if protection.noise else "∞"
    return LightCell(light_of_protection(protection), finding_of(protection), epsilon)


def _headline(lights: Sequence[Light], refuted: bool, only_given: bool) -> str:
    if refuted:
        return "The client's code does not do what its privacy parameters say."
    every = "the audited protection" if len(lights) == 1 else f"all {_count(len(lights))} audited protections"
    any_of = every.replace("all ", "any of the ", 1)
    if red := lights.count("red"):
        where = every if red == len(lights) else f"{_count(red)} of {_count(len(lights))} audited protections"
        who = "A server with information that servers do not have" if only_given else "A server"
        return f"{who} could see images of the users under {where}."
    if lights.count("amber"):
        return f"No image was recognisable under {any_of}, but not every attack is ruled out."
    return f"The tested attacks recovered nothing under {any_of}, and theory limits all other attacks."


def _findings(
    protections: Sequence[Protection], given: Sequence[str], verification: VerificationRecord | None
) -> list[str]:
    """What the lights stand for here."""
    found = []
    if given:
        found.append(f"Some of the attacks were given what no server knows: {enumerated(given)}.")
    if exact := sum(has_exact(one.points) for one in protections):
        found.append(f"Under {_of(exact, protections)}, the server received exact copies, equal in every pixel.")
    amber = [finding_of(one) for one in protections if light_of_protection(one) == "amber"]
    for finding in dict.fromkeys(amber):
        found.append(f"Under {_of(amber.count(finding), protections)}, {_AMBER[finding]}.")
    refuted = verification is not None and not verification["holds"]
    if green := sum(light_of_protection(one) == "green" for one in protections):
        found.append(
            f"Under {_of(green, protections)}, the tested attacks found nothing, and theory limits all others: what a "
            f"blind guess gets right in {100 * PRIOR_SUCCESS:.0f} of 100 cases, no attack gets right in more than "
            f"{100 * GREEN_GAMMA:.0f}" + (", if the code did what its parameters say." if refuted else ".")
        )
    return [*found, _verification_sentence(protections, verification)]


def _verification_sentence(protections: Sequence[Protection], verification: VerificationRecord | None) -> str:
    """Whether the client's code was tested against its parameters."""
    if verification is None:
        return "Whether the code of a real client does what its parameters say was not tested here (recon verify does)."
    lines = verification["lines"]
    holds = sum(line["verdict"] == "holds" for line in lines)
    text = f"A test of the client's code (recon verify) refuted none of its claims; {holds} of {len(lines)} held."
    if not verification["holds"]:
        refuted = enumerated([line["name"] for line in lines if line["verdict"] == "refuted"][:3])
        text = f"A test of the client's code (recon verify) refuted what is claimed of it: {refuted}."
    if not any(covers(verification, one.best.privacy) for one in protections):
        text += " It was made under parameters that this audit does not contain."
    return text


def _changes(
    names: Mapping[Setting, str],
    protections: Sequence[Protection],
    effects: Sequence[InterventionEffect],
    refuted: bool,
) -> list[str]:
    """What to change, the most important first."""
    changes = ["Fix the client's code first: no parameter protects while the code ignores it."] if refuted else []
    changes += _noise_sentences(names, protections)
    if improvable := [one for one in effects if one.lights[0] != "green"]:
        best = max(improvable, key=lambda one: (LIGHTS.index(one.lights[1]), one.reduction.mean))
        before, after = best.lights
        cost = f" Its cost: {best.cost}." if best.cost else ""
        if LIGHTS.index(after) > LIGHTS.index(before):
            changes.append(f"Of the tested changes, “{best.name}” turns the light from {before} to {after}.{cost}")
        else:
            changes.append(f"None of the tested changes by itself turns the light from {before} to a better one.")
    if not changes:
        changes.append(
            "These protections need no change. Repeat the audit when network, images or number of rounds change."
        )
    return changes


def _noise_sentences(names: Mapping[Setting, str], protections: Sequence[Protection]) -> list[str]:
    """How much noise each setting needs; only where some audited noise was not enough."""
    sentences = []
    for setting, name in names.items():
        here = sorted((one for one in protections if one.best.setting == setting), key=lambda one: one.noise)
        failing = [one.noise for one in here if light_of_protection(one) != "green"]
        if not failing:
            continue
        enough = next((one for one in here if one.noise > max(failing)), None)
        if enough is not None:
            epsilon = number(enough.best.privacy["epsilon_accounted"])
            text = (
                f"use at least z = {number(enough.noise)} (ε = {epsilon}), the least audited noise with a green light"
            )
        else:
            least = _noise_by_theory(here[-1])
            text = "the largest audited noise has no green light"
            if least is None:
                text += ": audit more noise"
            elif least <= here[-1].noise:  # theory is content, but an attack, or too few images, are not
                text += ": audit more noise, and more images"
            else:
                text += f", and theory gives none below z = {least:g}: audit more noise"
        sentences.append(f"{name[0].upper()}{name[1:]}: {text}.")
    more = len(sentences) - _SETTINGS
    if more > 1:
        sentences[_SETTINGS:] = [f"For {more} further settings, see the table."]
    return sentences


def _noise_by_theory(protection: Protection) -> float | None:
    """The least noise multiplier whose bound gives a green light; None where it does not follow from one number.

    Under Gaussian noise gamma = Phi(Phi^-1(kappa) + mu), and mu is inversely proportional to the noise.
    """
    privacy = protection.best.privacy
    mu = privacy.get("mu")
    if mu is None or protection.noise == 0:
        return None
    removed = mu / 2 if privacy["adjacency"] == "replace_one" else mu
    least = float(protection.noise * removed / (ndtri(GREEN_GAMMA) - ndtri(PRIOR_SUCCESS)))
    digit = 10.0 ** (math.floor(math.log10(least)) - 1)
    return float(f"{math.ceil(least / digit) * digit:.2g}")  # rounded up: a little less noise would not be enough


def _of(some: int, protections: Sequence[Protection]) -> str:
    return "it" if len(protections) == 1 else f"{_count(some)} of the protections"


def _count(value: int) -> str:
    return _COUNTS[value] if 0 < value < len(_COUNTS) else str(value)
