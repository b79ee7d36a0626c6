# SPDX-License-Identifier: Apache-2.0
"""Chart of one setting: PSNR and SSIM against accounted epsilon, with reference curves and baselines."""

import base64
import io
import statistics
from collections.abc import Sequence
from textwrap import shorten

from lightning_recon.audit.aggregate import Point, gaussian_reference_of
from lightning_recon.printable import printable

_COLOURS = ("#0b5fa5", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#be123c", "#0e7490", "#4d4d4d")
_NAME_LENGTH = 44  # characters of a name in the legend
_MARKERS = "osD^vPX*"


def chart(points: Sequence[Point], colours: dict[str, str]) -> str:
    """Draw the chart of one setting.

    Args:
        points: All attacks under all noise multipliers of the setting.
        colours: Colour of each attack, see `colours_of`.

    Returns:
        SVG as a data URI; empty if no noise multiplier gives a finite epsilon.
    """
    names = {attack: shorten(printable(attack), width=_NAME_LENGTH, placeholder=" …") for attack in colours}
    # Imported here because it takes half a second, which only reports need.
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    shown = [point for point in points if point.privacy["epsilon_accounted"]]
    if not shown:
        return ""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "recon", "font.size": 9}):
        figure = Figure(figsize=(9.2, 3.9 + 0.09 * len(names)), layout="constrained")
        FigureCanvasSVG(figure)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for position, attack in enumerate(colours):
            curve = sorted((p for p in shown if p.attack == attack), key=_epsilon)
            if not curve:
                continue
            at, marker = [_epsilon(p) for p in curve], _MARKERS[position % len(_MARKERS)]
            line = {"color": colours[attack], "marker": marker, "markersize": 4, "linewidth": 1.6}
            left.plot(at, [p.psnr.mean for p in curve], label=names[attack], **line)
            right.plot(at, [p.ssim for p in curve], **line)
            ends = [(p.psnr.mean if p.psnr.low is None else p.psnr.low, p.psnr.high or p.psnr.mean) for p in curve]
            left.fill_between(at, *zip(*ends, strict=True), color=colours[attack], alpha=0.12, linewidth=0)
        top = max(point.psnr.high or point.psnr.mean for point in shown)
        black = _mean(shown, "baselines", "black_psnr")
        left.axhline(_mean(shown, "baselines", "mean_image_psnr"), color="#444", linestyle="--", label="mean image")
        left.axhline(black, color="#999", linestyle="--", linewidth=1, label="black image")
        ordered = sorted(shown, key=_epsilon)
        for label, dots, values in (
            ("noise law (no prior)", ":", [p.mean_of("bounds", "noise_law_psnr") for p in ordered]),
            ("Gaussian reference", "-.", [gaussian_reference_of(p)[0] for p in ordered]),
        ):
            known = dict(zip(map(_epsilon, ordered), values, strict=True))
            if None not in values:
                left.plot(known.keys(), known.values(), color="#444", linestyle=dots, linewidth=1.2, label=label)
        left.set_ylim(max(0.0, black - 5), top + 4)
        right.set_ylim(0, 1)
        reached = [_epsilon(p) for p in shown]
        for axes, label in ((left, "PSNR, dB"), (right, "SSIM")):
            axes.set_xscale("log")
            if min(reached) == max(reached):  # matplotlib warns of an axis without extent
                axes.set_xlim(reached[0] / 2, reached[0] * 2)
            axes.set_xlabel("accounted ε over all rounds (less noise to the right)")
            axes.set_ylabel(label)
            axes.grid(alpha=0.25, linewidth=0.5)
            axes.spines[["top", "right"]].set_visible(False)
        # Below both axes, so that it covers no curve. Names of attacks are not parsed as TeX.
        lines, labels = left.get_legend_handles_labels()
        legend = figure.legend(lines, labels, fontsize=8, frameon=False, loc="outside lower center", ncols=3)
        for text in legend.get_texts():
            text.set_parse_math(False)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.getvalue()).decode()


def colours_of(attacks: Sequence[str]) -> dict[str, str]:
    """A colour for each attack, the same in all charts."""
    return {attack: _COLOURS[position % len(_COLOURS)] for position, attack in enumerate(dict.fromkeys(attacks))}


def _epsilon(point: Point) -> float:
    return float(point.privacy["epsilon_accounted"])


def _mean(points: Sequence[Point], part: str, name: str) -> float:
    return statistics.fmean(float(point.mean_of(part, name) or 0.0) for point in points)
