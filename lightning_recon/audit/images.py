# SPDX-License-Identifier: Apache-2.0
"""The images of a report, embedded in the page: photographs, the client's inputs and all reconstructions."""

import base64
import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lightning_recon.audit.formatting import number
from lightning_recon.audit.run import Outcome
from lightning_recon.audit.verdict import Protection
from lightning_recon.callbacks.figures import caption
from lightning_recon.data.image_files import open_image, to_rgb
from lightning_recon.files.image_writer import WINDOW

SIDE = 112  # largest width and height of an embedded image, in pixels
COLUMNS = 6  # victims in a grid
_MAX_PIXELS = 1 << 26  # larger image files are not opened


@dataclass(frozen=True)
class EmbeddedImage:
    """An image of a grid.

    Args:
        source: Data URI; empty if the file is missing or unreadable.
        caption: Text below the image.
        label: Alternative text.
    """

    source: str
    caption: str
    label: str


def grids_of(protections: Sequence[Protection]) -> list[dict[str, Any]]:
    """Make one grid per seed: photographs, the client's inputs and all reconstructions of the first victims.

    Args:
        protections: Of one setting.

    Returns:
        The seed and the rows of each grid, as the template expects them.
    """
    outcomes = [outcome for one in protections for point in one.points for outcome in point.outcomes]
    grids = []
    for seed in sorted({outcome.seed for outcome in outcomes}):
        cells = [outcome for outcome in outcomes if outcome.seed == seed]
        known = next((outcome for outcome in cells if outcome.originals), cells[0])
        victims = [(v["client"], v["index"]) for v in known.record["victims"] if v["draw"] == 0]
        columns = [v for v in victims if "used" in known.originals.get(v, {"used": ""})][:COLUMNS]
        rows = _truth_rows(known, columns)
        undetected: dict[str, list[str]] = {}  # noise multipliers at which an attack detects none of the victims
        estimates: list[EmbeddedImage] = []
        for outcome in cells:
            entries = {(v["client"], v["index"]): v for v in outcome.record["victims"] if v["draw"] == 0}
            shown = [entries[victim] for victim in columns if victim in entries]
            images = [_reconstruction(outcome, entry) for entry in shown]
            if not any(entry["detected"] for entry in shown):
                undetected.setdefault(outcome.attack, []).append(f"{outcome.noise:.3g}")
                estimates = images
                continue
            note = f"z = {outcome.noise:.3g}, ε = {number(outcome.record['privacy']['epsilon_accounted'])}"
            rows.append({"label": outcome.attack, "note": note, "images": images})
        if undetected:
            note = "; ".join(f"{attack}: z = {', '.join(noises)}" for attack, noises in undetected.items())
            rows.append({"label": "no victim detected", "note": note, "images": estimates})
        draws = max(int(outcome.record["summary"]["draws"]) for outcome in cells)
        all_images = [image for row in rows for image in row["images"]]
        grids.append({"seed": seed, "rows": rows, "left_out": left_out(len(columns), len(victims), draws, all_images)})
    return grids


def pairs_of(protection: Protection) -> tuple[list[EmbeddedImage], list[EmbeddedImage]]:
    """Images of clients, and what the strongest attack on a protection made of each.

    Returns:
        At most `COLUMNS` of each, the first victims of the first noise draw; none where image files are not there.
    """
    outcome = protection.best.outcomes[0]
    originals: list[EmbeddedImage] = []
    reconstructions: list[EmbeddedImage] = []
    for victim in outcome.record["victims"]:
        entry = outcome.originals.get((victim["client"], victim["index"]), {})
        if victim["draw"] == 0 and "used" in entry and len(originals) < COLUMNS:
            originals.append(EmbeddedImage(embedded(outcome.folder, str(entry["used"])), "", "the client's image"))
            found = embedded(outcome.folder, str(victim["image"]))
            reconstructions.append(EmbeddedImage(found, "", f"reconstruction by {outcome.attack}"))
    return originals, reconstructions


def reconstructions_of(outcome: Outcome) -> tuple[list[EmbeddedImage], str]:
    """The first reconstructions of a run without known true images, and a note on those that are not shown."""
    names = [str(victim.get("image")) for victim in outcome.record["victims"]]
    label = f"reconstruction by {outcome.attack}"
    shown = [EmbeddedImage(embedded(outcome.folder, name), "", label) for name in names[:COLUMNS]]
    return shown, left_out(len(shown), len(names), 1, shown)


def left_out(victims: int, of: int, draws: int, shown: Sequence[EmbeddedImage]) -> str:
    """A note on what a grid does not show; empty if it shows everything.

    Args:
        victims: Number of victims in the grid.
        of: Number of all victims.
        draws: Noise draws per victim, of which the first is shown.
        shown: Images of the grid, some of which may be missing.
    """
    parts = [f"the first {victims} of {of} victims"] if victims < of else []
    parts += [f"the first of {draws} noise draws"] if draws > 1 else []
    missing = sum(not image.source for image in shown)
    text = f"Shown: {', '.join(parts)}." if parts else ""
    if missing:
        text += f" {missing} image {'file is' if missing == 1 else 'files are'} missing or unreadable."
    return text.strip()


def _truth_rows(known: Outcome, victims: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Rows of the photographs and of the images that the client trained on; none where they are unknown."""
    rows = []
    for kind, label in (("photograph", "photograph"), ("used", "the client's input")):
        originals = [known.originals[victim] for victim in victims if victim in known.originals]
        images = []
        for original in originals:
            name = str(original["name"]) if kind == "photograph" else ""
            images.append(EmbeddedImage(embedded(known.folder, str(original[kind])), name, label))
        if images:
            rows.append({"label": label, "note": "", "images": images})
    return rows


def _reconstruction(outcome: Outcome, victim: Mapping[str, Any]) -> EmbeddedImage:
    text = caption(victim["psnr"], victim.get("bit_exact", False))
    text += "" if victim["detected"] else ", not detected"
    source = embedded(outcome.folder, str(victim["image"]))
    return EmbeddedImage(source, text, f"reconstruction by {outcome.attack}: {text}")


def _shown(image: Image.Image) -> Image.Image:
    """An image as 8-bit RGB; one of more bits between the values that its file names, see `files.image_writer`."""
    if WINDOW not in image.info:
        return to_rgb(image)
    low, high = (float(value) for value in str(image.info[WINDOW]).split())
    largest = 65535 if image.mode.startswith("I") else 255
    values = (np.asarray(image) / largest - low) / max(high - low, 1e-6)
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")


def embedded(folder: Path, name: str) -> str:
    """An image of a run as a data URI, scaled down if it is large.

    Args:
        folder: Folder of the run.
        name: Path relative to the folder; files outside the folder are not read.

    Returns:
        PNG as a data URI; empty if there is no such image.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        return ""
    try:
        image = _shown(open_image(path, _MAX_PIXELS))
    except (OSError, ValueError, SyntaxError, struct.error):
        return ""
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
