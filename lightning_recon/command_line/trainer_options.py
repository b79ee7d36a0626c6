# SPDX-License-Identifier: Apache-2.0
"""Options of Lightning's Trainer: checks of unsupported values, and what a run adds."""

import math
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from lightning_recon.errors import UserError
from lightning_recon.files.checkpoints import DigestedCheckpoints
from lightning_recon.ranges import SEED_32, check_ranges

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
_ALIASES = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


def check_trainer(options: Mapping[str, Any]) -> None:
    """Refuse unsupported options of the Trainer before anything is built.

    Args:
        options: The section `trainer` of a config.

    Raises:
        UserError: Names the first of them.
    """
    flag = "--trainer."
    root = options.get("default_root_dir")
    if root is None:
        raise UserError(f"{flag}default_root_dir is null: name the folder that takes the run")
    if "://" in str(root):
        raise UserError(f"{flag}default_root_dir is {root}: name a folder of this machine")
    for name in ("max_steps", "max_epochs", "min_steps", "min_epochs"):
        value = options.get(name)
        if value is not None and value < -1:
            raise UserError(f"{flag}{name} is {value}: give a number of at least 0, or -1 for no limit")
    if options.get("max_epochs") == 0:
        raise UserError(f"{flag}max_epochs is 0: give at least 1, or {flag}max_steps 0 to take no step")
    if (logged := options.get("log_every_n_steps")) is not None and logged < 0:
        raise UserError(f"{flag}log_every_n_steps is {logged}: give at least 1, or 0 to log nothing")
    every = options.get("check_val_every_n_epoch")
    if every is not None and every < 1:
        raise UserError(f"{flag}check_val_every_n_epoch is {every}: give at least 1")
    if options.get("barebones"):
        raise UserError(f"{flag}barebones switches off what a run leaves behind: leave it out")
    accelerator = options.get("accelerator")
    there = {"cuda": CUDAAccelerator.is_available(), "mps": MPSAccelerator.is_available()}
    there["gpu"] = any(there.values())
    if not there.get(str(accelerator), True):
        raise UserError(f"{flag}accelerator is {accelerator}, but there is no GPU here: use {flag}accelerator auto")
    precision = options.get("precision")
    if precision is not None and _ALIASES.get(str(precision), precision) not in PRECISIONS:
        raise UserError(f"{flag}precision is {precision}: give one of {', '.join(PRECISIONS)}")
    if options.get("accumulate_grad_batches") not in (None, 1):
        raise UserError(
            f"{flag}accumulate_grad_batches is {options['accumulate_grad_batches']}: leave it out, every step is "
            "complete by itself"
        )
    if options.get("gradient_clip_val"):
        raise UserError(
            f"{flag}gradient_clip_val would change the search, or a training that clips already: leave it out"
        )


def check_seed(seed: int | bool | None) -> None:
    """Refuse a seed that Lightning does not accept; true chooses a seed, false sets none."""
    if not isinstance(seed, bool):
        check_ranges("--", seed_everything=(seed, SEED_32))


def check_finite(config: object, name: str = "") -> None:
    """Refuse NaN in a config, and infinity except as a clipping norm.

    Args:
        config: The parsed config or a part of it.
        name: Name of the part in the whole config.

    Raises:
        UserError: Names the first such number.
    """
    if isinstance(config, Mapping) or hasattr(config, "items"):
        for key, value in config.items():
            check_finite(value, f"{name}.{key}" if name else str(key))
    elif isinstance(config, list | tuple):
        for number, value in enumerate(config):
            check_finite(value, f"{name}[{number}]")
    elif isinstance(config, float) and not math.isfinite(config):
        flag, clip = name.replace(".init_args", ""), name.endswith("max_grad_norm")
        if not (clip and config == math.inf):
            raise UserError(f"--{flag} is {config}: give a finite number" + (", or .inf for no clip" if clip else ""))


@contextmanager
def trainer_errors() -> Iterator[None]:
    """Turn errors of the Trainer's constructor into one line.

    Raises:
        UserError: Replaces the error.
    """
    try:
        yield
    except UserError:
        raise
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError, LookupError) as error:
        raise UserError(f"{first_sentence(error)}: change or leave out that option of --trainer") from error


@contextmanager
def buildable() -> Iterator[None]:
    """Turn errors of the constructors of a config's classes into one line.

    Raises:
        UserError: Replaces the error about a value or an argument.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        if any(isinstance(one, UserError) for one in causes(error)):
            raise
        reason = f"{first_sentence(causes(error)[-1])} (LIGHTNING_RECON_DEBUG=1 shows where)"
        raise UserError(f"cannot build what the options ask for: {reason}") from error


def check_strategy(strategy: Strategy) -> None:
    """Refuse strategies for several devices that attacks do not support.

    Args:
        strategy: The trainer's.

    Raises:
        UserError: The strategy shards parameters, or starts its ranks by forking or spawning this process.
    """
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy) or isinstance(
        strategy.launcher, _MultiProcessingLauncher
    ):
        raise UserError("--trainer.strategy: give auto or ddp, which start every rank as a process of its own")


def causes(error: BaseException) -> list[BaseException]:
    """A chain of exceptions, from the last to the first that was raised."""
    found = [error]
    while later := found[-1].__cause__ or found[-1].__context__:
        found.append(later)
    return found


def refused_by_library(error: BaseException) -> bool:
    """Whether Lightning or an optimizer of torch raised an exception, which concerns its arguments."""
    frames = traceback.extract_tb(error.__traceback__)
    parts = Path(frames[-1].filename).parts if frames else ()
    return "lightning" in parts or ("torch" in parts and "optim" in parts)


def first_sentence(error: BaseException) -> str:
    """The first sentence of an exception, on one line and without the full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.split(r"(?<=[a-z)`'\"])[.] ", text, maxsplit=1)[0].rstrip(".!")


def write_whole_checkpoints(trainer: Trainer) -> None:
    """Write checkpoints atomically and with a digest, unless a plugin of the user writes them."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = DigestedCheckpoints()


def checkpoints_wanted(options: Mapping[str, Any]) -> bool:
    """Whether checkpoints of the run are enabled in the section `trainer`."""
    return options.get("enable_checkpointing") is not False
