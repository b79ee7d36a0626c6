# SPDX-License-Identifier: Apache-2.0
"""Options of Lightning's Trainer: what a run adds to them, and which of them no run can have."""

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
    """Refuse options of the Trainer that no run can have, before anything is built.

    Args:
        options: The section `trainer` of a config.

    Raises:
        UserError: The first of them.
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
    """Refuse a seed that Lightning's random generators do not take; true chooses one, false sets none."""
    if not isinstance(seed, bool):
        check_ranges("--", seed_everything=(seed, SEED_32))


def check_finite(config: object, name: str = "") -> None:
    """Refuse NaN anywhere in a config, and infinity anywhere but as a clipping norm.

    Args:
        config: Sections, lists and values as they were parsed.
        name: Their place in the whole config.

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
    """Turn what the Trainer's constructor objects to into one line.

    Raises:
        UserError: In the place of whatever was raised.
    """
    try:
        yield
    except UserError:
        raise
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError, LookupError) as error:
        raise UserError(f"{first_sentence(error)}: change or leave out that option of --trainer") from error


@contextmanager
def buildable() -> Iterator[None]:
    """Turn what the constructors of a config's classes object to into one line.

    Raises:
        UserError: In the place of a value or an argument that a constructor refuses.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        if any(isinstance(one, UserError) for one in causes(error)):
            raise
        reason = f"{first_sentence(causes(error)[-1])} (LIGHTNING_RECON_DEBUG=1 shows where)"
        raise UserError(f"cannot build what the options ask for: {reason}") from error


def check_strategy(strategy: Strategy) -> None:
    """Refuse ways to run on several devices that an attack is not made for.

    Args:
        strategy: The trainer's.

    Raises:
        UserError: It splits up the parameters, or starts its ranks as copies of this process.
    """
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy) or isinstance(
        strategy.launcher, _MultiProcessingLauncher
    ):
        raise UserError("--trainer.strategy: give auto or ddp, which start every rank as a process of its own")


def causes(error: BaseException) -> list[BaseException]:
    """A chain of exceptions, the first that was raised last."""
    found = [error]
    while later := found[-1].__cause__ or found[-1].__context__:
        found.append(later)
    return found


def refused_by_library(error: BaseException) -> bool:
    """Whether Lightning or an optimiser of torch has raised an exception: it objects to what it was given."""
    frames = traceback.extract_tb(error.__traceback__)
    parts = Path(frames[-1].filename).parts if frames else ()
    return "lightning" in parts or ("torch" in parts and "optim" in parts)


def first_sentence(error: BaseException) -> str:
    """What an exception says first, on one line and without the full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.split(r"(?<=[a-z)`'\"])[.] ", text, maxsplit=1)[0].rstrip(".!")


def write_whole_checkpoints(trainer: Trainer) -> None:
    """Let a trainer write its checkpoints atomically and with a digest, unless a plugin of the user's writes them."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = DigestedCheckpoints()


def checkpoints_wanted(options: Mapping[str, Any]) -> bool:
    """Whether the user has left the run's own checkpoints switched on, in the section `trainer`."""
    return options.get("enable_checkpointing") is not False
