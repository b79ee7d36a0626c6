# SPDX-License-Identifier: Apache-2.0
"""Ranks share the clients and change nothing: two gloo processes come to what one comes to."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_recon.cli import main
from lightning_recon.client.noise_key import NoiseKey
from lightning_recon.command_line.lightning_cli import LAST

Fit = Callable[..., dict[str, Any]]
TWO_RANKS = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]


def assert_same_pictures(one: Path, other: Path) -> None:
    here, there = (load_file(root / "reconstructions.safetensors") for root in (one, other))
    assert list(here) == list(there)
    for name, pictures in here.items():
        assert torch.allclose(pictures, there[name], rtol=0, atol=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("updates", "draws", "further"),
    [
        (2, 1, ["--data.clients", "2"]),
        (3, 2, ["--data.clients", "6", "--data.batch_size", "2", "--model.client.aggregated", "2"]),
    ],
    ids=["even", "uneven, sums of two clients"],
)
def test_two_ranks_are_one_process(
    updates: int, draws: int, further: list[str], tiny: str, tmp_path: Path, fit: Fit
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    flags = [*further, "--model.draws", str(draws)]
    command = [sys.executable, "-m", "lightning_recon", "fit", "--config", tiny, *flags, *TWO_RANKS]
    # Half of the steps on two ranks, the rest on one: neither the ranks nor the interruption may show.
    half = [*command, "--trainer.max_steps", "2", "--trainer.default_root_dir", str(two)]
    done = subprocess.run(half, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]

    shared = fit(one, *flags, "--trainer.max_steps", "2")
    split = json.loads((two / "results.json").read_text())
    assert_same_pictures(one, two)
    for mine, other in zip(split["victims"], shared["victims"], strict=True):
        assert (mine["client"], mine["draw"], mine["index"]) == (other["client"], other["draw"], other["index"])
        assert mine["psnr"] == pytest.approx(other["psnr"], abs=1e-3)
    assert len(list((two / "exchange").glob("update-*.json"))) == updates * draws
    events = EventAccumulator(str(two), size_guidance={"images": 0})
    events.Reload()
    assert events.Tags()["images"] == [f"client_{client}" for client in range(updates)]
    assert events.Scalars("psnr")[-1].value == pytest.approx(split["summary"]["psnr_mean"], abs=1e-3)

    fit(one, *flags, "--trainer.max_steps", "4", "--overwrite")
    fit(two, *flags, "--trainer.max_steps", "4", "--ckpt_path", "last")
    assert_same_pictures(one, two)


# Only rank zero draws the key that the one process has, so that the networks agree only if all ranks use rank zero's.
RANK_ZERO_DRAWS_THE_KEY = """
import os
from lightning_recon.cli import main
from lightning_recon.client.noise_key import NoiseKey

if os.environ.get("LOCAL_RANK", "0") == "0":
    NoiseKey.fresh = classmethod(lambda cls: cls(bytes(range(32))))
main()
"""


@pytest.mark.slow
def test_two_ranks_train_the_same_target_as_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [
        "--config",
        "target.yaml",
        "--data.image_size",
        "16",
        "--trainer.max_epochs",
        "2",
        "--results.show",
        "false",
    ]
    one, two = (["fit", *small, "--trainer.default_root_dir", str(tmp_path / name)] for name in ("one", "two"))
    script = tmp_path / "script.py"
    script.write_text(RANK_ZERO_DRAWS_THE_KEY)
    done = subprocess.run([sys.executable, script, *two, *TWO_RANKS], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    monkeypatch.setattr(NoiseKey, "fresh", lambda: NoiseKey(bytes(range(32))))
    main([*one, "--trainer.accelerator", "cpu"])
    here, there = (torch.load(tmp_path / name / LAST, weights_only=True) for name in ("one", "two"))
    assert here["global_step"] == there["global_step"] == 4
    for name, tensor in here["state_dict"].items():
        assert torch.allclose(tensor, there["state_dict"][name], rtol=0, atol=1e-6), name
    costs = []
    for name in ("one", "two"):
        events = EventAccumulator(str(tmp_path / name))
        events.Reload()
        costs.append([scalar.value for scalar in events.Scalars("epsilon")])
    assert costs[0] == pytest.approx(costs[1])
