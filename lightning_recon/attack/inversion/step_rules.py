# SPDX-License-Identifier: Apache-2.0
"""The published step rules: learning rate schedules, signed gradients, Langevin noise."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.rng import generator_for

Schedule = Literal["constant", "steps", "cosine"]
Signed = Literal["none", "hard", "soft"]

_WARM_UP = 50


@dataclass(frozen=True)
class StepRule:
    """Learning rate and gradient from step to step; see `GradientInversion`.

    Args:
        schedule: Of the learning rate.
        signed: Whether only the gradient's sign counts.
        langevin: Standard deviation of noise on the gradient, relative to the learning rate.
        seed: Of that noise.
        steps: Number of steps.
    """

    schedule: Schedule
    signed: Signed
    langevin: float
    seed: int
    steps: int

    def rate_factor(self, step: int) -> float:
        """Factor of the learning rate at a step, counted from 0."""
        if self.schedule == "steps":
            return 0.1 ** sum(step >= share * self.steps for share in (3 / 8, 5 / 8, 7 / 8))
        if self.schedule == "cosine":
            warm = min(1.0, (step + 1) / _WARM_UP)
            return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, self.steps))))
        return 1.0

    def shaped(self, gradient: Tensor, step: int, rate: float) -> Tensor:
        """The gradient that the optimiser gets at a step with a learning rate: with Langevin noise, or its sign."""
        if self.langevin:
            noise = torch.randn(gradient.shape, generator=generator_for("langevin", self.seed, step))
            gradient = gradient + rate * self.langevin * noise.to(gradient)
        if self.signed == "hard":
            return gradient.sign()
        if self.signed == "soft":
            sharpness = max(1 - step / max(1, self.steps), 1e-3)
            return (gradient * sharpness).tanh() / sharpness
        return gradient


def check_same_length(schedule: Schedule, signed: Signed, before: int, steps: int) -> None:
    """Refuse to resume with another number of steps a search whose steps so far depended on that number.

    Args:
        schedule: Of the learning rate.
        signed: Whether only the gradient's sign counts.
        before: Number of steps when the search was started.
        steps: Number of steps now.

    Raises:
        UserError: The search would end elsewhere than without the stop.
    """
    if before != steps and (schedule != "constant" or signed == "soft"):
        what = "--model.signed soft" if schedule == "constant" else f"--model.schedule {schedule}"
        raise UserError(
            f"the stopped search was laid out for {before} steps by {what}, and --trainer.max_steps is {steps}: "
            f"set it to {before} to end where the search would have, or leave out --ckpt_path to search anew"
        )
