# SPDX-License-Identifier: Apache-2.0
"""The content of a report: the threat model, sections, sampling, interventions, and runs without true images."""

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_recon.audit.config import AuditedAttack, ReportOptions, Sweep
from lightning_recon.audit.load import Intervention
from lightning_recon.audit.payload_checks import CHECKS
from lightning_recon.audit.plan import Cell, plan_of
from lightning_recon.audit.run import Outcome
from lightning_recon.cli import main

from .pages import HOSTILE, Page, outcome, written

MakeRun = Callable[..., Path]


def test_the_threat_model_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    usual = outcome(make_run("usual"))
    summary = usual.record["summary"] | {"structure_bytes": 0}
    honest = replace(usual, attack="inverting_gradients", record={**usual.record, "summary": summary})
    assert "A malicious server, which modifies the model, attacked clients" in Page(written(tmp_path, usual)).text
    text = Page(written(tmp_path, honest)).text
    assert "An honest-but-curious server, which sends the model unmodified, attacked clients" in text
    assert "“Inverting Gradients” reaches" in text
    assert "and honest-but-curious servers attacked clients" in Page(written(tmp_path, usual, honest)).text


def test_the_effect_of_an_intervention_is_in_the_page_and_in_both_tables(make_run: MakeRun, tmp_path: Path) -> None:
    names = ["cat/a", "cat/b"]
    before = outcome(make_run("before", gains=((20.0,), (21.0,)), names=names, alarms=["energy_share"]))
    after = outcome(make_run("after", z=1.0, gains=((10.0,), (11.0,)), names=names, alarms=[]), "ours")
    after = replace(after, change="ten times the noise")
    text = Page(
        written(tmp_path, before, after, trials=[Intervention("ten times the noise", "time", (before,), (after,))])
    ).text
    assert "1 privacy setting was audited" in text  # interventions are not part of the sweep
    assert "is “ten times the noise”: it lowers the PSNR of the strongest attack by 10.0 dB" in text
    assert "32.5 → 22.5" in text
    assert "1 of 2 runs" in text
    assert "This does not protect against an adaptive server" in text
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["changes"][0]["bought_db"]["mean"] == 10.0
    assert told["payload_check"] == [
        {
            "attack": "ours",
            "refused": 1,
            "runs": 2,
            "checks": [CHECKS["energy_share"]],
        }
    ]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert [(row["change"], row["alarms"]) for row in rows] == [("", "energy_share"), ("ten times the noise", "none")]


def test_runs_without_true_images_are_not_judged(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("captured", originals=False)
    record = json.loads((folder / "results.json").read_text())
    for part in ("victims", "baselines", "summary"):
        entries = record[part] if part == "victims" else [record[part]]
        for entry in entries:
            entry |= {name: None for name in entry if "psnr" in name or name in ("ssim_mean", "index", "detected")}
    record |= {"seed": None, "participation": None, "subject_fraction": None}
    record["capture"] = {
        "source": HOSTILE,
        "epsilon_one_round": {"add_remove": 4.0, "replace_one": 8.0},
        "remarks": ["odd"],
    }
    (folder / "results.json").write_text(json.dumps(record))
    main(["report", str(folder), "--output", str(tmp_path / "report.html")])
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.text.count("their reconstructions are shown without scores") == 1
    assert "so they have no PSNR and no verdict" in page.text
    assert HOSTILE in page.text
    assert "were recognisable" not in page.text
    assert len([1 for tag, _ in page.tags if tag == "img"]) == 4
    (row,) = csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text()))
    assert (row["psnr_mean"], row["gain_mean"], row["epsilon_accounted"]) == ("", "", "91.8173")
    # A scored run in the same report has its verdict.
    text = Page(written(tmp_path, outcome(folder), outcome(make_run("known")))).text
    assert "1 privacy setting was audited" in text
    assert "their reconstructions are shown without scores" in text


