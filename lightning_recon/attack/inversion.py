# SPDX-License-Identifier: Apache-2.0
"""The honest server's attack as a LightningModule: nothing is added to the network, the update itself is inverted."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_recon.attack.dummies import Basis, Coordinates, Start
from lightning_recon.attack.inverse import Guesses, UpdateMatching
from lightning_recon.attack.labels import label_counts
from lightning_recon.attack.local import Update, take_apart
from lightning_recon.attack.matching import Distance, fit_is_visible, noise_std, signal_weights
from lightning_recon.attack.priors import Penalties, consensus
from lightning_recon.attack.server import Reconstruction, Server
from lightning_recon.errors import UserError
from lightning_recon.exchange import Client, ServerPayload
from lightning_recon.structure.statistics import PublicStatistics, public_statistics
from lightning_recon.structure.transform import synthesise

Labels = Literal["counted", "joint", "known"]
Schedule = Literal["constant", "steps", "cosine"]
PREFIX = "network."  # of the network's own parameters in an update
_WARM_UP = 50
_PUBLIC_PICTURES = 64  # from which the network's mean prediction is estimated
_SIDE_BY_SIDE = 16  # guesses at a time on an accelerator; a CPU is busy with one


def adam(params: ParamsT) -> Optimizer:
    """The default optimiser."""
    return torch.optim.Adam(params, lr=0.1)


class GradientInversion(Server):
    """An honest-but-curious server searches for pictures whose update is the one that it received.

    Every guess (a client's batch under one noise draw, from one start) has its own update and is alone with it: all
    are moved in one step, none influences another. The best guess is chosen by the objective, which the attacker knows.
    """

    def __init__(
        self,
        client: Client | None,
        name: str = "gradient_inversion",
        distance: Distance = "cosine",
        basis: Basis = "pixels",
        start: Start = "noise",
        labels: Labels = "counted",
        penalties: Penalties = Penalties(),  # noqa: B008 - frozen
        signed: Literal["no", "hard", "soft"] = "no",
        boxed: bool = True,
        weigh_tensors: bool = False,
        discrepancy: bool = False,
        langevin: float = 0.0,
        schedule: Schedule = "constant",
        restarts: int = 1,
        subjects: bool = False,
        statistics: str | None = None,
        seed: int = 0,
        chunk_size: int | None = None,
        compile: bool = False,
        draws: int = 1,
        record: bool = True,
        optimizer: OptimizerCallable = adam,
        update: str | None = None,
    ) -> None:
        """Set up the attack; the configs under `configs/attack/` are the published ones.

        Args:
            client: Who answers the server; null with `update`.
            name: Name of the attack in `results.json`.
            distance: Between the guess's update and the received one: "cosine" and "euclidean" as published, or
                "likelihood", the channel's own: squared distance after the announced clip, in units of the noise.
            basis: In which coordinates to search: "pixels", or "spectrum", decorrelated cosine coefficients in units of
                their public standard deviation.
            start: Where to begin: "noise", "patches" of noise, or the public "mean" image.
            labels: "counted" from the last layer's gradient (for one picture the sign rule), searched "joint" with the
                pictures, or "known": an oracle, told by the client and named in `results.json`.
            penalties: What pictures look like.
            signed: Whether only the gradient's sign moves the dummies: "hard", or "soft" (its hyperbolic tangent, which
                hardens as the search goes on).
            boxed: Whether dummies are kept within [0, 1] after every step; needs basis "pixels".
            weigh_tensors: Whether each tensor counts by the share of its energy that is not noise.
            discrepancy: Whether a guess rests once its residual is what noise explains; only where that can be told.
            langevin: Standard deviation of noise added to the dummies' gradient, relative to the learning rate.
            schedule: Of the learning rate: "constant", "steps" (a tenth at 3/8, 5/8 and 7/8 of all steps), or "cosine"
                (to zero, after a warm-up of 50 steps).
            restarts: Searches of every update, from different starts; the one with the best objective is handed over.
            subjects: Whether the server knows that clients cut the subject out on black.
            statistics: File of public statistics, as `scripts/fit_statistics.py` writes it. Default: the bundled ones.
            seed: Of the starts.
            chunk_size: Guesses differentiated side by side, which takes memory for as many updates. Default: 1 on a
                CPU, 16 elsewhere.
            compile: Whether to compile the objective with its gradient (`torch.compile`): minutes at the start.
            draws: How many independent noise realisations of each client's update to attack.
            record: Whether to keep what crossed the wire, without which a run can be neither resumed nor replayed.
            optimizer: Moves the dummies. `torch.optim.LBFGS` runs on each guess alone.
            update: File of a captured update, or a folder of them, to attack instead of asking `client`.
        """
        super().__init__(client, draws=draws, record=record, update=update)
        self.automatic_optimization = False
        if restarts < 1:
            raise UserError(f"--model.restarts is {restarts}: give at least 1")
        if chunk_size is not None and chunk_size < 1:
            raise UserError(f"--model.chunk_size is {chunk_size}: give at least 1")
        if penalties.consensus and restarts < 2:
            raise UserError("--model.penalties.consensus is about several restarts: set --model.restarts to 2 or more")
        self.title, self.distance, self.basis, self.begin, self.labelled = name, distance, basis, start, labels
        self.penalties, self.signed, self.boxed, self.weigh_tensors = penalties, signed, boxed, weigh_tensors
        self.discrepancy, self.langevin, self.schedule, self.restarts = discrepancy, langevin, schedule, restarts
        self.subjects, self.statistics_file, self.seed = subjects, statistics, seed
        self.chunk_size, self.compile_objective, self.optimizer = chunk_size, compile, optimizer

    @property
    def name(self) -> str:
        """Name of the attack in `results.json`."""
        return self.title

    @property
    def oracles(self) -> tuple[str, ...]:
        """What the attack is told that no attacker knows."""
        return ("labels",) if self.labelled == "known" else ()

    @property
    def statistics(self) -> PublicStatistics:
        """What the server takes for granted about pictures."""
        return public_statistics(*self.task.image_shape[1:], self.subjects, self.statistics_file)

    def prepare(self, client: Client) -> ServerPayload:
        """Nothing is added to the network."""
        return ServerPayload()

    def allocate(self) -> None:
        """Make room for the dummies of all ranks, and for the best of them so far."""
        shape = (self.task.victims, *self.task.image_shape)
        count = self.task.updates * self.draws * self.restarts
        self.dummies = nn.ParameterList(torch.zeros(shape) for _ in range(count))
        if self.labelled == "joint":
            logits = (torch.zeros(self.task.victims, self.task.num_classes) for _ in range(count))
            self.logits = nn.ParameterList(logits)
        self.best: Tensor
        self.lowest: Tensor
        self.register_buffer("best", torch.zeros(count, *shape))
        self.register_buffer("lowest", torch.full((count,), math.inf))
