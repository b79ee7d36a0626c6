# SPDX-License-Identifier: Apache-2.0
"""Tables of the pages are computed from results/*.csv, and no number of them is typed by hand."""

import csv
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    import results_table

    yield results_table
    sys.modules.pop("results_table")


def test_a_cell_is_the_mean_of_its_rows(module: Any) -> None:  # noqa: ANN401
    first, rows = module.read("peers")
    assert first.startswith("python scripts/tables.py peers --root DIR --gallery DIR; lightning_recon ")
    cases = [("seed paper", "attack=paper"), ("ours", "attack=water_filling")]
    shown = module.table(rows, cases, ["psnr_mean"], "z", True, "attack")
    assert shown[0] == ["attack", "z = 2e-05", "z = 0.0002", "z = 0.0008"]
    with (ROOT / "results" / "peers.csv").open(newline="") as file:
        next(file)
        table = list(csv.DictReader(file))
    for label, *cells in shown[1:]:
        attack = {"seed paper": "paper", "ours": "water_filling"}[label]
        for z, cell in zip(("2e-05", "0.0002", "0.0008"), cells, strict=True):
            scores = [
                float(row["psnr_mean"]) for row in table if (row["size"], row["attack"], row["z"]) == ("224", attack, z)
            ]
            assert cell == f"{statistics.fmean(scores):.1f} ± {statistics.stdev(scores):.1f}"


def test_filters(module: Any) -> None:  # noqa: ANN401
    row = {"z": "0.0002", "attack": "paper", "options": "--config a.yaml"}
    assert module.matches(row, "z=2e-4 & attack=paper|ours & options~a.yaml & options!~b.yaml")
    assert not any(module.matches(row, one) for one in ("z=1", "attack=ours", "options~b.yaml", "options!~a.yaml"))
    assert module.cell([], "psnr_mean") == "–"
    assert module.cell([{"bit_exact": "0.5"}, {"bit_exact": "0.75"}], "bit_exact") == "62 %"
    with pytest.raises(ValueError, match="no row of the CSV file belongs to 'ours'"):
        module.table([row], [("ours", "attack=ours")], ["z"], None, False)


def test_every_table_is_shown() -> None:
    shown = set(re.findall(r"^```\{results\} (\w+)$", BENCHMARKS, flags=re.MULTILINE))
    assert shown == {path.stem for path in (ROOT / "results").glob("*.csv")} - {"clients_before"}  # of the figure


def test_no_measured_number_is_typed_by_hand() -> None:
    prose = re.sub(r"^```.*?^```", "", BENCHMARKS, flags=re.DOTALL | re.MULTILINE)
    assert not re.findall(r"\d+\.\d+ ?dB|\d+(?:\.\d+)? %|^\|.*\d", prose, flags=re.MULTILINE)
