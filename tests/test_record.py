# SPDX-License-Identifier: Apache-2.0
"""How much of the exchange a run records: what the attack reads, with hashes of the rest, some clients, or nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lightning_recon.attack.recording import (
    Record,
    check_resumable,
    recorded_client,
    recorded_task,
    recorded_updates,
)
from lightning_recon.cli import main
from lightning_recon.command_line.waves import config_of, waves_of
from lightning_recon.errors import UserError
from lightning_recon.exchange import Task

Fit = Callable[..., dict[str, Any]]
FEW = (
    *("--model.client.noise_seed", "3", "--data.batch_size", "1", "--data.clients", "3"),
    *("--model.client.privacy.rounds", "2", "--trainer.max_steps", "1"),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, fit: Fit) -> dict[str, Path]:
    """A run for each value of the option: look, do not touch."""
    root = tmp_path_factory.mktemp("record")
    for name, further in (("default", ()), ("true", ("--model.record", "true")), ("two", ("--model.record", "2"))):
        fit(root / name, *FEW, *further)
    return {path.name: path for path in root.iterdir()}


def updates(run: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((run / "exchange").glob("update-*.json"))}


def test_results_do_not_depend_on_what_is_recorded(runs: dict[str, Path]) -> None:
    images = load_file(runs["default"] / "reconstructions.safetensors")
    victims = json.loads((runs["default"] / "results.json").read_text())["victims"]
    for run in runs.values():
        again = load_file(run / "reconstructions.safetensors")
        assert all(torch.equal(again[name], one) for name, one in images.items())
        assert json.loads((run / "results.json").read_text())["victims"] == victims


def test_what_is_recorded(runs: dict[str, Path]) -> None:
    whole, rows = updates(runs["true"]), updates(runs["default"])
    assert len(whole) == 6
    for name, record in rows.items():
        assert record["tensors"] == whole[name]["tensors"]
        assert record["whole"] == whole[name]["whole"]
        assert {key: one["shape"] for key, one in record["omitted"].items()} == {
            key: one["shape"] for key, one in whole[name]["omitted"].items()
        }
        assert {one["sha256"] for one in record["omitted"].values()} == {""}
        assert {len(one["sha256"]) for one in whole[name]["omitted"].values()} == {64}
        tensors = Path("exchange", f"{name}.safetensors")
        assert (runs["default"] / tensors).read_bytes() == (runs["true"] / tensors).read_bytes()
    assert updates(runs["two"]) == {name: one for name, one in rows.items() if not name.startswith("update-c002")}


def test_recorded_clients_are_replayed(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["replay", str(runs["two"]), "--output", str(tmp_path / "again")])
    said = " ".join(capsys.readouterr().out.split())
    assert "bit for bit; 1 update was not recorded" in said
    assert Task.load(runs["two"] / "exchange").clients == 2


def test_an_incomplete_recording_is_not_resumed(
    runs: dict[str, Path], tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--config", tiny, "--trainer.default_root_dir", str(runs["two"]), *FEW, "--model.record", "2"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--ckpt_path", "last"])
    assert stop.value.code == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "if that has --model.record 2, begin again: later clients are not recorded" in told
    assert (runs["two"] / "results.json").exists()


def test_a_run_without_a_recording_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="recorded nothing"):
        check_resumable({"exchange": "", "global_step": 1}, tmp_path, 2)


@pytest.mark.parametrize(
    ("folder", "of_a_run", "said"),
    [
        ("00001", True, "is a wave without a recorded exchange"),
        ("00001", False, "no recorded exchange in"),
        ("mine", True, "no recorded exchange in"),
    ],
)
def test_a_wave_is_a_numbered_folder_of_a_run(folder: str, of_a_run: bool, said: str, tmp_path: Path) -> None:
    (tmp_path / "waves" / folder).mkdir(parents=True)
    if of_a_run:
        (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match=said):
        recorded_client(tmp_path / "waves" / folder / "exchange")


@pytest.mark.parametrize(
    ("record", "waves"),
    [("rows", ["rows", False, False]), (True, [True, False, False]), (False, [False] * 3), (3, [2, 1, False])],
)
def test_a_number_counts_the_clients_of_all_waves(record: Record, waves: list[Record], tmp_path: Path) -> None:
    data = {"first_client": 0, "clients": 6, "clients_at_once": 2, "actual_batch_sizes": None}
    config = {
        "model": {"init_args": {"record": record}},
        "data": {"init_args": data},
        "trainer": {"default_root_dir": str(tmp_path)},
        "results": {},
    }
    found = [config_of(config, wave, 0)["model"]["init_args"]["record"] for wave in waves_of(6, 2)]
    assert found == waves
    assert list(map(type, found)) == list(map(type, waves))


def test_sums_are_recorded_whole(a_task: Task) -> None:
    for record, updates_ in ((True, 3), ("rows", 3), (False, 0), (1, 1), (4, 1), (5, 2), (100, 3)):
        assert recorded_updates(record, a_task) == updates_  # type: ignore[arg-type]
    assert recorded_task(5, a_task).clients == 8


@pytest.fixture
def a_task() -> Task:
    """Three sums of four clients."""
    return Task((3, 8, 8), 10, 1, 12, "convnet", "update", False, 1.0, 0.1, 1, 4, aggregated=4)


@pytest.mark.parametrize("value", ["0", "-1", "all", "1.5"])
def test_other_values_are_refused(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", tiny, "--trainer.default_root_dir", str(tmp_path), f"--model.record={value}"])
    assert stop.value.code == 2
    assert "--model.record" in capsys.readouterr().err
