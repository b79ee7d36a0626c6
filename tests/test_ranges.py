# SPDX-License-Identifier: Apache-2.0
"""No number of a config may be NaN, infinite or absurd: every class that a config reaches refuses it by name."""

import inspect
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_recon import attack, callbacks, client, data, structure
from lightning_recon.attack.inversion import batched_lbfgs
from lightning_recon.audit import config, report
from lightning_recon.cli import main
from lightning_recon.errors import UserError
from lightning_recon.priors import regularizers

Fit = Callable[..., dict[str, Any]]
MODULES = (attack, callbacks, data, structure, client, regularizers, batched_lbfgs, config, report)
# What some of them cannot be built without.
NEEDED: dict[str, dict[str, Any]] = {
    "ReconstructionAttack": {"client": object(), "structure": object()},
    "GradientInversion": {"client": object()},
    "Comparison": {"structure": object()},
    "BatchedLBFGS": {"params": [torch.nn.Parameter(torch.zeros(1))]},
    "Sweep": {"attacks": {"a": config.AuditedAttack()}, "noise_multiplier": [0.1]},
}
NO_OPTIONS = {"Cell", "Release", "UserError", "Advice", "Setting", "Decoded", "Reconstruction"}  # reached by no config


def numbers() -> Iterator[tuple[type, str, bool]]:
    """Every numeric argument of every class: the class, the name, and whether it is a list of numbers."""
    for module in MODULES:
        for name, found in vars(module).items():
            own = inspect.isclass(found) and found.__module__.startswith("lightning_recon")
            if (
                not own
                or name.startswith("_")
                or name in NO_OPTIONS
                or inspect.isabstract(found)
                or issubclass(found, Exception)
            ):
                continue
            for parameter in inspect.signature(found).parameters.values():
                annotation = str(parameter.annotation).replace("<class '", "").replace("'>", "")
                plain = re.fullmatch(r"(list\[)?(int|float)\]?( \| None)?", annotation)
                if plain:
                    yield found, parameter.name, plain[1] is not None


FOUND = sorted(set(numbers()), key=str)


def test_the_walk_finds_what_configs_name() -> None:
    assert {"Privacy", "VictimClient", "Digital", "Regularization", "ClientDataModule"} <= {
        one.__name__ for one, _, _ in FOUND
    }
    assert len(FOUND) > 60


@pytest.mark.parametrize(("built", "name", "listed"), FOUND, ids=lambda part: getattr(part, "__name__", str(part)))
def test_absurd_numbers_are_refused_by_name(built: type, name: str, listed: bool) -> None:
    for value in (math.nan, math.inf, -math.inf, -1, 1e308):
        given = NEEDED.get(built.__name__, {}) | {name: [value] if listed else value}
        if name == "epsilon":
            given["noise_multiplier"] = None
        if name == "max_grad_norm" and value == math.inf:
            assert built(**given).max_grad_norm is None  # which is what it means
            continue
        with pytest.raises(UserError, match=f"{name} is {re.escape(str(value))}: give "):
            built(**given)


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
