# SPDX-License-Identifier: Apache-2.0
"""Folders of runs and of audits are read as what they are, and refused in one line as what they are not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_recon.audit.config import AuditedAttack, Change, Sweep
from lightning_recon.audit.load import PLAN, read_audit, read_runs, write_plan
from lightning_recon.audit.plan import plan_of
from lightning_recon.errors import UserError

MakeRun = Callable[..., Path]


def test_an_audit_knows_what_its_cells_are_for(make_run: MakeRun, tmp_path: Path) -> None:
    changes = {"more": Change(noise_factor=10.0, cost="time"), "larger": Change(batch_factor=2)}
    plan = plan_of(Sweep({"ours": AuditedAttack()}, [0.1, 1.0], interventions=changes), [], tmp_path)
    write_plan(tmp_path, plan, changes)
    (tmp_path / "cells").mkdir()
    assert [len(group) for group in (plan.cells, plan.sweep, plan.reference)] == [3, 2, 1]
    for cell in plan.cells:
        make_run(cell.name, z=cell.noise_multiplier).rename(tmp_path / "cells" / cell.name)
    found = read_audit(tmp_path)
    assert [outcome.change for outcome in found.outcomes] == ["", "", "larger"]
    more, larger = found.trials
    assert (more.name, more.cost, [one.noise for one in more.before + more.after]) == ("more", "time", [0.1, 1.0])
    assert larger.after == (found.outcomes[2],)
    # A change whose cells have not finished is left out.
    (tmp_path / "cells" / plan.changes["larger"][0].name / "results.json").unlink()
    assert [trial.name for trial in read_audit(tmp_path).trials] == ["more"]


def test_a_folder_named_twice_counts_once(make_run: MakeRun) -> None:
    folder = make_run("one")
    assert len(read_runs([folder, folder / ".." / "one"]).outcomes) == 1


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        json.dumps({"schema_version": 2}),
        json.dumps({"schema_version": 1, "privacy": {}}),
    ],
)
def test_foreign_results_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=r"results\.json (of a finished run|or its tensors are damaged)") as told:
        read_runs([tmp_path])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", ["not json", "[]", json.dumps({"cells": ["a"]}), json.dumps({"cells": {}})])
def test_foreign_plans_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / PLAN).write_text(content)
    with pytest.raises(UserError) as told:
        read_runs([tmp_path])
    assert "\n" not in str(told.value)


def test_incomplete_records_are_refused_in_one_line(make_run: MakeRun) -> None:
    folder = make_run("odd")
    record = json.loads((folder / "results.json").read_text())
    del record["privacy"]["delta"]
    (folder / "results.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="odd") as told:
        read_runs([folder])
    assert "\n" not in str(told.value)
