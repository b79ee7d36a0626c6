# SPDX-License-Identifier: Apache-2.0
"""The numbers in the pages are those of results/*.csv and of the accountant."""

import csv
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_recon.privacy.gaussian_accounting import gaussian_epsilon, mu_of, nominal_epsilon

ROOT = Path(__file__).parents[2]
Row = dict[str, str]


def mean(table: str, wanted: Callable[[Row], bool], column: str = "psnr_mean") -> float:
    with (ROOT / "results" / f"{table}.csv").open(newline="") as file:
        next(file)
        found = [float(row[column]) for row in csv.DictReader(file) if wanted(row)]
    assert len(found) >= 5
    return statistics.fmean(found)


def table_after(page: str, words: str, folder: str = "docs") -> list[list[str]]:
    """Body of the first table that follows some words of a page."""
    text = (ROOT / folder / page).read_text(encoding="utf-8").split(words, 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert lines
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[0].splitlines()[2:]]


ABLATED = {
    "nothing": "",
    "gating": "--model.structure.units 1 ",
    "the pilot": "--model.structure.pilot_power 0.0 ",
    "water-filling": "--model.structure.encoding flat ",
    "refinement": "--trainer.max_steps 0 ",
    "nulls": "--model.structure.nulls 0 ",
    "cancelling pairs": "--model.structure.cancel false ",
}


PEERS = {
    "Robbing the Fed, its public row choice": "robbing_the_fed upstream",
    "Robbing the Fed, noise-aware": "robbing_the_fed",
    "Curious Abandon Honesty": "curious_abandon_honesty",
    "seed paper": "paper",
    "ours, linear code alone": "water_filling",
}
LEVELS = ("2e-05", "0.0002", "0.0008")


@pytest.mark.parametrize(("folder", "page", "rows"), [("", "README.md", 4), ("docs", "benchmarks.md", 5)])
def test_the_papers_setting(folder: str, page: str, rows: int) -> None:
    with (ROOT / "results" / "peers.csv").open(newline="") as file:
        next(file)
        table = [row for row in csv.DictReader(file) if row["size"] == "224"]
    shown = table_after(page, "/peers.csv", folder)
    epsilons = [
        f"{2 / (1000 * float(z)):.3g}; {gaussian_epsilon(mu_of(float(z), 1, 'add_remove'), 1e-5):.1e}" for z in LEVELS
    ]
    assert [cell.replace("e+0", "e") for cell in epsilons] == shown[0][1:4]
    checked = 0
    for label, *cells in shown:
        if label not in PEERS and "mean image" not in label:
            continue
        attack = PEERS.get(label, "paper")
        for z, cell in zip(LEVELS, cells, strict=False):
            at = [row for row in table if (row["attack"], row["z"]) == (attack, z)]
            if label in PEERS:
                scores = [float(row["psnr_mean"]) for row in at]
                assert cell == f"{statistics.fmean(scores):.1f} ± {statistics.stdev(scores):.1f}", (label, z)
            else:
                assert cell.split("; ")[-1] == f"{float(at[0]['mean_image_psnr']):.1f}"
        checked += label in PEERS
    assert checked == rows


def test_ablation() -> None:
    rows = table_after("explanation/codes.md", "ablation.csv")
    assert len(rows) == len(ABLATED)
    for label, shown in rows:
        option = ABLATED[label.split(":")[0]]

        def wanted(row: Row, option: str = option) -> bool:
            varied = any(other in row["options"] for other in ABLATED.values() if other)
            return row["z"] == "0.002" and (option in row["options"] if option else not varied)

        assert shown == f"{mean('ablation', wanted):.1f}", label
    assert f"{mean('ablation', lambda row: row['z'] == '0.002', 'mean_image_psnr'):.1f}" == "13.7"


def test_batch_sizes() -> None:
    for batch, *shown in table_after("explanation/faq.md", "batch_size.csv"):
        for granularity, value in zip(("update", "sample"), shown, strict=True):
            place = (granularity, "0.001", batch)
            wanted = mean("batch_size", lambda row, at=place: (row["granularity"], row["z"], row["batch"]) == at)  # type: ignore[misc]
            assert value == f"{wanted:.1f}", place


def test_voices() -> None:
    rows = table_after("explanation/faq.md", "voices.csv")
    for (_, *shown), voices in zip(rows, ("fixed", "balanced", "flattened"), strict=True):
        for mode, value in zip(("eval", "train"), shown, strict=True):
            place = (voices, mode)
            wanted = mean("voices", lambda row, at=place: (row["voices"], row["batch_norm"]) == at)  # type: ignore[misc]
            assert value == f"{wanted:.1f}", place


def test_accuracy_under_attack() -> None:
    page = " ".join((ROOT / "docs" / "explanation" / "faq.md").read_text(encoding="utf-8").split())
    for share, words in {
        "0.0": "{} % accuracy if no round",
        "0.25": "{} % if a quarter",
        "0.5": "{} % if half",
        "0.75": "{} % if three quarters",
        "1.0": "{} % if all",
    }.items():
        at = (share, "kept")
        value = mean("dp_accuracy", lambda row, at=at: (row["share_attacked"], row["attacked_steps"]) == at, "accuracy")  # type: ignore[misc]
        assert words.format(f"{100 * value:.0f}") in page


def test_epsilons() -> None:
    rows = table_after("explanation/faq.md", "Exact ε")
    assert len(rows) == 6
    for z, nominal, *shown in rows:
        assert float(nominal) == pytest.approx(nominal_epsilon(float(z)), rel=5e-3)
        exact = [
            gaussian_epsilon(mu_of(float(z), rounds, adjacency), 1e-5)
            for rounds in (1, 100)
            for adjacency in ("add_remove", "replace_one")
        ]
        assert shown == [f"{value:.3g}" for value in exact]
