# SPDX-License-Identifier: Apache-2.0
"""The options of gradient inversion, checked against each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightning.pytorch.cli import OptimizerCallable

from lightning_recon.attack.inversion.distances import Distance
from lightning_recon.attack.inversion.parametrization import Basis, Start
from lightning_recon.attack.inversion.step_rules import Schedule, Signed
from lightning_recon.errors import UserError
from lightning_recon.priors.base import Prior
from lightning_recon.priors.regularizers import Regularization
from lightning_recon.ranges import COUNT, NOT_NEGATIVE, SEED, check_ranges

Labels = Literal["counted", "joint", "oracle"]
Compile = bool | Literal["auto"]


@dataclass(frozen=True)
class InversionSettings:
    """How to search; `GradientInversion` documents every field."""

    distance: Distance
    basis: Basis
    init: Start
    labels: Labels
    regularization: Regularization
    priors: Sequence[Prior]
    signed: Signed
    boxed: bool
    weigh_tensors: bool
    discrepancy: bool
    langevin: float
    schedule: Schedule
    restarts: int
    seed: int
    chunk_size: int | None
    compile: Compile
    optimizer: OptimizerCallable

    def __post_init__(self) -> None:
        """Refuse values out of range, and options that exclude each other."""
        if self.init == "revealed" and self.basis == "pixels":
            raise UserError("--model.init revealed needs --model.basis spectrum or balanced")
        check_ranges(
            "--model.",
            langevin=(self.langevin, NOT_NEGATIVE),
            restarts=(self.restarts, COUNT),
            seed=(self.seed, SEED),
            chunk_size=(self.chunk_size, COUNT),
        )
        if self.compile is True and (self.regularization.features or self.regularization.batch_norm):
            raise UserError(
                "--model.compile cannot look into the network: set --model.regularization.features and batch_norm to "
                "0, or leave it out"
            )
        if self.regularization.group_consistency and self.restarts < 2:
            raise UserError(
                "--model.regularization.group_consistency is about several restarts: set --model.restarts to 2 or more"
            )
