# SPDX-License-Identifier: Apache-2.0
"""Stopping changes nothing: a resumed run, even a killed one, ends bit for bit where an uninterrupted one does."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_recon.cli import main
from lightning_recon.client import VictimClient
from lightning_recon.exchange import ClientUpdate, ServerPayload
from lightning_recon.files.checkpoints import DIGEST, content_digest

Fit = Callable[..., dict[str, Any]]

KILLED_AT_STEP_25 = """
import os, signal, sys
from lightning_recon.callbacks import ImageGrid
from lightning_recon.cli import main

def kill(self, trainer, *args):
    if trainer.global_step == 25:
        os.kill(os.getpid(), signal.SIGKILL)

ImageGrid.on_train_batch_end = kill
main(sys.argv[1:])
"""

KILLED_WHILE_WRITING_RESULTS = """
import os, signal, sys
from lightning_recon.cli import main
rename = os.replace

def kill(source, target):
    if str(target).endswith("results.json"):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)

os.replace = kill
main(sys.argv[1:])
"""


def pictures(root: Path) -> bytes:
    return (root / "reconstructions.safetensors").read_bytes()


def recording(root: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (root / "exchange").iterdir()}


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory, fit: Fit) -> Path:
    """A run of six steps at one go, of two clients and two draws."""
    root = tmp_path_factory.mktemp("six")
    fit(root, "--data.clients", "2", "--model.draws", "2", "--trainer.max_steps", "6")
    return root


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, fit: Fit) -> Path:
    """The same, stopped after three steps."""
    root = tmp_path_factory.mktemp("three")
    fit(root, "--data.clients", "2", "--model.draws", "2", "--trainer.max_steps", "3")
    return root


def test_three_steps_and_three_are_six(six: Path, three: Path, tmp_path: Path, fit: Fit) -> None:
    root = tmp_path / "run"
    shutil.copytree(three, root)
    flags = ["--data.clients", "2", "--model.draws", "2", "--trainer.max_steps", "6", "--ckpt_path", "last"]
    record = fit(root, *flags)
    assert pictures(root) == pictures(six) != pictures(three)
    assert record["summary"]["steps"] == 6
    assert record["victims"] == json.loads((six / "results.json").read_text())["victims"]


def test_a_checkpoint_may_be_named_by_its_path(six: Path, three: Path, tmp_path: Path, fit: Fit) -> None:
    root = tmp_path / "run"
    shutil.copytree(three, root)
    flags = ["--data.clients", "2", "--model.draws", "2", "--trainer.max_steps", "6"]
    fit(root, *flags, "--ckpt_path", str(root / "checkpoints" / "last.ckpt"))
    assert pictures(root) == pictures(six)


def test_a_resumed_run_asks_no_client_again(
    six: Path, three: Path, tmp_path: Path, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        raise AssertionError("the client was asked again: its noise would be drawn anew")

    root = tmp_path / "run"
    shutil.copytree(three, root)
    monkeypatch.setattr(VictimClient, "share", refuse)
    flags = ["--data.clients", "2", "--model.draws", "2", "--trainer.max_steps", "6", "--ckpt_path", "last"]
    fit(root, *flags)
    assert pictures(root) == pictures(six)
    assert recording(root) == recording(three)


@pytest.mark.parametrize(
    ("changed", "named"),
    [(["--model.client.seed", "99"], r"client\.seed is 99.* had 0"), (["--data.seed", "99"], "clients' pictures")],
    ids=["noise", "pictures"],
)
def test_a_run_is_not_resumed_as_another(
    three: Path, tmp_path: Path, tiny: str, capsys: pytest.CaptureFixture[str], changed: list[str], named: str
) -> None:
    root = tmp_path / "run"
    shutil.copytree(three, root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    flags = ["--data.clients", "2", "--model.draws", "2", "--trainer.max_steps", "6", "--ckpt_path", "last"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", tiny, "--trainer.default_root_dir", str(root), *flags, *changed])
    assert stop.value.code == 2
    assert re.search(named, capsys.readouterr().err)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_the_seconds_of_all_parts_count(three: Path, tmp_path: Path, fit: Fit) -> None:
    root = tmp_path / "run"
    shutil.copytree(three, root)
    path = root / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    counted = checkpoint["callbacks"]["ResultsWriter"]["seconds"]
    assert 0 < counted <= json.loads((three / "results.json").read_text())["summary"]["seconds"]
    checkpoint["callbacks"]["ResultsWriter"]["seconds"] = 1000.0  # as if the first part had taken so long
    torch.save(checkpoint | {DIGEST: content_digest(checkpoint)}, path)
    flags = ["--data.clients", "2", "--model.draws", "2", "--trainer.max_steps", "6", "--ckpt_path", "last"]
    summary = fit(root, *flags)["summary"]
    assert 1000 < summary["seconds"] < 1100
    assert summary["steps_per_second"] == pytest.approx(6 / summary["seconds"])


def test_scoring_again_keeps_the_seed_of_the_run(three: Path, tmp_path: Path, tiny: str) -> None:
    root = tmp_path / "run"
    shutil.copytree(three, root)
    flags = ["--data.clients", "2", "--model.draws", "2", "--model.client.seed", "99"]
    main(["test", "--config", tiny, "--trainer.default_root_dir", str(root), *flags])
    assert json.loads((root / "results.json").read_text())["seed"] == 0


def test_another_seed_is_other_noise(three: Path, tmp_path: Path, fit: Fit) -> None:
    # Otherwise the test above would show nothing.
    flags = ["--data.clients", "2", "--model.draws", "2", "--trainer.max_steps", "3", "--model.client.seed", "99"]
    fit(tmp_path, *flags)
    assert pictures(tmp_path) != pictures(three)


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint(tiny: str, tmp_path: Path, fit: Fit) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = ["--trainer.max_steps", "30"]
    arguments = ["fit", "--config", tiny, *flags, "--trainer.default_root_dir", str(killed)]
    command = [sys.executable, "-c", KILLED_AT_STEP_25, *arguments]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == -signal.SIGKILL
    assert torch.load(killed / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 20
    assert not (killed / "results.json").exists()
    fit(killed, *flags, "--ckpt_path", "last")
    fit(whole, *flags)
    assert pictures(killed) == pictures(whole)


@pytest.mark.slow
def test_results_are_there_whole_or_not_at_all(tiny: str, finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(finished, root)
    arguments = ["test", "--config", tiny, "--trainer.default_root_dir", str(root)]
    command = [sys.executable, "-c", KILLED_WHILE_WRITING_RESULTS, *arguments]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == -signal.SIGKILL
    assert (root / "results.json").read_bytes() == (finished / "results.json").read_bytes()


def test_a_checkpoint_of_another_exchange_is_refused(
    three: Path, tmp_path: Path, fit: Fit, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, "--data.clients", "2", "--model.draws", "2", "--model.client.seed", "99")
    before = pictures(tmp_path)
    foreign = ["--ckpt_path", str(three / "checkpoints" / "last.ckpt"), "--data.clients", "2", "--model.draws", "2"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", tiny, "--trainer.default_root_dir", str(tmp_path), *foreign])
    assert stop.value.code == 2
    assert "does not belong to" in capsys.readouterr().err
    assert pictures(tmp_path) == before
