# SPDX-License-Identifier: Apache-2.0
"""Write a report: one self-contained HTML file, its content as CSV and JSON, the annex, and the audit card."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from lightning_recon.audit.card import card_of
from lightning_recon.audit.config import ReportOptions
from lightning_recon.audit.content import content_of
from lightning_recon.audit.formatting import number
from lightning_recon.audit.interventions import InterventionEffect
from lightning_recon.audit.load import Runs
from lightning_recon.audit.plan import Cell
from lightning_recon.audit.table import Value, failed_row, row_of, table_text
from lightning_recon.errors import UserError
from lightning_recon.files.atomic import write_text
from lightning_recon.files.serialization import finite, write_json
from lightning_recon.printable import printable

# How the files begin that may be replaced: those of earlier reports.
_PAGE_TITLE, _FIRST_COLUMN = "<title>Reconstruction audit</title>", "cell,"


def check_replaceable(page: Path, table: Path) -> None:
    """Refuse to replace files that are of no report.

    Args:
        page: HTML file.
        table: CSV file.

    Raises:
        UserError: One of them exists and was not written by this program.
    """
    for path, known in ((page, _PAGE_TITLE in _beginning(page)), (table, _beginning(table).startswith(_FIRST_COLUMN))):
        if path.is_file() and path.stat().st_size and not known:
            raise UserError(f"{path} exists and is not of a report of recon: choose another --output, or move the file")


def _beginning(path: Path) -> str:
    """The first kilobyte of a file; empty if there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(1024).decode("utf-8", errors="replace")


def write_report(
    page: Path,
    table: Path,
    runs: Runs,
    options: ReportOptions,
    failed: Sequence[tuple[Cell, str]] = (),
) -> list[dict[str, Value]]:
    """Write the page, the table, `PAGE.json` with the verdict and all rows, the annex and the audit card.

    Annex and card of `report.html` are `annex.json` and `audit-card.md`, those of `X.html` begin with `X-`.

    Args:
        page: HTML file.
        table: CSV file.
        runs: Finished cells.
        options: Options of the report.
        failed: Cells that failed, with the reason.

    Returns:
        The rows of the finished cells.

    Raises:
        UserError: If a file cannot be written, or would replace one of the user's.
    """
    check_replaceable(page, table)
    rows = [row_of(outcome) for outcome in runs.outcomes]
    all_rows = [*rows, *(failed_row(cell) for cell, _ in failed)]
    write_text(table, table_text(all_rows))
    content = content_of(runs, failed, options)
    summary = {
        "schema_version": 1,
        "tolerance_db": options.tolerance,
        "verdict": content["summary"],
        "light": content["executive"].light if content["executive"] else None,
        "headline": content["executive"].headline if content["executive"] else None,
        "remarks": content["remarks"],
        "reproducible_noise": content["reproducible_noise"],
        "settings": [
            {
                **{name: value for name, value in asdict(section["setting"]).items() if name != "pictures"},
                "about": section["about"],
                "verdict": [text for _, text in section["sentences"]],
                "bit_exact": [text for _, text in section["exact"]],
                "smallest_noise": section["smallest_noise"],
                "theory": [asdict(theory) for theory in section["theory"]],
                "training": [asdict(one) for one in section["extractions"]],
            }
            for section in content["sections"]
        ],
        "changes": [_effect_record(effect) for effect in content["effects"]],
        "payload_check": [asdict(one) for one in content["payload_checks"]],
        "cells": all_rows,
    }
    write_text(page.with_suffix(".json"), json.dumps(finite(summary), indent=1, allow_nan=False) + "\n")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_single_line,
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
    )  # fmt: skip
    environment.filters |= {"number": number, "decibels": _decibels, "share": _share, "breakable": _breakable}
    write_text(page, environment.get_template("report.html.j2").render(content))
    prefix = "" if page.stem == "report" else f"{page.stem}-"
    annex = page.with_name(f"{prefix}annex.json")
    write_json(annex, finite(content["annex"]))
    write_text(page.with_name(f"{prefix}audit-card.md"), card_of(content, page.name, annex.name))
    return rows


def _single_line(value: object) -> object:
    """The value of a template expression without control characters; Jinja escapes its markup."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.startswith("data:"):
        return value
    return printable(" ".join(value.split()))


def _breakable(text: str) -> Markup:
    """The name of an image, which may be broken after each folder."""
    return Markup(escape(printable(text)).replace("/", Markup("/<wbr>")))


def _decibels(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _effect_record(effect: InterventionEffect) -> dict[str, object]:
    """The effect of an intervention for the JSON file."""
    record: dict[str, object] = {
        "name": effect.name,
        "cost": effect.cost,
        "level": effect.level,
        "bought_db": asdict(effect.reduction),
    }
    for side, point, psnr in (
        ("before", effect.before, effect.psnr_before),
        ("after", effect.after, effect.psnr_after),
    ):
        record |= {f"attack_{side}": point.attack, f"psnr_{side}": psnr}
        record |= {f"epsilon_{side}": point.privacy["epsilon_accounted"]}
    return record
