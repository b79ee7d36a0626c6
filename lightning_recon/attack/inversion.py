# SPDX-License-Identifier: Apache-2.0
"""The honest server's attack as a LightningModule: nothing is added to the network, the update itself is inverted."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
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
from lightning_recon.attack.shipped import keep_network, network_of, told_labels
from lightning_recon.errors import UserError
from lightning_recon.exchange import Client, ServerPayload, payload_name, update_name
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
        super().__init__(client, draws, record, update)
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

    def design(self, client: Client) -> ServerPayload:
        """Nothing is added to the network."""
        return ServerPayload()

    def announce(self, folder: Path) -> None:
        """Write down the task and the network, which the server ships as it is."""
        self.task.save(folder)
        keep_network(self.client, folder)
        for number in range(self.task.rounds):
            ServerPayload().save(folder, payload_name(number))

    def allocate(self) -> None:
        """Make room for the dummies of all ranks, and for the best of them so far."""
        shape = (self.task.victims, *self.task.image_shape)
        count = self.task.updates * self.draws * self.restarts
        self.dummies = nn.ParameterList(torch.zeros(shape) for _ in range(count))
        joint = self.labelled == "joint"
        self.logits = nn.ParameterList(
            torch.zeros(self.task.victims, self.task.num_classes) for _ in range(count if joint else 0)
        )
        self.best: Tensor
        self.lowest: Tensor
        self.register_buffer("best", torch.zeros(count, *shape))
        self.register_buffer("lowest", torch.full((count,), math.inf))

    def hear(self, client: Client, folder: Path | None) -> None:
        """Let every client of this rank answer, read the labels, and lay out the guesses."""
        device = self.trainer.strategy.root_device
        self.model = take_apart(network_of(client).to(device), self.task.batch_norm == "train")
        self.coordinates = Coordinates(self.basis, self.statistics, device)
        self.matching = UpdateMatching(self.model, self.task, self.coordinates, self.distance, self.penalties)
        self.evaluate = torch.compile(self.matching) if self.compile_objective else self.matching
        places = [(index, draw) for index in self.own_updates for draw in range(self.draws)]
        self.seen = {place: self._mean_update(client, place, folder) for place in places}
        self.classes = {place: self._labels(client, place, folder).to(device) for place in places}
        own = [(place, self._slot(place, restart)) for place in places for restart in range(self.restarts)]
        size = self.chunk_size or (1 if device.type == "cpu" else _SIDE_BY_SIDE)
        self.chunks = [self._chunk(own[first : first + size]) for first in range(0, len(own), size)]
        self.slots = [slot for _, slot in own]
        if not self.resumed:
            self._begin()

    def _slot(self, place: tuple[int, int], restart: int) -> int:
        index, draw = place
        return (index * self.draws + draw) * self.restarts + restart

    def _mean_update(self, client: Client, place: tuple[int, int], folder: Path | None) -> Update:
        """Mean over the rounds of what one client answered, by the names of the network's parameters."""
        total: Update = {}
        for number in range(self.task.rounds):
            update = client.share(ServerPayload(), *place, number)
            if folder is not None:
                update.save(folder, update_name(*place, number), keep=dict.fromkeys(update.gradient))
            read = {name.removeprefix(PREFIX): tensor.float() for name, tensor in update.gradient.items()}
            total = {name: total[name] + tensor for name, tensor in read.items()} if total else read
        if total.keys() != self.model.parameters.keys():
            raise UserError(
                "the update does not hold the parameters of the network that was shipped: name that network"
            )
        return {
            name: total[name].to(self.trainer.strategy.root_device) / self.task.rounds for name in self.model.parameters
        }

    def _labels(self, client: Client, place: tuple[int, int], folder: Path | None) -> Tensor:
        """The labels of one update, (victims,)."""
        if self.labelled == "known":
            return told_labels(client, place[0], folder)
        if self.model.head is None or f"{self.model.head}.bias" not in self.seen[place]:
            if self.labelled == "joint":
                return torch.zeros(self.task.victims, dtype=torch.int64)
            raise UserError(
                "labels cannot be read from a network whose last layer is not linear with a bias: set --model.labels "
                "joint"
            )
        gradient = self.seen[place][f"{self.model.head}.bias"]
        noise = noise_std(self.task)
        return label_counts(gradient, self.task.victims, self._expected_prediction(), noise)

    def _expected_prediction(self) -> Tensor:
        """What the network says on average of pictures as the server imagines them, (classes,)."""
        statistics, generator = self.statistics, torch.Generator().manual_seed(self.seed)
        waves = torch.randn(_PUBLIC_PICTURES, *self.task.image_shape, generator=generator)
        imagined = synthesise(waves * statistics.variance.sqrt(), statistics.mean, statistics.colour).clamp(0, 1)
        with torch.no_grad():
            return self.model.network(imagined.to(self.coordinates.mean)).softmax(-1).mean(0)

    def _chunk(self, members: list[tuple[tuple[int, int], int]]) -> "Chunk":
        """What some guesses are compared with, side by side."""
        seen = [self.seen[place] for place, _ in members]
        joined = {
            name: torch.stack([one[name] for one in seen]) if len(seen) > 1 else seen[0][name][None] for name in seen[0]
        }
        weights = None
        if self.weigh_tensors:
            each = [signal_weights(one, noise_std(self.task)) for one in seen]
            weights = {name: torch.stack([one[name] for one in each]) for name in joined}
        labels = torch.stack([self.classes[place] for place, _ in members])
        return Chunk([slot for _, slot in members], labels, joined, weights)

    def _begin(self) -> None:
        """Every rank starts all guesses, its own and the others', from numbers that depend on their place alone."""
        for slot, dummies in enumerate(self.dummies):
            generator = torch.Generator().manual_seed(hash((self.seed, slot)) % 2**63)
            dummies.data.copy_(self.coordinates.start(self.begin, self.task.victims, generator))
            if len(self.logits):
                self.logits[slot].data.copy_(torch.randn(self.logits[slot].shape, generator=generator))

    def configure_optimizers(self) -> list[Optimizer]:
        """One optimiser for all guesses; L-BFGS looks along lines, which must be every guess's own."""
        together = self.optimizer([*self.dummies, *self.logits])
        if not isinstance(together, torch.optim.LBFGS):
            self.rate = float(together.param_groups[0]["lr"])
            return [together]
        if self.trainer.world_size > 1:
            raise UserError("L-BFGS searches on one rank only: set --trainer.devices 1, or another --model.optimizer")
        parts = [list(pair) for pair in zip(self.dummies, self.logits or self.dummies, strict=True)]
        alone = [self.optimizer(pair if len(self.logits) else pair[:1]) for pair in parts]
        self.rate = float(alone[0].param_groups[0]["lr"])
        return alone

    def training_step(self, batch: object, batch_idx: int) -> None:
        """Move every guess once.

        Args:
            batch: The step counter.
            batch_idx: Likewise.
        """
        optimizers = self.optimizers()
        many = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer in many:
            for group in optimizer.param_groups:
                group["lr"] = self.rate * rate_factor(self.schedule, self.global_step, self.trainer.max_steps)
        if isinstance(many[0].optimizer, torch.optim.LBFGS):
            self._search_lines(many)
        else:
            self._move_together(many[0])
        # Without a log the mean over guesses would cost a wait for the device in every step.
        if self.global_step % self.trainer.log_every_n_steps == 0:
            self.log("objective", self.lowest[self.slots].mean(), rank_zero_only=True)

    def _move_together(self, optimizer: LightningOptimizer) -> None:
        before = torch.stack(list(self.dummies)).detach()
        values, gradient = torch.zeros_like(self.lowest), torch.zeros_like(before)
        residuals = torch.full_like(self.lowest, math.inf)
        logits = torch.stack(list(self.logits)).detach() if len(self.logits) else None
        logits_gradient = None if logits is None else torch.zeros_like(logits)
        for chunk in self.chunks:
            found = self.evaluate(self._guesses(chunk, before, logits))
            values[chunk.slots], gradient[chunk.slots] = found.value, found.dummies
            residuals[chunk.slots] = found.residual
            if logits_gradient is not None and found.logits is not None:
                logits_gradient[chunk.slots] = found.logits
        if self.trainer.world_size > 1:  # every rank moves all guesses, so that any of them can be resumed from
            for tensor in (values, gradient) if logits_gradient is None else (values, gradient, logits_gradient):
                self.trainer.strategy.reduce(tensor, reduce_op="sum")
            self.trainer.strategy.reduce(residuals, reduce_op="min")
        self._remember(values, before)
        gradient = self._shaped(gradient)
        for slot, dummies in enumerate(self.dummies):
            dummies.grad = gradient[slot]
            if logits_gradient is not None:
                self.logits[slot].grad = logits_gradient[slot]
        optimizer.step()
        rest = self._explained(residuals).view(-1, *[1] * (before.dim() - 1))
        for slot, dummies in enumerate(self.dummies):
            moved = self.coordinates.boxed(dummies.data) if self.boxed else dummies.data
            dummies.data.copy_(torch.where(rest[slot], before[slot], moved))

    def _search_lines(self, optimizers: list[LightningOptimizer]) -> None:
        for chunk in self.chunks:
            slot = chunk.slots[0]

            def closure(chunk: Chunk = chunk, slot: int = slot) -> Tensor:
                dummies = self.dummies[slot].detach()[None]
                logits = self.logits[slot].detach()[None] if len(self.logits) else None
                found = self.evaluate(Guesses(dummies, logits, chunk.labels, chunk.seen, chunk.weights, None))
                values = torch.full_like(self.lowest, math.inf)
                values[slot] = found.value[0]
                self.best[slot] = torch.where(found.value[0] < self.lowest[slot], dummies[0], self.best[slot])
                self.lowest = torch.minimum(self.lowest, values.nan_to_num(math.inf))
                self.dummies[slot].grad = found.dummies[0]
                if found.logits is not None:
                    self.logits[slot].grad = found.logits[0]
                return found.value[0]

            # Only the first one counts as a step of the trainer's.
            (optimizers[slot] if slot == self.slots[0] else optimizers[slot].optimizer).step(closure)

    def _guesses(self, chunk: "Chunk", dummies: Tensor, logits: Tensor | None) -> Guesses:
        centre = None
        if self.penalties.consensus:
            restarts = dummies.unflatten(0, (-1, self.restarts))
            centre = torch.cat([consensus(group) for group in restarts])[chunk.slots]
        chosen = None if logits is None else logits[chunk.slots]
        return Guesses(dummies[chunk.slots], chosen, chunk.labels, chunk.seen, chunk.weights, centre)

    def _remember(self, values: Tensor, dummies: Tensor) -> None:
        """Keep the best of all guesses so far, by the attacker's own objective."""
        better = (values < self.lowest).view(-1, *[1] * (dummies.dim() - 1))
        self.best.copy_(torch.where(better, dummies, self.best))
        self.lowest.copy_(torch.where(better.flatten(), values, self.lowest))

    def _shaped(self, gradient: Tensor) -> Tensor:
        """The gradient as the optimiser gets it: with Langevin's noise, or its sign."""
        step, total = self.global_step, max(1, self.trainer.max_steps)
        if self.langevin:
            generator = torch.Generator().manual_seed(hash((self.seed, step)) % 2**63)
            gradient = gradient + self.langevin * torch.randn(gradient.shape, generator=generator).to(gradient)
        if self.signed == "hard":
            return gradient.sign()
        if self.signed == "soft":
            sharpness = max(1 - step / total, 1e-3)
            return (gradient * sharpness).tanh() / sharpness
        return gradient

    def _explained(self, residuals: Tensor) -> Tensor:
        """Which guesses leave no more than what noise explains, (guesses,), bool."""
        numbers = sum(parameter.numel() for parameter in self.model.parameters.values())
        if not (self.discrepancy and self.distance == "likelihood" and fit_is_visible(self.task, numbers)):
            return torch.zeros_like(residuals, dtype=torch.bool)
        return residuals <= numbers * noise_std(self.task) ** 2

    @torch.no_grad()
    def reconstructions(self) -> list[Reconstruction]:
        """This rank's pictures as they are now: of every update's restarts the one with the best objective."""
        found = []
        for place in self.seen:
            slots = [self._slot(place, restart) for restart in range(self.restarts)]
            best = slots[int(self.lowest[slots].argmin())]
            known = bool(self.lowest[best].isfinite())
            dummies = self.best[best] if known else self.dummies[best].detach()
            pictures = self.coordinates.pictures(dummies).clamp(0, 1).float().cpu()
            start = self.mean_image.expand_as(pictures)
            labels = self.classes[place].cpu()
            if len(self.logits):
                labels = self.logits[best].detach().argmax(-1).cpu()
            found.append(Reconstruction(*place, pictures, start, 0, known, labels))
        return found


@dataclass(frozen=True)
class Chunk:
    """Guesses that are computed side by side, with what they are compared with.

    Args:
        slots: Places of the guesses among all.
        labels: (P, victims), int64.
        seen: Each tensor of the update, (P, ...).
        weights: What each tensor counts, (P,) each; None: 1.
    """

    slots: list[int]
    labels: Tensor
    seen: Update
    weights: Update | None


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """What the learning rate is multiplied with.

    Args:
        schedule: see `GradientInversion`.
        step: from 0.
        steps: how many there are, at least 1.
    """
    if schedule == "steps":
        return 0.1 ** sum(step >= share * steps for share in (3 / 8, 5 / 8, 7 / 8))
    if schedule == "cosine":
        warm = min(1.0, (step + 1) / _WARM_UP)
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps))))
    return 1.0
