# SPDX-License-Identifier: Apache-2.0
"""Remarks at the head of a report: unsuitable delta, captured updates, unknown truth, skipped images, failed cells."""

from collections.abc import Mapping, Sequence

from lightning_recon.audit.config import ReportOptions
from lightning_recon.audit.formatting import number
from lightning_recon.audit.plan import Cell
from lightning_recon.audit.run import Outcome

_NAMED = 5  # skipped images that are listed by name

NO_TRUTH = (
    "For some of these updates the true images are not available, so their reconstructions are shown without scores. "
    "Only someone who knows the images can judge them."
)

REPRODUCIBLE_NOISE = (
    "The noise of some of these runs is reproducible (noise_seed): whoever knows the seed can draw it again and "
    "subtract it, so these updates must not be published. The attacks did not use it."
)


def reproducible_noise_of(outcomes: Sequence[Outcome]) -> bool:
    """Whether the noise of any run can be drawn again from a public seed."""
    return any(bool(outcome.record["privacy"].get("reproducible_noise")) for outcome in outcomes)


def remarks_of(outcomes: Sequence[Outcome], options: ReportOptions) -> list[str]:
    """Collect remarks on the privacy parameters and on the origin of the updates.

    Publishing one of n records in full satisfies (0, 1/n)-DP, so a delta of 1/n or more guarantees nothing. This is a
    warning, not an error: an audit must be able to measure bad parameters.

    Args:
        outcomes: Finished cells.
        options: Give the number of protected records; without it, the number of attacked records is a lower bound.
    """
    found = []
    for delta in sorted({float(outcome.record["privacy"]["delta"]) for outcome in outcomes}):
        here = [outcome.record["summary"] for outcome in outcomes if outcome.record["privacy"]["delta"] == delta]
        victims = max(summary.get("victims") or 1 for summary in here)
        records = options.population_size or victims
        if delta >= 1 / records:
            whose = "protected" if options.population_size else "attacked"
            found.append(
                f"δ = {number(delta)} is not below 1/{records}, where {records} is the number of {whose} records: a "
                "mechanism that publishes one record in full satisfies this guarantee. Choose δ well below "
                f"{1 / records:.1g}."
            )
    for outcome in outcomes:
        capture = outcome.record.get("capture")
        if capture and outcome.scored:  # those without scores have a section of their own
            details = ". ".join(remark[0].upper() + remark[1:] for remark in capture["remarks"])
            source = f"{outcome.name} was captured from {capture['source']}."
            found.append(f"{source} {details}{'.' if details else ''}".rstrip())
    if reproducible_noise_of(outcomes):
        found.append(REPRODUCIBLE_NOISE)
    if any(not outcome.scored for outcome in outcomes):
        found.append(NO_TRUTH)
    return found + _skipped(outcomes)


def failure_remarks(failed: Sequence[tuple[Cell, str]]) -> list[str]:
    """State how many cells failed.

    Args:
        failed: Cells that failed, with the reason.
    """
    if not failed:
        return []
    which = "1 cell" if len(failed) == 1 else f"{len(failed)} cells"
    return [
        f"{which} failed and {'is' if len(failed) == 1 else 'are'} listed below; the verdict leaves them out. "
        "Run the same command again to repeat them."
    ]


def _skipped(outcomes: Sequence[Outcome]) -> list[str]:
    """Unreadable images, which were not attacked; each is counted once over all runs."""
    found: dict[str, str] = {}
    for outcome in outcomes:
        for entry in outcome.record.get("skipped_pictures") or []:
            if isinstance(entry, Mapping):
                found.setdefault(str(entry.get("name", "unnamed")), str(entry.get("reason", "reason not recorded")))
    if not found:
        return []
    many = len(found) > 1
    which = f"{len(found)} image{'s' if many else ''} of the data set could not be read"
    named = "; ".join(f"{name} ({reason})" for name, reason in list(found.items())[:_NAMED])
    more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return [f"{which} and {'were' if many else 'was'} not attacked: {named}{more}."]
