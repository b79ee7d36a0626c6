# SPDX-License-Identifier: Apache-2.0
"""`comparison.png` has the documented columns, and a second structure takes a release of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lightning_recon.callbacks.figures import Version, caption, comparison_figure
from lightning_recon.client import VictimClient
from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task

Fit = Callable[..., dict[str, Any]]
SEED_PAPER, LINEAR = "lightning_recon.structure.SeedPaper", "lightning_recon.structure.WaterFilling"
OLD_STYLE = ["--trainer.callbacks+", "lightning_recon.callbacks.Comparison", "--trainer.callbacks.title", "second"]


@pytest.mark.parametrize(
    ("flags", "beside", "attack"),
    [
        ([], ["mean image"], "linear code (ours)"),
        (["--comparison.structure", SEED_PAPER], ["seed paper"], "linear code (ours)"),
        ([*OLD_STYLE, "--trainer.callbacks.structure", SEED_PAPER], ["second"], "linear code (ours)"),
        (["--comparison.structure", LINEAR], ["mean image"], "linear code (ours)"),  # the attack itself
        (["--config", "attack/paper.yaml", "--comparison.structure", SEED_PAPER], ["mean image"], "seed paper"),
        (["--config", "attack/robbing_the_fed.yaml"], ["mean image"], "Robbing the Fed"),
        (
            ["--config", "attack/inverting_gradients.yaml", "--comparison.structure", SEED_PAPER],
            ["mean image"],  # an honest server has no structure to compare with
            "Inverting Gradients",
        ),
    ],
    ids=["alone", "second structure", "older config", "the attack itself", "its own run", "a peer", "honest"],
)
def test_columns_are_named_and_threat_models_are_not_mixed(
    fit: Fit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    beside: list[str],
    attack: str,
) -> None:
    drawn: list[list[Version]] = []

    def spied(versions: list[Version], note: str) -> Image.Image:
        drawn.append(versions)
        return comparison_figure(versions, note=note)

    monkeypatch.setattr("lightning_recon.callbacks.comparison.comparison_figure", spied)
    record = fit(tmp_path, *flags, "--trainer.max_steps", "0", "--results.show", "true")
    (versions,) = drawn
    assert [one.name for one in versions] == ["photograph", "what the client used", *beside, attack]
    assert versions[-1].captions == [caption(victim["psnr"], victim["bit_exact"]) for victim in record["victims"]]
    said = " ".join(capsys.readouterr().out.split())
    assert f"first client: {beside[0]} " in said
    assert f", {attack} {record['summary']['psnr_mean']:.1f} dB" in said
    assert f"{attack}: 4 victims" in said
    assert "lightning_recon 1" not in said
    assert (tmp_path / "comparison.png").is_file()


def test_a_second_structure_gets_a_release_of_its_own_as_does_the_attack_under_more_noise(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share, asked = VictimClient.share, []

    def spied(self: VictimClient, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        asked.append((draw, self.privacy.noise_multiplier))
        return share(self, payload, client, draw, round)

    monkeypatch.setattr(VictimClient, "share", spied)
    second = ["--comparison.structure", SEED_PAPER, "--comparison.noise_factor", "5"]
    fit(tmp_path, "--trainer.max_steps", "1", "--model.draws", "2", *second)
    assert asked == [(0, 0.01), (1, 0.01), (2, 0.01), (3, 0.05)]  # draws of neither the run nor each other
    assert len(list((tmp_path / "exchange").glob("update-*.json"))) == 2


def test_a_second_structure_that_cannot_be_shipped_costs_the_run_nothing(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(self: object, task: Task) -> ServerPayload:
        raise UserError("too small")

    monkeypatch.setattr("lightning_recon.structure.SeedPaper.payload", refused)
    record = fit(tmp_path, "--trainer.max_steps", "0", "--comparison.structure", SEED_PAPER)
    assert record["summary"]["victims"] == 4
    assert "no comparison with seed paper: too small" in capsys.readouterr().out
    assert (tmp_path / "comparison.png").is_file()


def test_no_victims_no_comparison(fit: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    fit(tmp_path, "--comparison.victims", "0")
    assert not (tmp_path / "comparison.png").exists()
