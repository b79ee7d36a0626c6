# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report: truth, what the client trained on and every reconstruction, inside the page itself."""

import base64
import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lightning_recon.audit.run import Outcome
from lightning_recon.audit.wording import Protection, number
from lightning_recon.callbacks.figures import caption
from lightning_recon.data.image_files import open_image

SIDE = 112  # pixels of an embedded picture, at most
COLUMNS = 6  # victims in a grid
_MOST_PIXELS = 1 << 26  # of a picture's file: larger ones are not opened


@dataclass(frozen=True)
class Picture:
    """A picture of a grid.

    Args:
        source: Data URI; empty where there is no file.
        caption: Under it.
        label: For those who cannot see it.
    """

    source: str
    caption: str
    label: str


def grids_of(protections: Sequence[Protection]) -> list[dict[str, Any]]:
    """For every seed the pictures of its first victims: photograph, what the client used, all reconstructions.

    Args:
        protections: Of one setting.

    Returns:
        The seed and the rows of each grid, as the template wants them.
    """
    outcomes = [outcome for one in protections for point in one.points for outcome in point.outcomes]
    grids = []
    for seed in sorted({outcome.seed for outcome in outcomes}):
        cells = [outcome for outcome in outcomes if outcome.seed == seed]
        known = next((outcome for outcome in cells if outcome.originals), cells[0])
        firsts = [(v["client"], v["index"]) for v in known.record["victims"] if v["draw"] == 0]
        places = [p for p in firsts if "used" in known.originals.get(p, {"used": ""})][:COLUMNS]
        rows = []
        for kind, label in (("photograph", "photograph"), ("used", "what the client trained on")):
            found = [known.originals[place] for place in places if place in known.originals]
            if found:
                pictures = [
                    Picture(embedded(known.folder, str(o[kind])), str(o["name"]) if kind == "photograph" else "", label)
                    for o in found
                ]
                rows.append({"label": label, "note": "", "pictures": pictures})
        blind: dict[str, list[str]] = {}  # the noises at which an attack detects none of these victims
        last: list[Picture] = []
        for outcome in cells:
            victims = {(v["client"], v["index"]): v for v in outcome.record["victims"] if v["draw"] == 0}
            shown = [victims[place] for place in places if place in victims]
            pictures = [_reconstruction(outcome, victim) for victim in shown]
            if not any(victim["detected"] for victim in shown):
                blind.setdefault(outcome.attack, []).append(f"{outcome.noise:.3g}")
                last = pictures
                continue
            note = f"z = {outcome.noise:.3g}, ε = {number(outcome.record['privacy']['epsilon_accounted'])}"
            rows.append({"label": outcome.attack, "note": note, "pictures": pictures})
        if blind:
            note = "; ".join(f"{attack}: z = {', '.join(noises)}" for attack, noises in blind.items())
            rows.append({"label": "none of these detected", "note": note, "pictures": last})
        draws = max(int(outcome.record["summary"]["draws"]) for outcome in cells)
        shown = [picture for row in rows for picture in row["pictures"]]
        grids.append({"seed": seed, "rows": rows, "left_out": left_out(len(places), len(firsts), draws, shown)})
    return grids


def pictures_of(outcome: Outcome) -> tuple[list[Picture], str]:
    """The first reconstructions of a run whose truth is not at hand, and what is left out, in words."""
    names = [str(victim.get("image")) for victim in outcome.record["victims"]]
    shown = [
        Picture(embedded(outcome.folder, name), "", f"reconstruction by {outcome.attack}") for name in names[:COLUMNS]
    ]
    return shown, left_out(len(shown), len(names), 1, shown)


def left_out(victims: int, of: int, draws: int, shown: Sequence[Picture]) -> str:
    """What a grid does not show, in words; empty if it shows everything.

    Args:
        victims: How many it shows.
        of: How many there are.
        draws: Noise draws of each; the first is shown.
        shown: Its pictures, some of which may not have been readable.
    """
    parts = [f"the first {victims} of {of} victims"] if victims < of else []
    parts += [f"the first of {draws} noise draws"] if draws > 1 else []
    lost = sum(not picture.source for picture in shown)
    text = f"Shown: {', '.join(parts)}." if parts else ""
    if lost:
        pictures = "1 picture is missing" if lost == 1 else f"{lost} pictures are missing"
        text += f" {pictures}: no file, or none that can be read."
    return text.strip()


def _reconstruction(outcome: Outcome, victim: Mapping[str, Any]) -> Picture:
    told = caption(victim["psnr"], victim.get("bit_exact", False))
    told += "" if victim["detected"] else ", not detected"
    return Picture(embedded(outcome.folder, str(victim["image"])), told, f"reconstruction by {outcome.attack}: {told}")


def embedded(folder: Path, name: str) -> str:
    """A picture of a run as a data URI, made smaller if it is large.

    Args:
        folder: Folder of the run.
        name: File below it; what lies elsewhere is not read.

    Returns:
        PNG as a data URI; empty if there is no such picture.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        return ""
    try:
        picture = open_image(path, _MOST_PIXELS).convert("RGB")
    except (OSError, ValueError, SyntaxError, struct.error):
        return ""
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
