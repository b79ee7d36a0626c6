# SPDX-License-Identifier: Apache-2.0
"""Options that no run can have are refused in one line, and options of Lightning's Trainer work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_recon.cli import main

Fit = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model.structure.strength", ".nan"], "--model.structure.strength is nan"),
        (["--model.optimizer", "torch.optim.Adam", "--model.optimizer.lr", ".inf"], "--model.optimizer.lr is inf"),
        (["--model.optimizer", "torch.optim.Adam", "--model.optimizer.lr", "-1"], "Invalid learning rate"),
        (["--seed_everything", "-1"], "seed_everything is -1"),
        (["--seed_everything", "4294967296"], "seed_everything is 4294967296"),
        (["--data.seed", "18446744073709551616"], "data.seed is 18446744073709551616"),
        (["--trainer.max_steps", "-2"], "max_steps is -2"),
        (["--trainer.max_epochs", "0"], "max_epochs is 0"),
        (["--trainer.default_root_dir", "null"], "default_root_dir is null"),
        (["--trainer.precision", "64-true"], "32-true, bf16-mixed, 16-mixed"),
        (["--trainer.precision", "bf16-true"], "32-true, bf16-mixed, 16-mixed"),
        (["--trainer.devices", "0"], "devices"),
        (["--trainer.devices", "a"], "devices"),
        (["--trainer.strategy", "nonsense"], "nonsense"),
        (["--trainer.strategy", "ddp_spawn"], "auto or ddp"),
        (["--trainer.num_nodes", "0"], "num_nodes"),
        (["--trainer.accumulate_grad_batches", "2"], "accumulate_grad_batches is 2"),
        (["--trainer.gradient_clip_val", "1"], "gradient_clip_val"),
        (["--trainer.val_check_interval", "100"], "val_check_interval"),
        (["--trainer.check_val_every_n_epoch", "0"], "check_val_every_n_epoch is 0"),
        (["--trainer.barebones", "true"], "barebones"),
        (["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "nothing"], "`nothing`"),
        pytest.param(
            ["--trainer.accelerator", "cuda"],
            "--trainer.accelerator auto",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU"),
        ),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_options_that_no_run_can_have_cost_one_line(
    flags: list[str],
    says: str,
    tiny: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", tiny, "--trainer.default_root_dir", str(tmp_path), *flags])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("recon: error: ")
    assert says in line


OPTIONS = {
    "bare": ["--trainer.enable_progress_bar", "false", "--trainer.enable_checkpointing", "false"],
    "no logger": ["--trainer.logger", "false", "--trainer.callbacks", "TQDMProgressBar"],
    "own": [
        "--trainer.logger",
        "CSVLogger",
        "--trainer.callbacks",
        "ModelCheckpoint",
        "--trainer.detect_anomaly",
        "true",
    ],
    "quick": ["--trainer.fast_dev_run", "true", "--trainer.inference_mode", "false"],
    "sums": [
        "--trainer.enable_model_summary",
        "true",
        "--trainer.log_every_n_steps",
        "0",
    ],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_the_trainer_work(name: str, fit: Fit, tmp_path: Path) -> None:
    flags = list(OPTIONS[name])
    if "CSVLogger" in flags:
        flags[2:2] = ["--trainer.logger.save_dir", str(tmp_path / "csv")]
    record = fit(tmp_path, "--trainer.max_steps", "1", *flags)
    assert record["summary"]["steps"] == 1
    if name != "quick":
        assert (tmp_path / "config.yaml").is_file()  # not where a logger writes
