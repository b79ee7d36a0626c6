# SPDX-License-Identifier: Apache-2.0
"""Display names of attacks, and numbers in words, for the terminal, figures, reports and TensorBoard."""

import math

from lightning_recon.printable import printable

_NAMES = {
    "digital": "digital code (ours)",
    "water_filling": "linear code (ours)",
    "feedback": "feedback code (ours)",
    "likelihood": "channel likelihood (ours)",
    "analytic": "closed form of the first layer",
    "paper": "seed paper",
    "robbing_the_fed": "Robbing the Fed",
    "curious_abandon_honesty": "Curious Abandon Honesty",
    "gradient_inversion": "gradient inversion",
    "dlg": "DLG",
    "idlg": "iDLG",
    "inverting_gradients": "Inverting Gradients",
    "inverting_gradients_modern": "Inverting Gradients, modern",
    "see_through_gradients": "See Through Gradients",
}
ADJACENCIES = {"add_remove": "add/remove", "replace_one": "replace one"}
ONE_STREAM = (
    "ε is that of one client's updates, as if they were about its images in every round. An absent client answers on "
    "the images of another, which stand for images that are not attacked; updates of other clients that such an image "
    "is in are not counted"
)
_SCALES = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"))
_LARGEST = 1e15


def display_name(attack: str) -> str:
    """Display name of an attack.

    Args:
        attack: `attack` of `results.json`.

    Returns:
        The published or usual name of an attack of this package; of any other its own name in printable characters.
    """
    return _NAMES.get(attack) or printable(attack)


def in_words(value: float | None) -> str:
    """A number for a sentence: 8, 0.333, 970, 5,430, about 79,000, about 13 million; "no finite" if None."""
    if value is None or not math.isfinite(value):
        return "no finite"
    size = abs(value)
    if value == 0 or 0.001 <= size < 1000:
        return f"{value:.3g}"
    if size < 0.001 or size >= _LARGEST:
        return f"{value:.2g}"
    if size < 1e4:
        return f"{value:,.0f}"
    rounded = float(f"{value:.2g}")
    for scale, name in _SCALES:
        if abs(rounded) >= scale:
            return f"about {rounded / scale:.3g} {name}"
    return f"about {rounded:,.0f}"


def covered(participation: float | None) -> str:
    """What an accounted epsilon is that of, where it is not that of everything that the server sees: `ONE_STREAM`."""
    return "" if participation in (None, 1.0) else " of one client's updates"
