# SPDX-License-Identifier: Apache-2.0
"""Load the runs of a report from folders of runs or of audits, and pair those that show the effect of a change."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_recon.audit.config import Change
from lightning_recon.audit.plan import Plan
from lightning_recon.audit.run import Outcome, cell_folder, read_outcome
from lightning_recon.audit.table import row_of
from lightning_recon.errors import UserError
from lightning_recon.files.faults import readable
from lightning_recon.files.schema import PLAN as PLAN_SCHEMA
from lightning_recon.files.serialization import read_json, write_json

PLAN = "plan.json"


@dataclass(frozen=True)
class Intervention:
    """A change of a protection, with the runs without and with it.

    Args:
        name: Of the change.
        cost: Its cost in words; may be empty.
        before: Finished cells without it.
        after: Finished cells with it.
    """

    name: str
    cost: str
    before: tuple[Outcome, ...]
    after: tuple[Outcome, ...]


@dataclass(frozen=True)
class Runs:
    """The runs of a report.

    Args:
        outcomes: Finished runs.
        trials: Changes of a protection with finished runs on both sides.
    """

    outcomes: list[Outcome]
    trials: list[Intervention] = field(default_factory=list)


def write_plan(output: Path, plan: Plan, changes: dict[str, Change]) -> None:
    """Record the purpose of each cell of an audit.

    Args:
        output: Folder of the audit.
        plan: Its cells.
        changes: The changes that they try.

    Raises:
        UserError: If it cannot be written.
    """
    content = {
        "cells": {cell.name: cell.attack for cell in plan.cells},
        "sweep": [cell.name for cell in plan.sweep],
        "reference": [cell.name for cell in plan.reference],
        "changes": {
            name: {"cost": changes[name].cost, "cells": [cell.name for cell in cells]}
            for name, cells in plan.changes.items()
        },
    }
    write_json(output / PLAN, content)


def read_audit(folder: Path) -> Runs:
    """The finished cells of an audit, as its plan names them.

    Args:
        folder: Folder of the audit, with a plan.

    Raises:
        UserError: If the plan cannot be read.
    """
    with readable(folder / PLAN):
        plan = read_json(folder / PLAN, PLAN_SCHEMA)
        tried = plan.get("changes", {})
        sweep = {*plan.get("sweep", plan["cells"]), *plan.get("reference", [])}
        made_for = {name: change for change, entry in tried.items() for name in entry["cells"] if name not in sweep}
        found = {
            name: read_outcome(cell_folder(folder, Path(name).name), str(attack), made_for.get(name, ""))
            for name, attack in plan["cells"].items()
        }
        finished = {name: outcome for name, outcome in found.items() if outcome is not None}

        def those(names: Sequence[str]) -> tuple[Outcome, ...]:
            return tuple(finished[name] for name in names if name in finished and finished[name].scored)

        trials = [
            Intervention(change, str(entry["cost"]), those(plan.get("reference", [])), those(entry["cells"]))
            for change, entry in tried.items()
        ]
    return Runs(list(finished.values()), [trial for trial in trials if trial.before and trial.after])


def read_runs(folders: Sequence[Path]) -> Runs:
    """The finished runs of some folders, each a run's or an audit's output.

    Args:
        folders: Named twice, one counts once.

    Raises:
        UserError: A folder holds neither.
    """
    found = Runs([])
    for folder in {folder.resolve(): folder for folder in folders}.values():
        alone = read_outcome(folder)
        here = read_audit(folder) if (folder / PLAN).is_file() else Runs([alone] if alone else [])
        if not here.outcomes:
            raise UserError(
                f"{folder} holds no results.json of a finished run: name folders of runs or of an audit "
                "(runs of another version are not read)"
            )
        for outcome in here.outcomes:
            with readable(outcome.folder / "results.json"):
                row_of(outcome)  # raises if a field is missing
        found.outcomes.extend(here.outcomes)
        found.trials.extend(here.trials)
    return found
