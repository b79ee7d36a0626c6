# SPDX-License-Identifier: Apache-2.0
"""The report: one HTML file that carries everything it shows, with a table and JSON of the same beside it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from lightning_recon import __version__
from lightning_recon.audit.aggregate import CONFIDENCE, points_of, smallest_noise
from lightning_recon.audit.assumptions import assumptions_of
from lightning_recon.audit.bounds import theory_of
from lightning_recon.audit.chart import chart, colours_of
from lightning_recon.audit.images import grids_of, pictures_of
from lightning_recon.audit.interventions import Advice, advice_of, advice_sentence, warned_of
from lightning_recon.audit.load import Runs
from lightning_recon.audit.plan import Cell
from lightning_recon.audit.run import Outcome, Setting
from lightning_recon.audit.table import Value, failed_row, row_of, table_text
from lightning_recon.audit.wording import (
    NAMES,
    exact_sentences,
    noise_sentence,
    number,
    promise,
    protections_of,
    sentences_of,
    setting_name,
    summary_sentence,
)
from lightning_recon.evaluation.formatting import ADJACENCIES, display_name
from lightning_recon.evaluation.wording import RECOGNISABLE_GAIN, RECOGNISABLE_SSIM
from lightning_recon.files.atomic import write_text
from lightning_recon.files.serialization import finite
from lightning_recon.printable import printable
from lightning_recon.ranges import COUNT, POSITIVE, SHARE, check_ranges

_NAMED = 5  # pictures that were left out, by name

NO_TRUTH = (
    "The pictures behind some of these updates are not at hand, so nothing can be scored there: what came back is "
    "shown, and only someone who knows the pictures can say whether it shows them."
)


@dataclass(frozen=True)
class Judgement:
    """How a report judges.

    Args:
        tolerance: PSNR in dB above a mean image that still counts as nothing seen.
        population_size: How many people's data the protection is about; None if that is not known.
        sampling_rate: Probability with which a round uses a record, if Poisson sampling was announced; None if not.
    """

    tolerance: float = 0.5
    population_size: int | None = None
    sampling_rate: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that are out of range."""
        check_ranges(
            "--",
            tolerance=(self.tolerance, POSITIVE),
            population_size=(self.population_size, COUNT),
            sampling_rate=(self.sampling_rate, SHARE),
        )


def write_report(
    page: Path,
    table: Path,
    runs: Runs,
    failed: Sequence[tuple[Cell, str]] = (),
    judgement: Judgement = Judgement(),
) -> list[dict[str, Value]]:
    """Write the page, the table, and `PAGE.json` with the verdict and all rows.

    Args:
        page: HTML file.
        table: CSV file.
        runs: Finished cells.
        failed: Cells that failed, with the reason.
        judgement: How to judge.

    Returns:
        The rows of the finished cells.

    Raises:
        UserError: If a file cannot be written.
    """
    rows = [row_of(outcome) for outcome in runs.outcomes]
    everything = [*rows, *(failed_row(cell) for cell, _ in failed)]
    write_text(table, table_text(everything))
    content = content_of(runs, failed, judgement)
    summary = {
        "schema_version": 1,
        "tolerance_db": judgement.tolerance,
        "verdict": content["summary"],
        "remarks": content["remarks"],
        "settings": [
            {
                **{name: value for name, value in asdict(section["setting"]).items() if name != "pictures"},
                "about": section["about"],
                "verdict": [text for _, text in section["sentences"]],
                "bit_exact": [text for _, text in section["exact"]],
                "smallest_noise": section["smallest_noise"],
                "theory": [asdict(theory) for theory in section["theory"]],
            }
            for section in content["sections"]
        ],
        "changes": [_told(one) for one in content["advice"]],
        "payload_check": [asdict(one) for one in content["warned"]],
        "cells": everything,
    }
    write_text(page.with_suffix(".json"), json.dumps(finite(summary), indent=1, allow_nan=False) + "\n")
    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_safe
    )
    environment.filters |= {"number": number, "decibels": _decibels, "share": _share, "wrapped": _wrapped}
    write_text(page, environment.from_string(template).render(content))
    return rows


