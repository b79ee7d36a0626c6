# SPDX-License-Identifier: Apache-2.0
"""Audits of a whole training: how many of the clients' images come back, when, and how well."""

import base64
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_recon.audit.aggregate import Point
from lightning_recon.printable import printable

# Shares of the images for which the round is stated by which they were found.
SHARES = (0.5, 0.9)


@dataclass(frozen=True)
class Extraction:
    """What one attack extracted of the images that clients drew their batches from.

    Args:
        attack: Name of the attack.
        noise: Noise multiplier.
        epsilon: Accounted epsilon of the training, for a server that sees who is in a batch.
        epsilon_if_hidden: What subsampling would grant if it did not.
        images: Number of images of all clients.
        found: Share of them, over all draws, of which the attacker has an image closer than the public mean image.
        by_round: That share after every round in which it grew, by the index of the round.
        psnr_found: Mean PSNR of those, in dB; None if there are none.
        rounds_seen: Mean expected number of rounds in which the attacker saw them; None likewise.
    """

    attack: str
    noise: float
    epsilon: float | None
    epsilon_if_hidden: float | None
    images: int
    found: float
    by_round: Mapping[int, float]
    psnr_found: float | None
    rounds_seen: float | None

    def round_of(self, share: float) -> int | None:
        """Number of rounds after which this share of the images was found; None if it never was."""
        return next((number + 1 for number, found in self.by_round.items() if found >= share), None)


def extractions_of(points: Sequence[Point]) -> list[Extraction]:
    """What each attack extracted; none where every round was about the same images, or about samples unknown."""
    return [_extraction(point) for point in points if point.privacy.get("sampling")]


def _extraction(point: Point) -> Extraction:
    victims = [victim for outcome in point.outcomes for victim in outcome.record["victims"]]
    found = [victim for victim in victims if victim["detected"] and not victim.get("false_detection")]
    at = sorted(int(victim["first_round"]) for victim in found if victim.get("first_round") is not None)
    seen = [float(victim["rounds_seen"]) for victim in found if victim.get("rounds_seen") is not None]
    return Extraction(
        attack=point.attack,
        noise=point.noise,
        epsilon=point.privacy["epsilon_accounted"],
        epsilon_if_hidden=point.privacy["sampling"]["epsilon_if_hidden"],
        images=sum(int(outcome.record["summary"]["victims"]) for outcome in point.outcomes),
        found=len(found) / len(victims),
        # Of equal rounds the last one counts all.
        by_round={number: (place + 1) / len(victims) for place, number in enumerate(at)},
        psnr_found=statistics.fmean(float(victim["psnr"]) for victim in found) if found else None,
        rounds_seen=statistics.fmean(seen) if seen else None,
    )


def extraction_chart(extractions: Sequence[Extraction], rounds: int, colours: Mapping[str, str]) -> str:
    """Draw the share of images found against the rounds.

    Args:
        extractions: Of one setting.
        rounds: Number of rounds of the training.
        colours: Colour of each attack.

    Returns:
        SVG as a data URI; empty if nothing was found.
    """
    shown = [one for one in extractions if one.by_round]
    if not shown:
        return ""
    # Imported here because it takes half a second, which only reports need.
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    noises = sorted({one.noise for one in shown})
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "recon", "font.size": 9}):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        for one in shown:
            at = [0, *(number + 1 for number in one.by_round), rounds]
            shares = [0.0, *(100 * share for share in one.by_round.values()), 100 * one.found]
            label = f"{printable(one.attack)}, z = {one.noise:.3g}"
            line, *_ = axes.step(at, shares, where="post", color=colours[one.attack], label=label)
            if one.noise != noises[0]:
                line.set_dashes((2 + 3 * noises.index(one.noise), 1.5))
        axes.set_xlabel("rounds")
        axes.set_ylabel("images found, %")
        axes.set_xlim(0, max(1, rounds))
        axes.set_ylim(0, 102)
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        for text in axes.legend(fontsize=8, frameon=False).get_texts():
            text.set_parse_math(False)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.getvalue()).decode()


def extraction_sentence(one: Extraction) -> str:
    """How many images came back, when, and how well, in one sentence."""
    if one.psnr_found is None:
        return f"{one.attack} at z = {one.noise:.3g} found none of the {one.images} images."
    text = f"{one.attack} at z = {one.noise:.3g} found {100 * one.found:.0f} % of the {one.images} images"
    text += f", on average with {one.psnr_found:.1f} dB"
    known = [(share, one.round_of(share)) for share in SHARES]
    reached = [f"{100 * share:.0f} % by round {number}" for share, number in known if number is not None]
    return text + (f": {', '.join(reached)}." if reached else ".")
