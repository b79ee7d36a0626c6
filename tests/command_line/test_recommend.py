# SPDX-License-Identifier: Apache-2.0
"""`recon recommend`: the noise for a risk on the terminal, and mistakes in one line."""

import re

import pytest

from lightning_recon.cli import main


def said(capsys: pytest.CaptureFixture[str], *typed: str) -> str:
    main(["recommend", *typed])
    return " ".join(capsys.readouterr().out.split())


def test_the_recommended_noise_has_the_risk_that_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "--risk", "advantage=0.1", "tpr@0.01=0.05", "--rounds", "20", "--max_grad_norm", "0.5")
    found = re.search(r"z = ([\d.]+), gaussian noise of standard deviation ([\d.]+)", text)
    assert found is not None
    z, std = map(float, found.groups())
    assert std == pytest.approx(z / 2, rel=1e-4)
    assert text.index("all 20 rounds together") < text.index("one round")
    again = said(capsys, "--noise_multiplier", str(z), "--rounds", "20")
    assert re.search(r"membership advantage │ 10 % │ 2.24 %", again)


def test_adjacency_and_mechanism_matter(capsys: pytest.CaptureFixture[str]) -> None:
    assert "z = 3.97895," in said(capsys, "--risk", "advantage=0.1")
    assert "z = 7.9579," in said(capsys, "--risk", "advantage=0.1", "--adjacency", "replace_one")
    text = said(capsys, "--noise_multiplier", "1", "--mechanism", "laplace")
    assert "μ (Gaussian differential privacy) │ – │" in text


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--risk", "advantage"], "--risk advantage is no limit"),
        ([], "either --risk"),
        (["--risk", "mu=1", "--noise_multiplier", "1"], "either --risk"),
        (["--noise_multiplier", "0"], "--noise_multiplier is 0"),
        (["--risk", "mu=1", "--rounds", "0"], "--rounds is 0"),
        (["--risk", "mu=1", "--mechanism", "laplace"], "mu is not known"),
        (["--risk", "mu=1", "--mechanism", "exponential"], "unknown mechanism"),
        (["--risk", "mu=1", "--runds", "3"], "did you mean --rounds"),
    ],
)
def test_mistakes_are_one_line(typed: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["recommend", *typed])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
