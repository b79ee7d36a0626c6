# SPDX-License-Identifier: Apache-2.0
"""Privacy parameters and numbers as a report writes them."""

from collections.abc import Sequence

from lightning_recon.audit.aggregate import Point
from lightning_recon.audit.run import Setting, recorded_epsilon
from lightning_recon.evaluation.formatting import ADJACENCIES, covered, in_words


def number(value: float | None) -> str:
    """A number with few digits: 8, 0.333, 970, 1.2e7, 1e-5."""
    if value is None:
        return "–"
    if value == 0 or 0.01 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def setting_name(setting: Setting) -> str:
    """A setting in words, without the network and the images."""
    clip = "one clip per image" if setting.granularity == "sample" else "one clip per update"
    layers = ", each parameter tensor clipped separately" if setting.per_layer else ""
    rounds = "one round" if setting.rounds == 1 else f"{setting.rounds} rounds"
    if not setting.sampling and setting.rounds > 1:
        rounds += " with the same images"
    text = f"{clip}{layers}; {batch_of(setting)}; {rounds}"
    if setting.aggregated > 1:
        noise = "each adds the full noise" if setting.noise_share == "local" else "each adds a share of the noise"
        text += f"; sum over {setting.aggregated} clients, {noise}"
        if setting.client_dropout:
            text += f", of which each drops out with probability {setting.client_dropout:g}"
    for words in (setting.over_rounds, setting.quantization):
        text += f"; {words}" if words else ""
    if setting.local_training:
        text += f"; {setting.local_training}"
    if setting.compression:
        text += f"; {setting.compression}"
    return text if setting.participation in (1, None) else f"{text} with probability {setting.participation:g}"


def batch_of(setting: Setting) -> str:
    """The batch size in words."""
    if setting.sampling:
        return f"batches of {setting.batch_size} {setting.sampling}"
    return "one image per client" if setting.batch_size == 1 else f"{setting.batch_size} images per client"


def guarantee_of(point: Point) -> str:
    """The privacy guarantee under which an attack was measured."""
    privacy = point.privacy
    if privacy["epsilon_accounted"] is None:
        if not point.noise:
            return "no noise (no finite ε)"
        return "no known ε" + (" (clients drop out with their noise)" if privacy.get("client_dropout") else "")
    rounds = "" if privacy["rounds"] == 1 else f" over {privacy['rounds']} rounds"
    text = f"accounted ε = {in_words(privacy['epsilon_accounted'])}{covered(point.setting.participation)}"
    # Local differential privacy means replace-one, so both adjacencies are stated.
    other = "add_remove" if privacy["adjacency"] == "replace_one" else "replace_one"
    if (epsilon := (privacy.get("epsilon_by_adjacency") or {}).get(other)) is not None:
        names = [ADJACENCIES[name] for name in (privacy["adjacency"], other)]
        text += f" ({names[0]}; {in_words(epsilon)} for {names[1]})"
    elif privacy["adjacency"] == "replace_one":
        text += " (replace-one)"
    text += f", δ = {number(privacy['delta'])}{rounds}"
    nominal = privacy["epsilon_nominal"] or 0.0  # none where the formula does not apply
    if 0.1 <= nominal <= 100 and privacy["epsilon_accounted"] > 100 * nominal:
        return f"{text} (nominal ε = {nominal:.3g} by the seed paper's formula)"
    return text


def noise_of(noise_multiplier: float, points: Sequence[Point]) -> str:
    """A noise multiplier with its accounted epsilon.

    Args:
        noise_multiplier: z.
        points: Attacks in the same setting; they give rounds, delta and adjacency.
    """
    privacy = points[0].privacy
    epsilon = recorded_epsilon(privacy, noise_multiplier, privacy["rounds"], privacy["adjacency"])
    whose = covered(points[0].setting.participation)
    return f"z = {noise_multiplier:.3g} (accounted ε = {in_words(epsilon)}{whose})"


def enumerated(words: Sequence[str]) -> str:
    """Words separated by commas and a final "and"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
