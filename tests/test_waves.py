# SPDX-License-Identifier: Apache-2.0
"""Clients in waves: the same results as all at once, over interruptions and on two ranks, in the memory of one wave."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_recon.audit.run import read_outcome
from lightning_recon.callbacks import ImageGrid
from lightning_recon.cli import main
from lightning_recon.command_line import wave_sizes, waves
from lightning_recon.data import ClientDataModule
from lightning_recon.errors import UserError

Fit = Callable[..., dict[str, Any]]
SEEDED = ["--model.client.noise_seed", "3"]

OF_ALL_IMAGES = {
    *("noise_law_psnr_p95", "noise_law_psnr_5_percent"),
    *("gaussian_reference_psnr", "gaussian_reference_low", "gaussian_reference_high"),
}

KILLED_IN_THE_SECOND_WAVE = """
import os, signal, sys
from lightning_recon.callbacks import ImageGrid
from lightning_recon.cli import main

def kill(self, trainer, *args):
    if trainer.default_root_dir.endswith("00001") and trainer.global_step == 2:
        os.kill(os.getpid(), signal.SIGKILL)

ImageGrid.on_train_batch_end = kill
main(sys.argv[1:])
"""


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Every victim's scores are equal bit for bit, and all statistics up to rounding."""

    def scores(record: dict[str, Any]) -> dict[object, Any]:
        return {(v["client"], v["index"], v["draw"]): v | {"image": ""} for v in record["victims"]}

    assert scores(one) == scores(other)
    for part in ("summary", "bounds", "baselines"):
        for name, value in one[part].items():
            if name in OF_ALL_IMAGES or name in ("seconds", "steps_per_second"):
                continue
            close = other[part][name] == value or other[part][name] == pytest.approx(value, rel=1e-9)
            assert close, (name, value, other[part][name])
    for name in ("attack", "seed", "privacy", "oracles", "participation", "mismatch", "skipped_pictures"):
        assert one[name] == other[name], name


ATTACKS = {
    "linear": ["--data.batch_size", "2", "--model.draws", "2"],
    "digital, sums of two clients": [
        *("--config", "attack/digital.yaml", "--data.batch_size", "1", "--model.client.aggregated", "2"),
        *("--data.clients", "8", "--data.clients_at_once", "4", "--model.client.privacy.noise_multiplier", "0.001"),
    ],
    "feedback, shuffled batches": [
        *("--config", "attack/feedback.yaml", "--data.batch_size", "2", "--data.local_images", "4"),
        *("--model.client.sampling", "shuffle", "--model.client.privacy.rounds", "4", "--data.clients", "3"),
        *("--data.clients_at_once", "2", "--trainer.max_steps", "0", "--model.client.privacy.granularity", "sample"),
    ],
    "gradient inversion": [
        *("--config", "attack/inverting_gradients.yaml", "--data.batch_size", "1", "--model.restarts", "2"),
        *("--trainer.max_steps", "2"),
    ],
    "unequal clients": ["--data.batch_size", "2", "--data.actual_batch_sizes", "[1, 2, 1, 3, 2]"],
}


# One of them by default.
CASES = [
    pytest.param(flags, id=name, marks=() if name.startswith("digital") else pytest.mark.slow)
    for name, flags in ATTACKS.items()
]


@pytest.mark.parametrize("flags", CASES)
def test_results_do_not_depend_on_the_waves(flags: list[str], tmp_path: Path, fit: Fit) -> None:
    flags = ["--data.clients", "5", "--data.clients_at_once", "2", *SEEDED, *flags]
    whole = fit(tmp_path / "whole", *flags, "--data.clients_at_once", "9")
    assert not (tmp_path / "whole" / "waves").exists()
    same(whole, fit(tmp_path / "waves", *flags))


@pytest.fixture(scope="module")
def flags() -> list[str]:
    return [*SEEDED, "--data.batch_size", "1", "--data.clients", "5", "--data.clients_at_once", "2"]


