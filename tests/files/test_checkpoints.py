# SPDX-License-Identifier: Apache-2.0
"""A damaged checkpoint is refused in one line before anything is overwritten, with a digest or without."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_recon.cli import main
from lightning_recon.files.checkpoints import DIGEST

Checkpoint = dict[str, Any]


def resumed(tiny: str, root: Path) -> int:
    """Exit status of going on with a run."""
    try:
        main(["fit", "--config", tiny, "--trainer.default_root_dir", str(root), "--ckpt_path", "last"])
    except SystemExit as stop:
        return int(str(stop.code))
    return 0


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def contents(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file() and "tfevents" not in path.name}


DAMAGE: dict[str, Callable[[Checkpoint], object]] = {
    "loops of another type": lambda c: c.update(loops=3),
    "a loop of another type": lambda c: c.update(loops={"fit_loop": 5}),
    "no optimizer states": lambda c: c.pop("optimizer_states"),
    "none in the list": lambda c: c.update(optimizer_states=[]),
    "no version": lambda c: c.pop("pytorch-lightning_version"),
    "a number as version": lambda c: c.update({"pytorch-lightning_version": 5}),
    "an old version": lambda c: c.update({"pytorch-lightning_version": "0.5.0"}),
    "no state": lambda c: c.update(state_dict=None),
    "NaN": lambda c: c["state_dict"].update(dummies=c["state_dict"]["dummies"] * torch.nan),
    "callbacks of another type": lambda c: c.update(callbacks=3),
    "a step of another type": lambda c: c.update(global_step="x"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_misshapen_one_without_a_digest_is_refused(
    name: str, run: Path, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint[DIGEST]
    DAMAGE[name](checkpoint)
    torch.save(checkpoint, path)
    before = contents(run)
    assert resumed(tiny, run) == 2
    assert contents(run) == before
    assert len([line for line in capsys.readouterr().err.splitlines() if line.startswith("recon: error: ")]) == 1


def test_a_flipped_bit_is_noticed(run: Path, tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["dummies"].view(-1).view(torch.int32)[0] ^= 1
    torch.save(checkpoint, path)
    assert resumed(tiny, run) == 2
    assert "it was altered" in capsys.readouterr().err


def test_one_of_an_earlier_version_is_read(run: Path, tiny: str) -> None:
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint[DIGEST]
    torch.save(checkpoint, path)
    assert resumed(tiny, run) == 0
