# SPDX-License-Identifier: Apache-2.0
"""The executive summary: a light for every protection, plain words, and what to change."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy.stats import norm

from lightning_recon.audit.aggregate import points_of
from lightning_recon.audit.config import ReportOptions
from lightning_recon.audit.load import Intervention
from lightning_recon.audit.run import Outcome
from lightning_recon.audit.summary import Summary, summary_of
from lightning_recon.audit.traffic_light import light_of
from lightning_recon.audit.verdict import Level, protections_of
from lightning_recon.audit.verification_file import read_verification
from lightning_recon.cli import main
from lightning_recon.errors import UserError
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.verification.check import Check
from lightning_recon.verification.claims import Claims
from lightning_recon.verification.report import Verification
from lightning_recon.verification.verdicts import decide

from .pages import Page, outcome, written

MakeRun = Callable[..., Path]
NOTHING = ((0.0, 0.0),) * 2


def summary(*outcomes: Outcome) -> Summary:
    points = points_of(outcomes)
    settings = dict.fromkeys(point.setting for point in points)
    each = [protections_of([point for point in points if point.setting == setting], 0.5) for setting in settings]
    found = summary_of([one for part in each for one in part], [], None)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("level", "exact", "gamma", "light"),
    [
        ("recognisable", False, 0.11, "red"),
        ("nothing", True, 0.11, "red"),  # an exact copy is one, whatever the mean over all images
        ("something", False, 0.11, "amber"),
        ("identified", False, 0.11, "amber"),
        ("open", False, 0.11, "amber"),
        ("nothing", False, 0.5, "green"),
        ("nothing", False, 0.51, "amber"),
        ("nothing", False, None, "amber"),  # no bound: nothing rules out another attack
    ],
)
def test_lights(level: Level, exact: bool, gamma: float | None, light: str) -> None:
    assert light_of(level, exact, gamma) == light


def test_every_protection_has_its_light_and_its_words(sweep: list[Outcome]) -> None:
    found = summary(*sweep)
    assert found.light == "red"
    assert found.headline == "A server could see images of the users under one of four audited protections."
    assert found.noises == (2e-4, 0.1, 0.3, 0.6)
    cells = [cell for cell in found.rows[0].cells if cell]
    assert [cell.light for cell in cells] == ["red", "amber", "amber", "amber"]
    findings = ["recognisable images", "coarse images", "too few images to decide", "nothing found, not excluded"]
    assert [cell.finding for cell in cells] == findings
    assert cells[-1].epsilon == "8"
    assert not re.search("PSNR|SSIM|dB", " ".join([found.headline, *found.findings, *found.changes]))


def test_green_needs_measurement_and_theory(make_run: MakeRun) -> None:
    found = summary(*(outcome(make_run(f"z{z}", z=z, gains=NOTHING, ssim=0.1)) for z in (2.0, 4.0)))
    assert found.light == "green"
    assert "recovered nothing under any of the two audited protections" in found.headline
    assert found.changes == (
        "These protections need no change. Repeat the audit when network, images or number of rounds change.",
    )


def test_the_noise_that_theory_asks_for(make_run: MakeRun) -> None:
    """Gamma: Phi(Phi^-1(0.1) + sqrt(T)/z) is one half at z = sqrt(T) / 1.28, whichever adjacency epsilon has."""
    least = math.ceil(10 * 4 / norm.ppf(0.9)) / 10  # rounded up
    for adjacency in ("add_remove", "replace_one"):
        run = make_run(adjacency, z=0.6, gains=NOTHING, ssim=0.1, rounds=16, adjacency=adjacency)
        (change,) = summary(outcome(run)).changes
        assert f"theory gives none below z = {least:g}: audit more noise" in change
    enough = [outcome(make_run(f"z{z}", z=z, gains=NOTHING, ssim=0.1, rounds=16)) for z in (0.6, 3.2)]
    (change,) = summary(*enough).changes
    assert "use at least z = 3.2 (ε = 5.68), the least audited noise with a green light" in change
    # With the noise of theory, the light is green.
    assert summary(outcome(make_run("least", z=least, gains=NOTHING, ssim=0.1, rounds=16))).light == "green"


def test_the_change_that_turns_the_light(make_run: MakeRun, tmp_path: Path) -> None:
    names = ["cat/a", "cat/b"]
    before = outcome(make_run("before", z=0.1, names=names))
    little = outcome(make_run("little", z=0.2, names=names, gains=((9.0, 9.0), (9.5, 9.5))))
    much = outcome(make_run("much", z=2.0, names=names, gains=NOTHING, ssim=0.1))
    trials = [
        Intervention("twice the noise", "slower", (before,), (little,)),
        Intervention("twenty times the noise", "much slower learning", (before,), (much,)),
    ]
    text = Page(written(tmp_path, before, trials=trials)).text
    assert "“twenty times the noise” turns the light from red to green. Its cost: much slower learning." in text
    # Another attack than the strongest one may still obtain exact copies.
    copies = outcome(make_run("copies", "other", z=2.0, names=names, gains=NOTHING, exact=((True, True),) * 2))
    half = Intervention("with copies", "", (before,), (much, copies))
    assert "turns the light from red to green" not in Page(written(tmp_path, before, trials=[half])).text
    green = outcome(make_run("green", z=2.0, names=names, gains=NOTHING, ssim=0.1))
    kept = Intervention("none needed", "", (green,), (much,))
    assert "These protections need no change" in Page(written(tmp_path, green, trials=[kept])).text
    text = Page(written(tmp_path, before, trials=trials[:1])).text
    assert "None of the tested changes by itself turns the light from red to a better one." in text


def verification(folder: Path, z: float, refuted: bool) -> Path:
    claims = Claims(Privacy(1.0, z, granularity="sample"), batch_size=2)
    checks = [Check("noise_std w", "1", "1", 0.5), Check("clip far", "1", "7", 0.0 if refuted else 0.4, "no clip")]
    Verification(tuple(decide(checks, 0.001)), claims, 0.001, 8, {"torch": "2"}).save(folder)
    return folder / "verify.json"


def test_what_verify_found_joins_the_summary(make_run: MakeRun, tmp_path: Path) -> None:
    run = outcome(make_run("run", z=2.0, gains=NOTHING, ssim=0.1))

    def text(z: float, refuted: bool) -> str:
        options = ReportOptions(verification=str(verification(tmp_path / "v", z, refuted)))
        return Page(written(tmp_path, run, options=options)).text

    assert "refuted none of its claims; 2 of 2 held." in text(2.0, False)
    assert "parameters that this audit does not contain" not in text(2.0, False)
    assert "parameters that this audit does not contain" in text(1.0, False)
    page = text(1.0, True)
    assert "parameters that this audit does not contain" in page
    assert "if the code did what its parameters say" in page
    assert "The client's code does not do what its privacy parameters say." in page
    assert "refuted what is claimed of it: clip far" in page
    assert json.loads((tmp_path / "report.json").read_text())["light"] == "red"
    assert json.loads((tmp_path / "annex.json").read_text())["implementation"]["refuted"] == ["clip far"]


def test_a_missing_or_damaged_verification_is_refused(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("run", z=2.0, gains=NOTHING)
    page = tmp_path / "r.html"
    with pytest.raises(SystemExit) as stop:
        main(["report", str(run), "--output", str(page), "--verification", str(tmp_path / "none")])
    assert stop.value.code == 2
    assert "none does not exist: give the verify.json" in " ".join(capsys.readouterr().err.split())
    assert not page.exists()
    damaged = verification(tmp_path / "v", 2.0, False)
    damaged.write_text(damaged.read_text().replace('"holds": true', '"holds": false'))
    with pytest.raises(UserError, match="altered"):
        read_verification(damaged)


def test_without_true_images_there_is_no_light(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("blind")
    record = json.loads((folder / "results.json").read_text())
    for victim in record["victims"]:
        victim |= {"psnr": None, "ssim": None}
    (folder / "results.json").write_text(json.dumps(record))
    text = Page(written(tmp_path, outcome(folder))).text
    assert "What to change" not in text
    told = json.loads((tmp_path / "annex.json").read_text())
    assert told["result"] is None
    assert "the true images are not available" in (tmp_path / "audit-card.md").read_text()


def test_oracles_are_named_first(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("oracle")
    record = json.loads((folder / "results.json").read_text())
    record["oracles"] = ["labels"]
    (folder / "results.json").write_text(json.dumps(record))
    found = summary(outcome(folder))
    assert found.headline.startswith("A server with information that servers do not have could see images")
    assert "given what no server knows: labels" in found.findings[0]
    assert found.example.endswith("given labels")


def test_more_noise_may_leave_too_few_images_to_decide(make_run: MakeRun) -> None:
    runs = [
        make_run("green", z=2.0, gains=NOTHING, ssim=0.1),
        make_run("open", z=3.0, gains=((-9.0, -9.0), (9.0, 9.0))),
    ]
    (change,) = summary(*map(outcome, runs)).changes
    assert "the largest audited noise has no green light: audit more noise, and more images" in change


def test_protections_that_differ_in_their_images_have_other_names(make_run: MakeRun) -> None:
    runs = [make_run(name, data={"root": f"/{name}"}) for name in ("cats", "dogs")]
    titles = [row.title for row in summary(*map(outcome, runs)).rows]
    assert "images of cats" in titles[0]
    assert "images of dogs" in titles[1]


def test_epsilon_is_infinite_without_noise_and_may_be_unknown(make_run: MakeRun) -> None:
    folder = make_run("own", z=0.1)
    record = json.loads((folder / "results.json").read_text())
    record["privacy"] |= {"mechanism": "somebody.Else", "epsilon_accounted": None}
    (folder / "results.json").write_text(json.dumps(record))
    shown = [summary(outcome(one)).rows[0].cells[0] for one in (make_run("none", z=0.0), folder)]
    assert [cell.epsilon for cell in shown if cell] == ["∞", "–"]
