# SPDX-License-Identifier: Apache-2.0
"""Progress of a run: a bar on a terminal, and plain lines in a log."""

import time
from collections.abc import Mapping
from typing import Any

import rich
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lightning_recon.attack import Attack
from lightning_recon.console import SECONDS, is_quiet, say


class StepBar(RichProgressBar):
    """Progress in steps: without a limit to them, epochs are not counted."""

    @property
    def total_train_batches(self) -> int | float:
        """All steps from the start, as the bar counts them: Lightning leaves those before a stop out of the total."""
        if self.trainer.max_epochs != -1 or self.trainer.max_steps < 0:
            return super().total_train_batches
        return min(self.trainer.num_training_batches, self.trainer.max_steps)

    def _get_train_description(self, current_epoch: int) -> str:
        return "Refining  " if self.trainer.max_epochs == -1 else super()._get_train_description(current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar, so that later output does not appear above it."""
        super().on_train_end(trainer, pl_module)
        self._stop_progress()


class StepLog(ProgressBar):
    """Progress for a log file: one line at steps 1, 2, 4, 8, ..., every half a minute, and at the end."""

    def __init__(self) -> None:
        """Prepare; nothing is printed before the first step."""
        super().__init__()
        self._enabled = True
        self._first, self._started, self._last = 0, 0.0, 0.0

    def disable(self) -> None:
        """Print nothing: another process does."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; a resumed run counts on from where it was."""
        self._first, self._started = trainer.global_step, time.monotonic()
        self._last = self._started

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Print a line if one is due."""
        step, now = trainer.global_step, time.monotonic()
        taken = step - self._first
        due = taken & (taken - 1) == 0 or now - self._last >= SECONDS or step == trainer.max_steps
        if not self._enabled or taken < 1 or not due:
            return
        self._last = now
        if isinstance(pl_module, Attack):
            objective = pl_module.latest_objective
        else:
            objective = trainer.callback_metrics.get("train_loss")
        value = None if objective is None else float(objective)
        say(step_line(step, trainer.max_steps, value, (now - self._started) / taken))


def step_line(step: int, last: int, objective: float | None, seconds_a_step: float) -> str:
    """Progress in one line.

    Args:
        step: Steps taken, including those before an interruption.
        last: How many there will be; negative if that is not known.
        objective: Present value of what the attack minimises; None if it is not known.
        seconds_a_step: Mean of this process.
    """
    parts = [f"step {step} of {last}" if last > 0 else f"step {step}"]
    if objective is not None:
        parts.append(f"objective {objective:.4g}")
    if last > 0:
        parts.append(f"{(last - step) * seconds_a_step:.0f} s left")
    return ", ".join(parts)


def progress_bars(trainer: Mapping[str, Any]) -> list[Callback]:
    """The default progress callback, unless the config has another one or none.

    Args:
        trainer: The section `trainer` of a config, its callbacks instantiated.

    Returns:
        At most one: a bar on a terminal, lines elsewhere.
    """
    given = trainer.get("callbacks") or []
    brings_one = any(isinstance(one, ProgressBar) for one in (given if isinstance(given, list) else [given]))
    if is_quiet() or trainer.get("enable_progress_bar") is False or brings_one:
        return []
    return [StepBar() if rich.get_console().is_terminal else StepLog()]
