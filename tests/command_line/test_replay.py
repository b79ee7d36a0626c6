# SPDX-License-Identifier: Apache-2.0
"""Commands name what they wrote, and a replay is compared with its run."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_recon.command_line.replay import replay, sameness

from .typed import answer


def test_commands_say_what_they_wrote(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    shutil.copytree(finished, run)
    here = ["--trainer.default_root_dir", str(run)]
    before = sorted(run.rglob("*"))
    assert "nothing was attacked" in answer(capsys, "validate", "--config", str(run / "config.yaml"), *here)
    assert sorted(run.rglob("*")) == before
    said = answer(capsys, "predict", "--config", str(run / "config.yaml"), *here)
    assert f"{len(list((run / 'predictions').glob('*.png')))} reconstructions of {run}" in said
    assert str(run / "predictions") in said
    said = answer(capsys, "replay", str(run), "--output", str(again))
    assert f"reconstructions in {again}: equal to those of {run}, bit for bit" in said


def test_replays_that_differ(finished: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    name = "reconstructions.safetensors"
    assert sameness(finished, finished).endswith("bit for bit")
    assert "has none to compare them with" in sameness(tmp_path, finished)
    pictures = load_file(finished / name)
    save_file({key: one * 0.5 for key, one in pictures.items()}, tmp_path / name, {"beliefs": "{}"})
    assert re.search(r"not equal to those of .* pixels differ by up to 0\.\d+ of 1", sameness(finished, tmp_path))
    save_file({key: one[:1] for key, one in pictures.items()}, tmp_path / name)
    assert "others than those of" in sameness(finished, tmp_path)


def test_a_replay_warns_of_local_training_that_the_structure_was_not_designed_for(
    fit: Callable[..., dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    flags = ("--model.structure", "SeedPaper", "--model.client.local.batch_size", "2", "--trainer.max_steps", "0")
    assert set(fit(run, *flags)["mismatch"]) == {"local_training"}
    caplog.clear()
    replay(str(run), str(tmp_path / "again"))
    assert "measures images with the weight that local training moves" in caplog.text
