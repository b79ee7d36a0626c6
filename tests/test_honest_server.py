# SPDX-License-Identifier: Apache-2.0
"""The honest server's attack from the command line: stopped and resumed, scored again, replayed, on two ranks."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lightning_recon.cli import main

Fit = Callable[..., dict[str, Any]]
CONFIG = str(Path(__file__).parent.parent / "configs" / "attack" / "see_through_gradients.yaml")
# A schedule that does not look ahead: with it, four steps begin as two do.
HONEST = ["--config", CONFIG, "--data.clients", "2", "--data.batch_size", "2", "--model.restarts", "2"]
HONEST += ["--model.schedule", "constant"]
NAME = "reconstructions.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, fit: Fit) -> Path:
    """A finished run of four steps: look, do not touch."""
    root = tmp_path_factory.mktemp("honest")
    fit(root, *HONEST, "--trainer.max_steps", "4")
    return root


def test_a_stopped_search_goes_on_and_is_scored_again(
    whole: Path, tiny: str, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, *HONEST, "--trainer.max_steps", "2")
    assert (tmp_path / NAME).read_bytes() != (whole / NAME).read_bytes()
    record = fit(tmp_path, *HONEST, "--trainer.max_steps", "4", "--ckpt_path", "last")
    assert (tmp_path / NAME).read_bytes() == (whole / NAME).read_bytes()
    usual = json.loads((whole / "results.json").read_text())
    assert record["victims"] == usual["victims"]
    assert usual["summary"]["detected"] == 0  # four steps from noise explain less than the public mean image does
    assert 0 <= usual["summary"]["label_accuracy"] <= 1
    assert usual["oracles"] == []
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {key.split(".")[0] for key in state} == {"search"}  # neither client nor network
    arguments = ["--config", tiny, "--trainer.default_root_dir", str(tmp_path), *HONEST]
    main(["test", *arguments])
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["victims"] == usual["victims"]
    assert again["summary"]["label_accuracy"] == usual["summary"]["label_accuracy"]
    main(["predict", *arguments])
    assert len(list((tmp_path / "predictions").iterdir())) == 4
    main(["validate", *arguments])
    assert "0.000 %" in capsys.readouterr().out  # nothing is added to the network


def test_what_is_evident_stays_so_when_it_is_scored_again(tiny: str, fit: Fit, tmp_path: Path) -> None:
    preset, noise = str(Path(CONFIG).with_name("likelihood.yaml")), "--model.client.privacy.noise_multiplier"
    flags = ["--config", preset, "--data.batch_size", "1", noise, "0.0001", "--trainer.max_steps", "6"]
    before = fit(tmp_path, *flags)
    assert before["summary"]["detected"] == 1
    main(["test", "--config", tiny, "--trainer.default_root_dir", str(tmp_path), *flags])
    assert json.loads((tmp_path / "results.json").read_text())["victims"] == before["victims"]


def test_a_schedule_is_not_stretched_by_resuming(fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its first steps were taken with the end in view: a later end would have had others."""
    steps = [*HONEST, "--model.schedule", "steps", "--trainer.max_steps"]
    fit(tmp_path, *steps, "2")
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, *steps, "4", "--ckpt_path", "last")
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("recon: error")]
    assert "laid out for 2 steps by --model.schedule steps, and --trainer.max_steps is 4: set it to 2" in line
    fit(tmp_path, *steps, "2", "--ckpt_path", "last")


def test_a_replay_gives_the_same_images(whole: Path, tmp_path: Path) -> None:
    main(["replay", str(whole), "--output", str(tmp_path)])
    assert (tmp_path / NAME).read_bytes() == (whole / NAME).read_bytes()


def test_nothing_is_kept_that_is_not_to_be(tiny: str, fit: Fit, tmp_path: Path) -> None:
    record = fit(tmp_path, *HONEST, "--model.record", "false", "--model.labels", "oracle", "--trainer.max_steps", "1")
    assert not (tmp_path / "exchange").exists()
    assert record["oracles"] == ["labels"]
    assert record["summary"]["label_accuracy"] == 1


def test_priors_are_a_list_in_yaml(fit: Fit, tmp_path: Path) -> None:
    overlay = tmp_path / "priors.yaml"
    prior = "{class_path: lightning_recon.attack.TotalVariation, init_args: {strength: 0.01}}"
    denoiser = "lightning_recon.attack.SmallDenoiser"
    own = f"{{class_path: lightning_recon.priors.DenoiserPrior, init_args: {{denoiser: {denoiser}}}}}"
    overlay.write_text(f"model:\n  init_args:\n    priors:\n      - {prior}\n      - {own}\n")
    record = fit(tmp_path / "run", *HONEST, "--config", str(overlay), "--trainer.max_steps", "1")
    assert record["summary"]["victims"] == 4


@pytest.mark.slow
def test_two_ranks_are_one(whole: Path, tiny: str, tmp_path: Path) -> None:
    two = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.max_steps", "4"]
    command = [sys.executable, "-m", "lightning_recon", "fit", "--config", tiny, *HONEST, *two]
    done = subprocess.run(
        [*command, "--trainer.default_root_dir", str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not [line for line in done.stderr.splitlines() if "warn" in line.lower()]
    here, there = load_file(whole / NAME), load_file(tmp_path / NAME)
    assert here.keys() == there.keys()
    assert all(torch.allclose(here[key], there[key], atol=1e-5) for key in here)
