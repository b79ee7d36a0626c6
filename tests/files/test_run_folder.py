# SPDX-License-Identifier: Apache-2.0
"""A run folder belongs to one run; stopping it, a full disk, and odd Trainer options cost one line and nothing else."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_recon.attack import ReconstructionAttack
from lightning_recon.callbacks import ImageGrid
from lightning_recon.cli import main
from lightning_recon.files import atomic
from lightning_recon.files.locking import claimed, take
from lightning_recon.files.run_folder import LOCK, RunFolder, files_of_run
from lightning_recon.interrupts import Terminated

Fit = Callable[..., dict[str, Any]]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, with a file of the user's own beside it."""
    root = tmp_path / "run"
    shutil.copytree(finished, root)
    (root / "notes.txt").write_text("mine")
    (root / "images" / "mine.txt").write_text("mine")
    return root


@pytest.fixture
def refused(tiny: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(root: Path, *flags: str, command: str = "fit", status: int = 2) -> str:
        """Run a command that must end with a status, and in one line."""
        with pytest.raises(SystemExit) as stop:
            main([command, "--config", tiny, "--trainer.default_root_dir", str(root), *flags])
        assert stop.value.code == status
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return call


def test_a_second_run_needs_to_be_told_what_to_do(run: Path, refused: Callable[..., str]) -> None:
    before = contents(run)
    line = refused(run)
    assert all(choice in line for choice in ("--trainer.default_root_dir", "--ckpt_path last", "--overwrite"))
    assert "--overwrite" in refused(run, "--overwrite", "--ckpt_path", "last")
    (run / "checkpoints" / "last.ckpt").unlink()
    assert "--ckpt_path" not in refused(run)
    del before["checkpoints/last.ckpt"]
    assert contents(run) == before


@pytest.mark.parametrize("trace", ["results.json", "exchange/task.json", "checkpoints/x.ckpt", "events.out.tfevents.1"])
def test_a_stopped_run_counts_too(tmp_path: Path, refused: Callable[..., str], trace: str) -> None:
    (tmp_path / trace).parent.mkdir(exist_ok=True)
    (tmp_path / trace).write_text("")
    assert "already holds a run" in refused(tmp_path)


def test_a_replaced_run_leaves_nothing_behind(run: Path, fit: Fit, tmp_path: Path) -> None:
    old = files_of_run(run)
    (run / "comparison.png").write_bytes(b"old")
    (run / "images" / "099.png").write_bytes(b"old")
    config = tmp_path / "overwrite.yaml"
    config.write_text("overwrite: true\n")  # as in a config of one's own
    fit(run, "--config", str(config), "--trainer.max_steps", "0")
    fresh = tmp_path / "fresh"
    fit(fresh, "--trainer.max_steps", "0")

    def names(root: Path) -> set[str]:
        kept = {str(path.relative_to(root)) for path in files_of_run(root)}
        return {"events" if "tfevents" in name else name for name in kept}

    assert names(run) == names(fresh)
    assert len(list(run.glob("events*"))) == 1
    assert not {path for path in old if "tfevents" in path.name and path.exists()}
    assert {path.name for path in run.rglob("*.txt")} == {"notes.txt", "mine.txt"}
    assert yaml.safe_load((run / "config.yaml").read_text())["overwrite"] is False


def test_a_run_that_fails_in_its_set_up_replaces_nothing(run: Path, refused: Callable[..., str]) -> None:
    before = contents(run)
    refused(run, "--overwrite", "--model.structure.head_weights", "fixed", "--model.client.aggregated", "3")
    assert {name: found for name, found in contents(run).items() if name != LOCK} == {
        name: found for name, found in before.items() if name != LOCK
    }


def test_training_a_target_has_a_folder_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--data.image_size", "16", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu"]
    command = ["fit", "--config", "target.yaml", *small, "--trainer.default_root_dir", str(tmp_path)]
    main(command)
    with pytest.raises(SystemExit):
        main(command)
    assert "already holds a run" in capsys.readouterr().err
    main([*command, "--overwrite"])
    assert len(list(tmp_path.glob("events*"))) == 1


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_two_at_once_do_not_share_a_folder(run: Path, refused: Callable[..., str], command: str) -> None:
    before = contents(run)
    with claimed(run / LOCK) as mine:
        assert mine
        flags = ["--overwrite"] if command == "fit" else []
        assert "another process is writing" in refused(run, *flags, command=command)
    assert contents(run) == before


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    code = "import pathlib, sys, time; from lightning_recon.files.locking import take; "
    code += "lock = take(pathlib.Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(tmp_path / LOCK)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert take(tmp_path / LOCK) is None
        holder.kill()
        holder.wait()
    lock = take(tmp_path / LOCK)
    assert lock is not None
    lock.release()