def content_of(runs: Runs, failed: Sequence[tuple[Cell, str]], judgement: Judgement) -> dict[str, Any]:
    """Everything that the page says, as the template wants it.

    Args:
        runs: Finished cells.
        failed: Cells that failed, with the reason.
        judgement: How to judge.
    """
    tolerance, runs = judgement.tolerance, displayed(runs)
    scored = [outcome for outcome in runs.outcomes if outcome.scored]
    points = points_of([outcome for outcome in scored if not outcome.change])
    colours = colours_of([point.attack for point in points])
    settings = list(dict.fromkeys(point.setting for point in points))
    sections, all_protections = [], []
    for setting in settings:
        here = [point for point in points if point.setting == setting]
        protections = protections_of(here, tolerance)
        all_protections += protections
        threshold = smallest_noise(here, tolerance)
        sections.append(
            {
                "setting": setting,
                "title": setting_name(setting),
                "about": _about(setting, settings),
                "sentences": sentences_of(protections, tolerance),
                "exact": exact_sentences(protections),
                "noise_sentence": noise_sentence(here, tolerance),
                "smallest_noise": asdict(threshold) if threshold else None,
                "protections": protections,
                "theory": theory_of(protections, judgement.sampling_rate),
                "chart": chart(here, colours),
                "grids": grids_of(protections),
            }
        )
    advice = [advice_of(trial, tolerance) for trial in runs.trials]
    blind = [outcome for outcome in runs.outcomes if not outcome.scored]
    summary = NO_TRUTH if blind else "No cell of this audit has finished."
    if points:
        summary = summary_sentence(all_protections, tolerance)
    remarks = remarks_of(runs.outcomes, judgement) + _failures(failed)
    return {
        "version": __version__,
        "summary": summary,
        "remarks": [remark for remark in remarks if remark != summary],
        "sections": sections,
        "advice": advice,
        "advice_sentence": advice_sentence(advice) if advice else "",
        "reference_name": setting_name(advice[0].before.setting) if advice else "",
        "warned": warned_of(runs.outcomes),
        "blind": [
            {"outcome": outcome, "pictures": pictures, "left_out": told}
            for outcome in blind
            for pictures, told in [pictures_of(outcome)]
        ],
        "server": server_sentence(runs.outcomes),
        "failed": [(cell.name, reason) for cell, reason in failed],
        "assumptions": assumptions_of(scored),
        "names": NAMES,
        "promise": promise,
        "tolerance": tolerance,
        "sampling_rate": judgement.sampling_rate,
        "confidence": round(100 * CONFIDENCE),
        "recognisable_gain": RECOGNISABLE_GAIN,
        "recognisable_ssim": RECOGNISABLE_SSIM,
    }


def displayed(runs: Runs) -> Runs:
    """The same runs with the names that people know the attacks by."""

    def named(outcomes: Sequence[Outcome]) -> list[Outcome]:
        return [replace(outcome, attack=display_name(outcome.attack)) for outcome in outcomes]

    trials = [replace(one, before=tuple(named(one.before)), after=tuple(named(one.after))) for one in runs.trials]
    return Runs(named(runs.outcomes), trials)


def server_sentence(outcomes: Sequence[Outcome]) -> str:
    """Who attacked: servers that add a structure to the model, servers that ship it as it is, or both."""
    malicious = {bool(outcome.record["summary"].get("structure_bytes")) for outcome in outcomes}
    if malicious == {False}:
        return "An honest but curious server, which ships the model as it is, attacked"
    if malicious == {True, False}:
        return "Malicious servers, which add a structure to the model, and honest but curious ones attacked"
    return "A malicious server attacked"


