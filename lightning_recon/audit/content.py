# SPDX-License-Identifier: Apache-2.0
"""The content of a report: everything that the template and the JSON file show, computed from the runs."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from lightning_recon import __version__
from lightning_recon.audit.aggregate import CONFIDENCE, points_of, smallest_noise
from lightning_recon.audit.annex import annex_of
from lightning_recon.audit.assumptions import assumptions_of
from lightning_recon.audit.bounds import theory_of
from lightning_recon.audit.chart import chart, colours_of
from lightning_recon.audit.config import ReportOptions
from lightning_recon.audit.formatting import guarantee_of, number, setting_name
from lightning_recon.audit.images import grids_of, reconstructions_of
from lightning_recon.audit.interventions import best_intervention_sentence, effect_of
from lightning_recon.audit.load import Runs
from lightning_recon.audit.payload_checks import payload_checks_of
from lightning_recon.audit.plan import Cell
from lightning_recon.audit.remarks import NO_TRUTH, failure_remarks, remarks_of, reproducible_noise_of
from lightning_recon.audit.run import Outcome, Setting
from lightning_recon.audit.summary import summary_of
from lightning_recon.audit.training import extraction_chart, extraction_sentence, extractions_of
from lightning_recon.audit.verdict import LEVEL_NAMES, protections_of
from lightning_recon.audit.verification_file import read_verification
from lightning_recon.audit.wording import exact_sentences, noise_sentence, sentences_of, summary_sentence
from lightning_recon.evaluation.formatting import ADJACENCIES, display_name
from lightning_recon.evaluation.wording import RECOGNISABLE_GAIN, RECOGNISABLE_SSIM


def content_of(runs: Runs, failed: Sequence[tuple[Cell, str]], options: ReportOptions) -> dict[str, Any]:
    """Compute everything that a report shows, by the names that the template uses.

    Args:
        runs: Finished cells.
        failed: Cells that failed, with the reason.
        options: Options of the report.
    """
    tolerance, runs = options.tolerance, with_display_names(runs)
    scored = [outcome for outcome in runs.outcomes if outcome.scored]
    points = points_of([outcome for outcome in scored if not outcome.change])
    colours = colours_of([point.attack for point in points])
    settings = list(dict.fromkeys(point.setting for point in points))
    sections, all_protections = [], []
    for setting in settings:
        here = [point for point in points if point.setting == setting]
        protections = protections_of(here, tolerance)
        all_protections += protections
        threshold, extractions = smallest_noise(here, tolerance), extractions_of(here)
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
                "theory": theory_of(protections, options.sampling_rate),
                "chart": chart(here, colours),
                "grids": grids_of(protections),
                "extractions": extractions,
                "extracted": [extraction_sentence(one) for one in extractions],
                "extraction_chart": extraction_chart(extractions, setting.rounds, colours),
            }
        )
    effects = [effect_of(trial, tolerance) for trial in runs.trials]
    unscored = [outcome for outcome in runs.outcomes if not outcome.scored]
    summary = NO_TRUTH if unscored else "No cell of this audit has finished."
    if points:
        summary = summary_sentence(all_protections, tolerance)
    remarks = remarks_of(runs.outcomes, options) + failure_remarks(failed)
    verification = read_verification(options.verification)
    executive = summary_of(all_protections, effects, verification)
    changed = [outcome for trial in runs.trials for outcome in trial.after if outcome.change]
    return {
        "version": __version__,
        "executive": executive,
        "summary": summary,
        "remarks": [remark for remark in remarks if remark != summary],
        "sections": sections,
        "effects": effects,
        "best_intervention": best_intervention_sentence(effects) if effects else "",
        "reference_name": setting_name(effects[0].before.setting) if effects else "",
        "payload_checks": payload_checks_of(runs.outcomes),
        "unscored": [
            {"outcome": outcome, "images": images, "left_out": left_out}
            for outcome in unscored
            for images, left_out in [reconstructions_of(outcome)]
        ],
        "server": server_sentence(runs.outcomes),
        "reproducible_noise": reproducible_noise_of(runs.outcomes),
        "failed": [(cell.name, reason) for cell, reason in failed],
        "assumptions": assumptions_of(scored),
        "annex": annex_of([one for one in runs.outcomes if not one.change], changed, executive, verification),
        "level_names": LEVEL_NAMES,
        "guarantee_of": guarantee_of,
        "tolerance": tolerance,
        "sampling_rate": options.sampling_rate,
        "confidence": round(100 * CONFIDENCE),
        "recognisable_gain": RECOGNISABLE_GAIN,
        "recognisable_ssim": RECOGNISABLE_SSIM,
    }


def with_display_names(runs: Runs) -> Runs:
    """The same runs with the names under which the attacks were published."""

    def named(outcomes: Sequence[Outcome]) -> list[Outcome]:
        return [replace(outcome, attack=display_name(outcome.attack)) for outcome in outcomes]

    trials = [replace(one, before=tuple(named(one.before)), after=tuple(named(one.after))) for one in runs.trials]
    return Runs(named(runs.outcomes), trials)


def server_sentence(outcomes: Sequence[Outcome]) -> str:
    """The threat model: malicious servers, which modify the model, honest-but-curious ones, or both."""
    malicious = {bool(outcome.record["summary"].get("structure_bytes")) for outcome in outcomes}
    if malicious == {False}:
        return "An honest-but-curious server, which sends the model unmodified, attacked"
    if malicious == {True, False}:
        return "Malicious servers, which modify the model, and honest-but-curious servers attacked"
    return "A malicious server, which modifies the model, attacked"


def _about(setting: Setting, settings: Sequence[Setting]) -> str:
    """Network, images, delta and adjacency; the digest of the source only where nothing else differs."""
    text = f"{setting.about or 'network and images not recorded'}; δ = {number(setting.delta)}"
    text += f", {ADJACENCIES[setting.adjacency]}"
    if sum(replace(other, pictures=setting.pictures) == setting for other in settings) > 1:
        text += f"; source {setting.pictures or 'not recorded'}"
    return text