def test_other_ranks_leave_the_folder_to_the_first(run: Path) -> None:
    before = contents(run)
    other = RunFolder(run, overwrite=True, checkpoint=None)
    other._writes = False
    with claimed(run / LOCK), other:
        other.begin()
    assert contents(run) == before


def test_looking_at_a_run_writes_no_events_and_no_config(run: Path, tiny: str, tmp_path: Path) -> None:
    before = contents(run)
    for command in ("test", "predict", "validate"):
        main([command, "--config", tiny, "--trainer.default_root_dir", str(run)])
    changed = {name for name, found in contents(run).items() if before.get(name) != found}
    assert {name for name in changed if not name.startswith(("predictions/", "images/"))} <= {"results.json", LOCK}
    main(["validate", "--config", tiny, "--trainer.default_root_dir", str(tmp_path / "nothing")])
    assert not (tmp_path / "nothing").exists()


def test_a_replay_keeps_to_a_folder_of_its_own(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "again"
    main(["replay", str(run), "--output", str(output)])
    for target, says in ((output, "already holds a run"), (run, "the run itself")):
        with pytest.raises(SystemExit) as stop:
            main(["replay", str(run), "--output", str(target)])
        assert stop.value.code == 2
        assert says in capsys.readouterr().err
    main(["replay", str(run), "--output", str(output), "--overwrite"])
    name = "reconstructions.safetensors"
    assert (output / name).read_bytes() == (run / name).read_bytes()


# --- stopped ---


@pytest.mark.parametrize(
    ("sign", "step", "says"),
    [(signal.SIGINT, 22, "--ckpt_path last"), (signal.SIGTERM, 2, "--overwrite")],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_stopped_run_says_how_to_go_on(
    tmp_path: Path,
    refused: Callable[..., str],
    fit: Fit,
    monkeypatch: pytest.MonkeyPatch,
    sign: signal.Signals,
    step: int,
    says: str,
) -> None:
    def stop(self: ImageGrid, trainer: Any, *arguments: object) -> None:  # noqa: ANN401
        if trainer.global_step == step:
            os.kill(os.getpid(), sign)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(ImageGrid, "on_train_batch_end", stop)
        line = refused(tmp_path, "--trainer.max_steps", "24", status=128 + sign)
    assert line.startswith(f"recon: stopped at step {step}")
    assert says in line
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert fit(tmp_path, "--trainer.max_steps", "24", *says.split())["summary"]["steps"] == 24


def test_a_run_stopped_in_its_set_up_leaves_no_trace(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> None:
        raise Terminated

    monkeypatch.setattr(ReconstructionAttack, "observe", stop)
    assert "before the first step" in refused(tmp_path, status=143)
    assert {path.name for path in tmp_path.iterdir()} <= {LOCK}


def test_a_resumed_run_is_not_cut_short(run: Path, refused: Callable[..., str]) -> None:
    assert "4 steps already" in refused(run, "--ckpt_path", "last", "--trainer.max_steps", "2")


def test_the_bar_of_a_resumed_run_counts_all_steps(run: Path, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    bar = ("--trainer.callbacks", "lightning_recon.callbacks.progress.StepBar")
    fit(run, "--ckpt_path", "last", "--trainer.max_steps", "7", *bar)
    assert "7/7" in capsys.readouterr().out


# --- a full disk ---


@pytest.mark.parametrize("name", ["last.ckpt", "config.yaml", "task.json", "reconstructions.safetensors", "000.png"])
def test_a_full_disk_costs_one_line(
    run: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rename = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == name:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(atomic.os, "replace", full)
    line = (
        refused(run, "--ckpt_path", "last", "--trainer.max_steps", "21")
        if name != "task.json"
        else refused(run, "--overwrite")
    )
    assert "No space left on device" in line
    monkeypatch.undo()
    for path in run.rglob("*.ckpt"):
        torch.load(path, weights_only=True)
    for path in run.rglob("*.json"):
        json.loads(path.read_text())
    assert not [path for path in run.rglob(".*") if path.is_file() and path.name != LOCK]