@pytest.fixture(scope="module")
def run(flags: list[str], fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in three waves: look, do not touch."""
    root = tmp_path_factory.mktemp("waves") / "run"
    fit(root, *flags)
    return root


def test_what_a_run_in_waves_leaves(run: Path) -> None:
    with (run / "waves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["first_client"], row["clients"]) for row in rows] == [("0", "2"), ("2", "2"), ("4", "1")]
    record = json.loads((run / "results.json").read_text())
    assert all((run / victim["image"]).is_file() for victim in record["victims"])
    # Only the first wave has what takes space: the exchange, and the events that people look at.
    for name in ("exchange", "hparams.yaml"):
        assert [(run / "waves" / number / name).exists() for number in ("00000", "00001", "00002")] == [True] + [
            False
        ] * 2
    events = EventAccumulator(str(run / "running"))
    events.Reload()
    assert [event.step for event in events.Scalars("running_psnr")] == [2, 4, 5]
    assert events.Scalars("running_psnr")[-1].value == pytest.approx(record["summary"]["psnr_mean"])
    outcome = read_outcome(run)
    assert outcome is not None
    assert len(outcome.by_image(gain=True)) == 5  # a report reads it like any other run


def test_a_wave_is_repeated_by_its_own_config(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    main(["fit", "--config", str(run / "waves/00001/config.yaml"), "--trainer.default_root_dir", str(again)])
    one, other = (json.loads((root / "results.json").read_text()) for root in (run / "waves/00001", again))
    assert one["victims"] == other["victims"]


@pytest.mark.parametrize("command", ["test", "predict", "replay"])
def test_what_of_a_run_in_waves_can_be_repeated_is_said(
    command: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, says in (
        (run, f"name that of the first wave, {run / 'waves' / '00000'}"),
        (run / "waves" / "00001", "is a wave without a recorded exchange: name the first wave"),
    ):
        given = ["--config", str(folder / "config.yaml")]
        given = [str(folder), "--output", str(tmp_path / "again")] if command == "replay" else given
        with pytest.raises(SystemExit) as stopped:
            main([command, *given])
        assert stopped.value.code == 2
        told = capsys.readouterr().err
        assert says in told
        assert "--model.record is a number of clients" in told


def test_an_interrupted_run_goes_on_with_its_wave(
    run: Path,
    flags: list[str],
    tmp_path: Path,
    fit: Fit,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, attacked = tmp_path / "stopped", []

    def stop(self: ImageGrid, trainer: Any, *arguments: object) -> None:  # noqa: ANN401
        attacked.append(trainer.default_root_dir[-5:])
        if attacked[-1] == "00001":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ImageGrid, "on_train_batch_end", stop)
        with pytest.raises(SystemExit) as stopped:
            fit(root, *flags)
    assert stopped.value.code == 130
    told = capsys.readouterr().err
    assert "stopped in wave 2 of 3: the same command with --ckpt_path last resumes with it" in told
    assert "--overwrite" not in told
    assert not (root / "results.json").exists()
    # Not by mistake over what is there, nor with other options.
    for further, message in (
        ([], "already holds a run"),
        (["--ckpt_path", "last", "--model.draws", "2"], "--model is"),
    ):
        with pytest.raises(SystemExit) as refused:
            fit(root, *flags, *further)
        assert refused.value.code == 2, message
    first = (root / "waves/00000/results.json").read_bytes()
    record = fit(root, *flags, "--ckpt_path", "last", "--data.clients_at_once", "9")  # the folder decides
    assert (root / "waves/00000/results.json").read_bytes() == first
    assert attacked == ["00000"] * 4 + ["00001"]
    same(json.loads((run / "results.json").read_text()), record)


def test_a_replaced_run_leaves_no_wave(tmp_path: Path, fit: Fit) -> None:
    few = [*SEEDED, "--data.batch_size", "1", "--trainer.max_steps", "0"]
    fit(tmp_path / "run", *few, "--data.clients", "4", "--data.clients_at_once", "1")
    fit(tmp_path / "run", *few, "--data.clients", "2", "--data.clients_at_once", "1", "--overwrite")
    assert sorted(path.name for path in (tmp_path / "run" / "waves").iterdir()) == ["00000", "00001"]
    fit(tmp_path / "run", *few, "--overwrite")
    assert not list((tmp_path / "run").glob("waves*/*"))


def test_too_few_images_are_found_before_the_first_wave(
    tmp_path: Path, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [*SEEDED, "--data.batch_size", "1", "--trainer.max_steps", "0", "--data.clients_at_once", "2"]
    fit(tmp_path / "run", *few, "--data.clients", "3")
    for further in (["--data.clients", "17"], ["--data.clients", "3", "--data.root", str(tmp_path / "typo")]):
        with pytest.raises(SystemExit) as stop:
            fit(tmp_path / "run", *few, *further, "--overwrite")
        assert stop.value.code == 2
    assert "17 are needed" in " ".join(capsys.readouterr().err.split())
    assert len(list((tmp_path / "run").glob("waves/*/results.json"))) == 2  # the run is still there
    assert len(fit(tmp_path / "run", *few, "--data.clients", "2", "--ckpt_path", "last")["victims"]) == 2


def test_a_run_that_was_not_in_waves_is_resumed_as_it_was(
    tmp_path: Path, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*SEEDED, "--data.batch_size", "1", "--data.clients", "3", "--trainer.max_steps", "2"]
    fit(tmp_path / "run", *flags)
    monkeypatch.setattr(wave_sizes, "memory", lambda: 1)
    fit(tmp_path / "run", *flags[:-1], "4", "--ckpt_path", "last")
    assert not (tmp_path / "run" / "waves").exists()


def test_unreadable_images_do_not_shift_the_waves(tmp_path: Path, fit: Fit) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for number in range(12):
        Image.new("RGB", (24, 24), (20 * number, 90, 40)).save(photographs / f"{number:02d}.png")
    for number in (1, 4, 7):
        (photographs / f"{number:02d}.png").write_bytes(b"no image")
    flags = [*SEEDED, "--data.root", str(photographs), "--data.batch_size", "2", "--data.clients", "4"]
    flags += ["--trainer.max_steps", "0"]
    whole, parts = fit(tmp_path / "a", *flags), fit(tmp_path / "b", *flags, "--data.clients_at_once", "1")
    same(whole, parts)
    assert parts["skipped_pictures"]


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (["--model.client.participation", "0.5"], "answer on the images of others, which may be in another wave"),
        (["--model.client.aggregated", "3", "--data.clients", "6"], "give a multiple of 3"),
    ],
)
def test_clients_that_must_meet(
    further: list[str], message: str, flags: list[str], tmp_path: Path, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path / "run", *flags, *further)
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_memory_sets_the_number_of_clients_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wave_sizes, "memory", lambda: 10_000_000)
    data = ClientDataModule(image_size=32, batch_size=2, clients=100)
    # 2 images of 3 * 32 * 32 values, 100 bytes each, in half of the memory.
    assert wave_sizes.clients_at_once(data, object(), draws=1) == 8
    assert wave_sizes.clients_at_once(data, object(), draws=4) == 2
    assert wave_sizes.clients_at_once(data, object(), draws=1, ranks=2) == 4
    assert wave_sizes.clients_at_once(data, object(), draws=1, nodes=2) == 100  # whose memory may differ
    data.clients = 8
    assert wave_sizes.clients_at_once(data, object(), draws=1) == 8
    assert [wave.clients for wave in wave_sizes.waves_of(8, 3)] == [3, 3, 2]


def test_a_wave_of_other_clients_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "waves" / "00000").mkdir(parents=True)
    (tmp_path / "waves" / "00000" / "wave.json").write_bytes((run / "waves/00001/wave.json").read_bytes())
    config = {"trainer": {"default_root_dir": str(tmp_path)}, "data": {"init_args": {"clients": 4, "first_image": 0}}}
    with pytest.raises(UserError, match="holds other clients"):
        waves.fit_in_waves(config, 2, lambda config: ClientDataModule(), main_process=True, show=False)


@pytest.mark.slow
def test_two_ranks_killed_and_started_again(run: Path, flags: list[str], tiny: str, tmp_path: Path) -> None:
    """What a cluster does to a job: a rank is killed in the second wave, and the job is put back into the queue."""
    root = tmp_path / "run"
    ranks = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.default_root_dir", str(root)]
    arguments = ["fit", "--config", tiny, *flags, *ranks]
    script = tmp_path / "killed.py"
    script.write_text(KILLED_IN_THE_SECOND_WAVE)
    killed = subprocess.run([sys.executable, str(script), *arguments], timeout=200)
    assert killed.returncode == -signal.SIGKILL
    assert [path.parent.name for path in sorted(root.glob("waves/*/wave.json"))] == ["00000"]
    again = [sys.executable, "-m", "lightning_recon", *arguments, "--ckpt_path", "last"]
    done = subprocess.run(again, capture_output=True, text=True, timeout=200, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-2000:]
    one, other = (json.loads((place / "results.json").read_text()) for place in (run, root))
    for mine, theirs in zip(one["victims"], other["victims"], strict=True):
        assert (mine["client"], mine["index"]) == (theirs["client"], theirs["index"])
        assert mine["psnr"] == pytest.approx(theirs["psnr"], abs=1e-3)
