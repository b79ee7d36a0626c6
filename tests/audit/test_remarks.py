# SPDX-License-Identifier: Apache-2.0
"""Remarks of a report: delta, captured updates, failed cells."""

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_recon.audit.config import AuditedAttack, ReportOptions, Sweep
from lightning_recon.audit.plan import plan_of
from lightning_recon.audit.remarks import remarks_of
from lightning_recon.audit.run import Outcome

from .pages import Page, outcome, written

MakeRun = Callable[..., Path]


@pytest.mark.parametrize(("delta", "records", "warned"), [(1e-5, None, False), (0.5, None, True), (1e-5, 50_000, False),
                                                          (1e-5, 100_000, True)])  # fmt: skip
def test_a_delta_of_one_over_n_is_a_remark(make_run: MakeRun, delta: float, records: int | None, warned: bool) -> None:
    remarks = remarks_of([outcome(make_run("one", delta=delta))], ReportOptions(population_size=records))
    assert bool(remarks) is warned


def test_the_source_of_a_captured_update_is_a_remark(make_run: MakeRun, tmp_path: Path) -> None:
    one = outcome(make_run("one"))
    capture = {"source": "flwr 1.42", "remarks": ["the program declares epsilon 8"]}
    told = replace(one, record={**one.record, "capture": capture})
    assert "one was captured from flwr 1.42. The program declares epsilon 8." in written(tmp_path, told)
    assert "was captured from" not in written(tmp_path, one)


def test_failed_cells_have_a_row_and_a_remark(sweep: list[Outcome], tmp_path: Path) -> None:
    cell = plan_of(Sweep({"theirs": AuditedAttack()}, [0.1]), [], tmp_path).cells[0]
    page = Page(written(tmp_path, *sweep, failed=[(cell, "no memory")]))
    assert "1 cell failed" in page.text
    assert "no memory" in page.text
    *_, last = csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text()))
    assert (last["status"], last["attack"], last["psnr_mean"]) == ("failed", "theirs", "")


@pytest.mark.parametrize("public", [True, False, None])
def test_noise_that_anyone_can_draw_again_is_named(make_run: MakeRun, public: bool | None) -> None:
    run = outcome(make_run("one"))
    run.record["privacy"]["reproducible_noise"] = public
    found = remarks_of([run], ReportOptions())
    assert any("reproducible (noise_seed)" in remark for remark in found) is (public is True)
