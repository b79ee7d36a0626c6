# SPDX-License-Identifier: Apache-2.0
"""The report: one HTML file that carries everything it shows, with a table and JSON of the same beside it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from lightning_recon import __version__
from lightning_recon.audit.chart import chart, colours_of
from lightning_recon.audit.outcome import Outcome
from lightning_recon.audit.pictures import grids_of
from lightning_recon.audit.plan import Cell
from lightning_recon.audit.points import CONFIDENCE, RECOGNISABLE_GAIN, RECOGNISABLE_SSIM, points_of, smallest_noise
from lightning_recon.audit.table import Value, failed_row, row_of, table_text, write_text
from lightning_recon.audit.verdict import (
    NAMES,
    noise_sentence,
    number,
    protections_of,
    sentences_of,
    setting_name,
    summary_sentence,
)


@dataclass(frozen=True)
class Judgement:
    """How a report judges.

    Args:
        tolerance: PSNR in dB above a mean image that still counts as nothing seen.
        records: How many people's data the protection is about; None if that is not known.
    """

    tolerance: float = 0.5
    records: int | None = None


def write_report(
    page: Path,
    table: Path,
    outcomes: Sequence[Outcome],
    failed: Sequence[tuple[Cell, str]] = (),
    judgement: Judgement = Judgement(),
) -> list[dict[str, Value]]:
    """Write the page, the table, and `PAGE.json` with the verdict and all rows.

    Args:
        page: HTML file.
        table: CSV file.
        outcomes: Finished cells.
        failed: Cells that failed, with the reason.
        judgement: How to judge.

    Returns:
        The rows of the finished cells.

    Raises:
        UserError: If a file cannot be written.
    """
    rows = [row_of(outcome) for outcome in outcomes]
    everything = [*rows, *(failed_row(cell) for cell, _ in failed)]
    write_text(table, table_text(everything))
    content = content_of(outcomes, failed, judgement)
    summary = {
        "schema_version": 1,
        "tolerance_db": judgement.tolerance,
        "verdict": content["summary"],
        "remarks": content["remarks"],
        "settings": [
            {
                **asdict(section["setting"]),
                "verdict": [text for _, text in section["sentences"]],
                "smallest_noise": section["smallest_noise"],
            }
            for section in content["sections"]
        ],
        "cells": everything,
    }
    write_text(page.with_suffix(".json"), json.dumps(_finite(summary), indent=1, allow_nan=False) + "\n")
    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    write_text(page, environment.from_string(template).render(content))
    return rows


def content_of(outcomes: Sequence[Outcome], failed: Sequence[tuple[Cell, str]], judgement: Judgement) -> dict[str, Any]:
    """Everything that the page says, as the template wants it.

    Args:
        outcomes: Finished cells.
        failed: Cells that failed, with the reason.
        judgement: How to judge.
    """
    tolerance = judgement.tolerance
    points = points_of(outcomes)
    colours = colours_of([point.attack for point in points])
    sections, all_protections = [], []
    for setting in dict.fromkeys(point.setting for point in points):
        here = [point for point in points if point.setting == setting]
        protections = protections_of(here, tolerance)
        all_protections += protections
        threshold = smallest_noise(here, tolerance)
        sections.append(
            {
                "setting": setting,
                "title": setting_name(setting),
                "about": setting.about,
                "sentences": sentences_of(protections, tolerance),
                "noise_sentence": noise_sentence(here, tolerance),
                "smallest_noise": asdict(threshold) if threshold else None,
                "protections": protections,
                "chart": chart(here, colours),
                "grids": grids_of(protections),
            }
        )
    return {
        "version": __version__,
        "summary": summary_sentence(all_protections, tolerance) if points else "No cell of this audit has finished.",
        "remarks": remarks_of(outcomes, judgement) + _failures(failed),
        "sections": sections,
        "failed": [(cell.name, reason) for cell, reason in failed],
        "assumptions": _assumptions(outcomes),
        "names": NAMES,
        "tolerance": tolerance,
        "confidence": round(100 * CONFIDENCE),
        "recognisable_gain": RECOGNISABLE_GAIN,
        "recognisable_ssim": RECOGNISABLE_SSIM,
    }


def remarks_of(outcomes: Sequence[Outcome], judgement: Judgement) -> list[str]:
    """What is wrong with the parameters themselves.

    A delta of 1/n or more is kept by publishing one of n records as it is: a warning, not a refusal, since an audit is
    there to look at parameters that may be bad.

    Args:
        outcomes: Finished cells.
        judgement: Knows how many records are protected, or not; they are no fewer than were attacked.
    """
    found = []
    for delta in sorted({float(outcome.record["privacy"]["delta"]) for outcome in outcomes}):
        victims = max(o.record["summary"]["victims"] for o in outcomes if o.record["privacy"]["delta"] == delta)
        records = judgement.records or victims
        if delta >= 1 / records:
            whose = "protected" if judgement.records else "attacked here alone"
            found.append(
                f"δ = {number(delta)} is not below 1/{records} for the {records} records {whose}: a mechanism that "
                f"publishes one record in full keeps such a promise. Choose δ well below {1 / records:.1g}."
            )
    return found


def _failures(failed: Sequence[tuple[Cell, str]]) -> list[str]:
    if not failed:
        return []
    which = "1 cell" if len(failed) == 1 else f"{len(failed)} cells"
    return [f"{which} failed, listed below: the verdict does not speak of them. The same command tries again."]


def _assumptions(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    """What this audit took for granted, as far as it is recorded."""

    def each(values: Sequence[object]) -> str:
        return ", ".join(dict.fromkeys(str(value) for value in values)) or "–"

    records = [outcome.record for outcome in outcomes]
    if not records:
        return []
    pictures = {picture for outcome in outcomes for picture in outcome.by_picture(gain=False)}
    oracles = {outcome.attack: " and ".join(outcome.record["oracles"]) or "nothing" for outcome in outcomes}
    draws = each([record["summary"]["draws"] for record in records])
    participation = each([f"{record.get('participation', 1.0):g}" for record in records])
    return [
        (
            "Pictures attacked",
            f"{len(pictures)} different ones, each under {draws} independent noise draw(s)",
        ),
        ("Target network and pictures", each([outcome.about or "not recorded" for outcome in outcomes])),
        ("Clipping norm C", each([r["privacy"]["max_grad_norm"] for r in records])),
        ("δ and adjacency", each([f"{number(r['privacy']['delta'])}, {r['privacy']['adjacency']}" for r in records])),
        (
            "Told to the attacks beyond what an attacker knows",
            "; ".join(f"{name}: {told}" for name, told in oracles.items()),
        ),
        ("Public statistics that the attacks rely on", each([r.get("public_statistics") or "none" for r in records])),
        ("Share of a picture that its subject takes", each([f"{100 * r['subject_fraction']:.0f} %" for r in records])),
        ("Batch normalisation of the client", each([r.get("batchnorm") or "none" for r in records])),
        ("A client answers on the same pictures with probability", participation),
    ]


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
