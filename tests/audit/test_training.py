# SPDX-License-Identifier: Apache-2.0
"""Reports of a whole training: how many images came back, when, and how well."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_recon.audit.aggregate import points_of
from lightning_recon.audit.config import ReportOptions
from lightning_recon.audit.formatting import setting_name
from lightning_recon.audit.load import Runs
from lightning_recon.audit.report import write_report
from lightning_recon.audit.run import read_outcome
from lightning_recon.audit.training import extraction_chart, extraction_sentence, extractions_of
from lightning_recon.exchange import BatchSampling

from .conftest import MakeRun

SHUFFLED = BatchSampling("shuffle", 16)


def a_training(make_run: MakeRun, detected: bool = True) -> Path:
    gains = ((10.0, 10.0), (10.0, 10.0), (12.0, 12.0), (12.0, 12.0))
    return make_run("training", rounds=8, gains=gains, sampling=SHUFFLED, first_rounds=(0, 0, 1, 3), detected=detected)


def test_images_are_counted_by_the_round_that_found_them(make_run: MakeRun) -> None:
    outcome = read_outcome(a_training(make_run))
    assert outcome is not None
    assert "batches of 4 from 16 images, shuffled in every epoch; 8 rounds" in setting_name(outcome.setting)
    (one,) = extractions_of(points_of([outcome]))
    assert one.by_round == {0: 0.5, 1: 0.75, 3: 1.0}
    assert (one.found, one.psnr_found, one.rounds_seen) == (1.0, pytest.approx(23.0), 3.0)
    assert (one.round_of(0.5), one.round_of(0.9)) == (1, 4)
    # Two epochs: two releases of every image, for a server that sees who is in a batch.
    assert one.epsilon == outcome.epsilon(8, "add_remove")
    assert one.epsilon is not None
    assert one.epsilon_if_hidden is not None
    assert one.epsilon_if_hidden <= one.epsilon
    assert extraction_sentence(one).endswith("with 23.0 dB: 50 % by round 1, 90 % by round 4.")
    assert extraction_chart([one], 8, {one.attack: "#000000"}).startswith("data:image/svg")


def test_an_attack_that_finds_nothing_says_so(make_run: MakeRun) -> None:
    outcome = read_outcome(a_training(make_run, detected=False))
    assert outcome is not None
    (one,) = extractions_of(points_of([outcome]))
    assert one.found == 0
    assert "found none of the 4 images" in extraction_sentence(one)
    assert extraction_chart([one], 8, {one.attack: "#000000"}) == ""


def test_rounds_about_the_same_images_are_no_training(make_run: MakeRun) -> None:
    outcome = read_outcome(make_run("fixed", rounds=8))
    assert outcome is not None
    assert extractions_of(points_of([outcome])) == []
    assert "8 rounds with the same images" in setting_name(outcome.setting)


def test_a_setting_names_what_the_mechanism_does(make_run: MakeRun) -> None:
    outcome = read_outcome(a_training(make_run))
    assert outcome is not None
    plain = outcome.setting
    privacy = outcome.record["privacy"] | {"noise_bands": 4, "adaptive_clip": {"unclipped_num_std": 1.0}}
    record = {
        **outcome.record,
        "privacy": privacy,
        "quantization": {"words": "sums of integers"},
        "client_dropout": 0.1,
    }
    other = replace(outcome, record=record).setting
    assert other != plain
    name = setting_name(replace(other, aggregated=2))
    assert "noise correlated over 4 rounds, a clipping norm that adapts over the rounds; sums of integers" in name
    assert "of which each drops out with probability 0.1" in name


def test_the_report_has_a_table_and_a_figure(make_run: MakeRun, tmp_path: Path) -> None:
    outcome = read_outcome(a_training(make_run))
    assert outcome is not None
    page = tmp_path / "report.html"
    write_report(page, tmp_path / "results.csv", Runs([outcome], []), ReportOptions())
    text = page.read_text()
    assert "Images found over the training" in text
    assert "90 % by round 4" in text
    (training,) = json.loads(page.with_suffix(".json").read_text())["settings"][0]["training"]
    assert training["found"] == 1.0