def _about(setting: Setting, settings: Sequence[Setting]) -> str:
    """Network, pictures, delta and adjacency; a mark of the source only where nothing else tells two apart."""
    text = f"{setting.about or 'network and pictures not recorded'}; δ = {number(setting.delta)}"
    text += f", {ADJACENCIES[setting.adjacency]}"
    if sum(replace(other, pictures=setting.pictures) == setting for other in settings) > 1:
        text += f"; source {setting.pictures or 'not recorded'}"
    return text


def _safe(value: object) -> object:
    """What a template's expression came to, without control characters; markup is escaped besides."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.startswith("data:"):
        return value
    return printable(" ".join(value.split()))


def _wrapped(text: str) -> Markup:
    """A picture's name, which may be broken after each folder before it is broken anywhere else."""
    return Markup(escape(printable(text)).replace("/", Markup("/<wbr>")))


def _decibels(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _told(one: Advice) -> dict[str, object]:
    """A change for the JSON file."""
    told: dict[str, object] = {"name": one.name, "cost": one.cost, "level": one.level, "bought_db": asdict(one.bought)}
    for side, point, psnr in (("before", one.before, one.psnr_before), ("after", one.after, one.psnr_after)):
        told |= {f"attack_{side}": point.attack, f"psnr_{side}": psnr}
        told |= {f"epsilon_{side}": point.privacy["epsilon_accounted"]}
    return told


def remarks_of(outcomes: Sequence[Outcome], judgement: Judgement) -> list[str]:
    """What is wrong with the parameters themselves, and what a captured update's program does not tell its users.

    A delta of 1/n or more is kept by publishing one of n records as it is: a warning, not a refusal, since an audit is
    there to look at parameters that may be bad.

    Args:
        outcomes: Finished cells.
        judgement: Knows how many records are protected, or not; they are no fewer than were attacked.
    """
    found = []
    for delta in sorted({float(outcome.record["privacy"]["delta"]) for outcome in outcomes}):
        here = [outcome.record["summary"] for outcome in outcomes if outcome.record["privacy"]["delta"] == delta]
        victims = max(summary.get("victims") or 1 for summary in here)
        records = judgement.population_size or victims
        if delta >= 1 / records:
            whose = "protected" if judgement.population_size else "attacked here alone"
            found.append(
                f"δ = {number(delta)} is not below 1/{records} for the {records} records {whose}: a mechanism that "
                f"publishes one record in full keeps such a promise. Choose δ well below {1 / records:.1g}."
            )
    for outcome in outcomes:
        capture = outcome.record.get("capture")
        if capture and outcome.scored:  # the others are shown with theirs
            told = ". ".join(remark[0].upper() + remark[1:] for remark in capture["remarks"])
            found.append(f"{outcome.name} was made by {capture['source']}. {told}{'.' if told else ''}".rstrip())
    if any(not outcome.scored for outcome in outcomes):
        found.append(NO_TRUTH)
    return found + _skipped(outcomes)


def _skipped(outcomes: Sequence[Outcome]) -> list[str]:
    """Pictures that could not be read, and so were not attacked: counted once, however many runs left them out."""
    found: dict[str, str] = {}
    for outcome in outcomes:
        for entry in outcome.record.get("skipped_pictures") or []:
            if isinstance(entry, Mapping):
                found.setdefault(str(entry.get("name", "unnamed")), str(entry.get("reason", "reason not recorded")))
    if not found:
        return []
    many = len(found) > 1
    which = f"{len(found)} picture{'s' if many else ''} of the data set could not be used"
    named = "; ".join(f"{name} ({reason})" for name, reason in list(found.items())[:_NAMED])
    more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return [f"{which} and {'were' if many else 'was'} not attacked: {named}{more}."]


def _failures(failed: Sequence[tuple[Cell, str]]) -> list[str]:
    if not failed:
        return []
    which = "1 cell" if len(failed) == 1 else f"{len(failed)} cells"
    return [f"{which} failed, listed below: the verdict does not speak of them. The same command tries again."]