def test_amplification_is_stated_only_where_sampling_was_announced(sweep: list[Outcome], tmp_path: Path) -> None:
    assert "with sampling" not in Page(written(tmp_path, *sweep)).text
    text = Page(written(tmp_path, *sweep, options=ReportOptions(sampling_rate=0.01))).text
    assert "A malicious server need not sample" in text
    theory = json.loads((tmp_path / "report.json").read_text())["settings"][0]["theory"]
    for row in theory:
        assert row["epsilon_sampled"] <= row["epsilon"]
        assert 0.1 < row["gamma_sampled"] <= 1
    strong = theory[-1]
    assert strong["epsilon"] == pytest.approx(8.0, abs=0.01)
    assert strong["epsilon_sampled"] < 4
    # One round: with probability 0.01 the bound without sampling holds, else there is only guessing.
    assert strong["gamma_sampled"] == pytest.approx(0.99 * 0.1 + 0.01 * strong["gamma"], abs=0.02)


def test_amplification_of_laplace_noise_is_accounted(make_run: MakeRun, tmp_path: Path) -> None:
    # One run, hence a chart whose curves have a single point.
    run = outcome(make_run("laplace", z=1.0, mechanism="laplace"))
    written(tmp_path, run, options=ReportOptions(sampling_rate=0.01))
    (row,) = json.loads((tmp_path / "report.json").read_text())["settings"][0]["theory"]
    assert row["epsilon_sampled"] == pytest.approx(math.log1p(0.01 * math.expm1(1.0)))
    assert row["epsilon"] == pytest.approx(1.0, abs=1e-4)
    assert row["gamma_sampled"] is None
    assert row["tpr"] == pytest.approx([0.01 * math.e, 0.001 * math.e])
    assert row["advantage"] == pytest.approx(1 - math.exp(-0.5), abs=0.02)


def test_a_sampled_image_is_in_every_local_epoch_of_its_round(make_run: MakeRun, tmp_path: Path) -> None:
    def sampled(name: str, **settings: object) -> dict[str, float | None]:
        written(tmp_path, outcome(make_run(name, z=1.0, **settings)), options=ReportOptions(sampling_rate=0.01))
        return json.loads((tmp_path / "report.json").read_text())["settings"][0]["theory"][0]

    # All five sums of a round together, as one of noise 1/sqrt(5): 500 steps sampled independently would have 1.34.
    row = sampled("epochs", rounds=100, local_epochs=5)
    assert row["epsilon_sampled"] == pytest.approx(9.03, abs=0.01)
    assert row["gamma_sampled"] == pytest.approx(0.29, abs=0.015)
    pure = sampled("laplace", rounds=2, local_epochs=3, mechanism="laplace")
    assert pure["epsilon_sampled"] == pytest.approx(2 * math.log1p(0.01 * math.expm1(3.0)))
    assert pure["gamma_sampled"] is None
    # Nothing is proved of integer noise that is sampled.
    other = sampled("skellam", rounds=2, local_epochs=3, mechanism="skellam")
    sums = {"aggregated": 8, "noise_share": "distributed", "client_dropout": 0.1}
    for unknown in (other, sampled("sums", sums=sums)):
        assert (unknown["epsilon_sampled"], unknown["gamma_sampled"]) == (None, None)


def test_settings_of_different_sources_are_distinguished(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [outcome(make_run(name, data={"root": f"/{name}/photos"})) for name in ("a", "b")]
    text = Page(written(tmp_path, *runs)).text
    assert "2 privacy settings were audited" in text
    assert text.count("; source ") == 2
    assert "/photos" not in text


def test_an_audit_without_results_has_a_page(tmp_path: Path) -> None:
    cell: Cell = plan_of(Sweep({"theirs": AuditedAttack()}, [0.1]), [], tmp_path).cells[0]
    assert "No cell of this audit has finished." in Page(written(tmp_path, failed=[(cell, "why")])).text
