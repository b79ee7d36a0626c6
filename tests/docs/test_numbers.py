# SPDX-License-Identifier: Apache-2.0
"""The numbers in the pages are those of results/*.csv and of the accountant."""

import csv
import re
import runpy
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_recon.privacy.gaussian_accounting import gaussian_epsilon, mu_of, nominal_epsilon
from lightning_recon.privacy.mechanism import ADJACENCIES

ROOT = Path(__file__).parents[2]
LABELS: dict[str, str] = runpy.run_path(str(ROOT / "scripts" / "peer_variants.py"))["LABELS"]
Row = dict[str, str]


def selected(table: str, wanted: Callable[[Row], bool], column: str) -> list[float]:
    with (ROOT / "results" / f"{table}.csv").open(newline="") as file:
        next(file)
        found = [float(row[column]) for row in csv.DictReader(file) if wanted(row)]
    assert len(found) >= 5
    return found


def mean(table: str, wanted: Callable[[Row], bool], column: str = "psnr_mean") -> float:
    return statistics.fmean(selected(table, wanted, column))


def lowest(table: str, wanted: Callable[[Row], bool], column: str) -> float:
    return min(selected(table, wanted, column))


def table_after(page: str, words: str, folder: str = "docs") -> list[list[str]]:
    """Body of the first table that follows some words of a page."""
    text = (ROOT / folder / page).read_text(encoding="utf-8").split(words, 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert lines
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[0].splitlines()[2:]]


def strongest_published(z: str) -> str:
    """The best mean of the published structures, and which one, unless nothing beats the mean image."""
    with (ROOT / "results" / "sample64.csv").open(newline="") as file:
        next(file)
        names = sorted({row["attack"] for row in csv.DictReader(file)} - {"identity", "water_filling"})
    means = {name: mean("sample64", attacked(name, z)) for name in names}
    best = max(means, key=lambda name: means[name])
    shown, mean_image = f"{means[best]:.1f}", mean("sample64", attacked(best, z), "mean_image_psnr")
    if shown == f"{mean_image:.1f}":
        return shown
    structure = "seed paper" if best.startswith("paper") else "Robbing the Fed"
    return f"{shown} ({structure}, {LABELS[best]})"


def attacked(attack: str, z: str) -> Callable[[Row], bool]:
    """Selects the rows of an attack on one image a client, clipped alone."""

    def wanted(row: Row) -> bool:
        same = (row["attack"], float(row["z"]), row["size"]) == (attack, float(z), "64")
        return same and row["granularity"] == "sample" and row["rounds"] == "1"

    return wanted


def test_what_survives_at_which_epsilon() -> None:
    rows = table_after("README.md", "/digital.csv](results/digital.csv)):", "")
    assert len(rows) == 6
    for *accounted, z, nominal, published, ours, worst in rows:
        for shown, adjacency in zip(accounted, ADJACENCIES, strict=True):
            exact = gaussian_epsilon(mu_of(float(z), 1, adjacency), 1e-5)
            assert exact is not None
            assert float(shown) == pytest.approx(exact, rel=2.5e-2)
        assert float(nominal) == pytest.approx(nominal_epsilon(float(z)), rel=1e-3)
        assert published == strongest_published(z)
        # Where no file fits through, the digital attack sends the linear code.
        table, attack = ("sample64", "water_filling") if float(z) > 0.01 else ("digital", "digital")
        wanted = attacked(attack, z)
        low, high = (mean(table, wanted, f"psnr_{end}") for end in ("low", "high"))
        average = f"{mean(table, wanted):.1f} [{low:.1f}, {high:.1f}]"
        exact_share = f"{100 * mean(table, wanted, 'bit_exact'):.0f} % bit-exact" if float(z) < 0.01 else ""
        assert ours in (exact_share, average)
        assert worst == f"{lowest(table, wanted, 'psnr_worst'):.1f}".replace("100.0", "100")
    of_mean_image = mean("sample64", lambda row: True, "mean_image_psnr")
    assert f"scores {of_mean_image:.1f} dB" in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


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
    composed = mean("dp_accuracy", lambda row: True, "epsilon_accounted")
    assert f"an accounted ε of {composed:.0f} together (δ = 1e-5, add/remove," in page


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


def test_what_the_case_studies_say() -> None:
    page = " ".join((ROOT / "docs" / "explanation" / "case-studies.md").read_text(encoding="utf-8").split())

    def shown(case: str, setting: str, column: str) -> float:
        with (ROOT / "results" / "case_studies.csv").open(newline="") as file:
            next(file)
            rows = [row for row in csv.DictReader(file) if (row["case"], row["setting"]) == (case, setting)]
        assert len(rows) == 3
        assert {row["gallery_size"] for row in rows} == {"948"}
        return statistics.fmean(float(row[column]) for row in rows)

    guess = 8 / 948
    assert "right with eight in 948" in page
    assert "Every image arrives whole, from one round" in page
    assert shown("FLIP", "one round", "bit_exact") == shown("FLIP", "one round of Adam, 3 epochs", "bit_exact") == 1
    assert "The attack fails in one round. Over three rounds it identifies more images than a blind guess" in page
    assert shown("FLIP as advised", "one round", "identification") <= guess
    assert shown("FLIP as advised", "3 rounds", "identification") > 3 * guess
    assert "The attack identified no image" in page
    for setting in ("one round", "3 rounds"):
        for images in ("8 images", "1 image"):
            assert shown("Flower with Opacus", f"{setting}, {images} a client", "identification") == 0
    assert "without noise nearly every image arrives whole" in page
    assert 0.9 < shown("Flower central noise", "one round, before the noise", "bit_exact") < 1
    assert "Twenty rounds on the *same* images show blurred pictures, of which most can be identified" in page
    assert shown("Opacus tutorial", "one round, 8 images a client", "lost_share") == 1
    assert shown("Opacus tutorial", "20 rounds, 8 images a client", "identification") > 0.5
    assert "for most of the victims, and identifies no more than a blind guess would" in page
    changing = "160 rounds, batches change"
    assert shown("Opacus tutorial", changing, "lost_share") > 0.5
    assert shown("Opacus tutorial", changing, "identification") <= 64 / 948
    assert "which is right with 60 images in 948" in page
    for setting in ("one round, noised sum", "3 rounds, noised sum"):
        assert shown("Flower central noise", setting, "identification") <= 60 / 948
    assert "it gets coarse colours of about a third of the images, and hardly ever identifies one" in page
    assert 0.6 < shown("Opacus README", "16 rounds, 1 image a client", "lost_share") < 0.7
    assert shown("Opacus README", "one round, 8 images a client", "lost_share") == 1
    assert shown("Opacus README", "16 rounds, 1 image a client", "identification") < 0.05
