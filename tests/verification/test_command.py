# SPDX-License-Identifier: Apache-2.0
"""`recon verify`: exit status, table, JSON and JUnit XML, and mistakes in one line."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import yaml

from lightning_recon.cli import main
from lightning_recon.errors import UserError
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.verification import epsilon_checks
from lightning_recon.verification.canary_scores import CanaryReach
from lightning_recon.verification.check import Check, not_run
from lightning_recon.verification.claims import Claims
from lightning_recon.verification.empirical_epsilon.lower_bounds import LowerBound
from lightning_recon.verification.releases import Releases
from lightning_recon.verification.report import Verification
from lightning_recon.verification.verdicts import Line, Verdict, decide

CONFIG = {
    "client": "lightning_recon.verification.opacus_step:OpacusStep",
    "client_arguments": {"max_grad_norm": 1.0, "noise_multiplier": 0.3},
    "claims": {"privacy": {"noise_multiplier": 0.3, "granularity": "sample"}, "batch_size": 8},
    "network": "tests.verification.museum.Net",
    "image_size": 8,
    "releases": 4,
    "restart": False,
}


def config(folder: Path, **changes: object) -> str:
    path = folder / "verify.yaml"
    path.write_text(yaml.safe_dump({"verify": CONFIG | changes}))
    return str(path)


def status(*arguments: str) -> int:
    try:
        main(["verify", *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_a_claim_that_holds_and_one_that_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", config(tmp_path), "--output", str(tmp_path / "out")]
    assert status(*arguments) == 0
    assert "0 are refuted" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "verify.json").read_text())
    assert record["holds"]
    assert record["claims"]["privacy"]["noise_multiplier"] == 0.3
    assert {line["verdict"] for line in record["lines"]} <= {"holds", "inconclusive", "not run"}

    assert status(*arguments, "--verify.client_arguments.noise_multiplier", "0.15") == 1
    text = capsys.readouterr().out
    assert "refuted: noise_std" in text
    assert "the noise is half as large" in text
    suite = ElementTree.parse(tmp_path / "out" / "verify.xml").getroot()
    failed = {case.get("name"): case.find("failure") for case in suite if case.find("failure") is not None}
    assert suite.get("failures") == str(len(failed))
    failure = failed["noise_std all tensors"]
    assert failure is not None
    assert str(failure.get("message")).startswith("claimed 0.3; measured 0.1")
    assert len(suite) == int(suite.get("tests") or 0)


@pytest.mark.parametrize("channels", ["3", "1"])
def test_the_shipped_config_runs(channels: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--verify.channels", channels]
    small += ["--verify.image_size", "16", "--verify.releases", "4", "--verify.restart", "false"]
    assert status("--config", "verify.yaml", "--output", str(tmp_path), *small) == 0
    assert "0 are refuted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--verify.clint", "x"], "did you mean --verify.client?"),
        (["--verify.claims.privacy.noise_multiplier", "0"], "claims no clip or no noise"),
        (["--verify.claims.batch_size", "0"], "--verify.claims.batch_size is 0"),
        (["--verify.releases", "1"], "--verify.releases is 1: give a whole number from 4"),
        (["--verify.client", "nowhere:step"], "--verify.client nowhere:step cannot be imported"),
        (["--config", "quickstart.yaml"], "write all settings below `verify:`"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert status("--config", config(tmp_path), "--output", str(tmp_path / "out"), *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_lower_bound_above_the_claim_is_never_said_to_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 95 % a bound may be above the claim where the limit on false alarms, far stricter, refutes nothing."""

    def bounds(*_: object, **__: object) -> list[LowerBound]:
        return [LowerBound("one_run", 6.1, 0.01, ""), LowerBound("gaussian_dp", 1.0, 0.6, "")]

    monkeypatch.setattr(epsilon_checks, "lower_bounds", bounds)
    probe = CanaryReach(2.0, torch.zeros(4), torch.zeros(4), 1.0)
    noise = {"weight": torch.eye(4)}
    releases = Releases(noise, {}, {}, [], {}, {}, {}, {"near": probe, "far": probe}, [], torch.zeros(4))
    lines = decide(list(epsilon_checks.empirical_checks(releases, Claims(Privacy(1.0, 1.0, "sample")))), 0.001)
    verdicts = {line.check.name: (line.verdict, line.remark) for line in lines}
    assert verdicts["epsilon empirical gaussian_dp"] == ("holds", "")
    verdict, remark = verdicts["epsilon empirical one_run"]
    assert verdict == "inconclusive"
    assert remark == "the bound is above the claim, but not beyond the limit on false alarms: raise releases"


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (["refuted"], "0 claims hold, 1 is refuted, 0 are inconclusive, 0 were not tested"),
        (["holds", "not run"], "1 claim holds, 0 are refuted, 0 are inconclusive, 1 was not tested"),
    ],
)
def test_the_summary_counts_in_words(verdicts: list[Verdict], said: str) -> None:
    lines = tuple(Line(Check("", "", "", 1.0), verdict) for verdict in verdicts)
    assert Verification(lines, Claims(Privacy(1.0, 1.0)), 0.001, 1, {}).summary == said


def test_a_verdict_takes_all_tests_of_a_run_into_account() -> None:
    checks = [Check(f"line {place}", "", "", p_value) for place, p_value in enumerate((0.004, 0.004, 0.5))]
    assert [line.verdict for line in decide(checks[:1], 0.01)] == ["refuted"]
    assert [line.verdict for line in decide(checks, 0.01)] == ["holds"] * 3
    small = Check("small", "", "", 1e-6)
    # The smallest is compared with a third of the limit, the next with a half.
    assert [line.verdict for line in decide([*checks[:2], small], 0.01)] == ["refuted"] * 3
    assert [line.verdict for line in decide([Check("", "", "", 0.5, doubt="few"), not_run("", "", "why")], 0.01)] == [
        "inconclusive",
        "not run",
    ]


@pytest.mark.parametrize(
    "privacy", [Privacy(1.0, 0.0), Privacy(None, 0.0), Privacy(1.0, 1.0, noise_bands=2)], ids=["noise", "clip", "bands"]
)
def test_claims_that_nothing_can_contradict_are_a_mistake(privacy: Privacy) -> None:
    with pytest.raises(UserError, match="privacy"):
        Claims(privacy)


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({"loss_reduction": "sum"}, 1.0),
        ({"loss_reduction": "mean"}, 8.0),
        ({"loss_reduction": "mean", "released": "state_dict", "learning_rate": 0.5}, -16.0),
    ],
)
def test_the_unit_of_a_release(options: dict[str, object], factor: float) -> None:
    sample = Claims(Privacy(1.0, 1.0, "sample"), 8, **options)  # type: ignore[arg-type]
    assert sample.update_factor == factor
    update = Claims(Privacy(1.0, 1.0, "update"), 8, **options)  # type: ignore[arg-type]
    assert update.update_factor == (-1.0 if sample.released == "state_dict" else 1.0)


def test_noise_that_clients_share() -> None:
    shared = Claims(Privacy(2.0, 1.0, "sample"), aggregated=4, noise_share="distributed")
    assert (shared.noise_std, Claims(Privacy(2.0, 1.0, "sample"), aggregated=4).noise_std) == (1.0, 2.0)
