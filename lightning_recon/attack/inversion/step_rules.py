# SPDX-License-Identifier: Apache-2.0
"""How guesses are moved: the published schedules, and what becomes of a gradient."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_recon.rng import generator_for

Schedule = Literal["constant", "steps", "cosine"]
Signed = Literal["none", "hard", "soft"]

_WARM_UP = 50


@dataclass(frozen=True)
class StepRule:
    """What becomes of learning rate and gradient from step to step; see `GradientInversion`.

    Args:
        schedule: Of the learning rate.
        signed: Whether only the gradient's sign counts.
        langevin: Standard deviation of noise on the gradient.
        seed: Of that noise.
        steps: How many there are.
    """

    schedule: Schedule
    signed: Signed
    langevin: float
    seed: int
    steps: int

    @property
    def looks_ahead(self) -> bool:
        """Whether a step depends on how many are to follow."""
        return self.schedule != "constant" or self.signed == "soft"

    def rate_factor(self, step: int) -> float:
        """What the learning rate is multiplied with at a step, counted from 0."""
        if self.schedule == "steps":
            return 0.1 ** sum(step >= share * self.steps for share in (3 / 8, 5 / 8, 7 / 8))
        if self.schedule == "cosine":
            warm = min(1.0, (step + 1) / _WARM_UP)
            return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, self.steps))))
        return 1.0

    def shaped(self, gradient: Tensor, step: int, rate: float) -> Tensor:
        """The gradient as the optimiser gets it at a step with a learning rate: with Langevin's noise, or its sign."""
        if self.langevin:
            noise = torch.randn(gradient.shape, generator=generator_for("langevin", self.seed, step))
            gradient = gradient + rate * self.langevin * noise.to(gradient)
        if self.signed == "hard":
            return gradient.sign()
        if self.signed == "soft":
            sharpness = max(1 - step / max(1, self.steps), 1e-3)
            return (gradient * sharpness).tanh() / sharpness
        return gradient
