# SPDX-License-Identifier: Apache-2.0
"""The honest server's attack as a LightningModule: nothing is added to the network, the update itself is inverted."""

import logging
import math
import os
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_recon.attack.base import Attack
from lightning_recon.attack.inversion.analytic import revealed_picture
from lightning_recon.attack.inversion.candidates import CandidatePool
from lightning_recon.attack.inversion.distances import Distance, announced_std, explained, noise_std
from lightning_recon.attack.inversion.fisher_information import information
from lightning_recon.attack.inversion.forward_model import Update, client_update
from lightning_recon.attack.inversion.functional_model import functionalize
from lightning_recon.attack.inversion.label_order import ordered_labels
from lightning_recon.attack.inversion.objective import Candidates, Evaluated, GradientMatching
from lightning_recon.attack.inversion.observations import (
    Observation,
    Place,
    counted_labels,
    labels_to_trust,
    lay_out,
    mean_update,
    public_pictures,
    public_predictions,
)
from lightning_recon.attack.inversion.parametrization import Basis, Parametrization, Start
from lightning_recon.attack.inversion.step_rules import Schedule, Signed, StepRule
from lightning_recon.attack.inversion.target_network import keep_network, network_of, oracle_labels
from lightning_recon.attack.likelihood_ratio import is_evident
from lightning_recon.errors import UserError
from lightning_recon.exchange import Client, RecordedClient, ServerPayload, payload_name
from lightning_recon.networks.classifier_head import find_head
from lightning_recon.networks.differentiability import twice_differentiable
from lightning_recon.priors.image_statistics import PublicStatistics, public_statistics
from lightning_recon.priors.regularizers import Penalties, group_consistency
from lightning_recon.ranges import COUNT, NOT_NEGATIVE, SEED, check_ranges
from lightning_recon.reconstruction import Reconstruction

log = logging.getLogger(__name__)

Labels = Literal["counted", "joint", "oracle"]
_SIDE_BY_SIDE = 16  # guesses at a time, at most
_TRUSTED = 0.75  # share of labels below which they are said not to be trusted
_LOOKS = 4  # public pictures on which the network's last layer is looked for
_BUSY = 2**21  # numbers of as many guesses keep a CPU busy: more side by side are slower there


def adam(params: ParamsT) -> Optimizer:
    """The default optimiser."""
    return torch.optim.Adam(params, lr=0.1)


class GradientInversion(Attack):
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
        init: Start = "noise",
        labels: Labels = "counted",
        regularization: Penalties = Penalties(),  # noqa: B008 - frozen
        signed: Signed = "none",
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
        network: str | None = None,
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
            basis: In which coordinates to search: "pixels", or decorrelated cosine coefficients, in units of their
                public standard deviation ("spectrum"), or in units that also reckon with what the update tells of them
                ("balanced").
            init: Where to begin: "noise", "patches" of noise, the public "mean" image, or the picture "revealed" by
                the gradient of a fully connected first layer, for updates of a single picture, not in pixels.
            labels: "counted" from the last layer's gradient (for one picture the sign rule; of several local steps, the
                order that explains the update best, found by short searches), searched "joint" with the pictures, or
                "oracle": an oracle, told by the client and named in `results.json`.
            regularization: What pictures look like.
            signed: Whether only the gradient's sign moves the dummies: "hard", or "soft" (its hyperbolic tangent, which
                hardens as the search goes on).
            boxed: Whether dummies are kept within [0, 1] after every step; needs basis "pixels".
            weigh_tensors: Whether each tensor counts by the share of its energy that is not noise.
            discrepancy: Whether a guess rests once its residual is what noise explains; only where that can be told.
            langevin: Standard deviation of noise added to the dummies' gradient, relative to the learning rate.
            schedule: Of the learning rate: "constant", "steps" (a tenth at 3/8, 5/8 and 7/8 of all steps), or "cosine"
                (to zero, after a warm-up of 50 steps). The latter two look ahead to `trainer.max_steps`, which has to
                stay the same when a stopped run is resumed.
            restarts: Searches of every update, from different starts; the one with the best objective is handed over.
            subjects: Whether the server knows that clients cut the subject out on black.
            statistics: File of public statistics, as `scripts/fit_statistics.py` writes it. Default: the bundled ones.
            seed: Of the starts.
            chunk_size: Guesses differentiated side by side, which takes memory for as many updates. Default: 16; on a
                CPU fewer, down to 1, for larger networks and pictures.
            network: Name or class path of the network that was shipped, if nobody is asked who has it. Default: what
                the recorded or captured task says, which may not be a class path, since that would run code.
            compile: Whether to compile the objective with its gradient (`torch.compile`): minutes at the start.
            draws: How many independent noise realisations of each client's update to attack.
            record: Whether to keep what crossed the wire, without which a run can be neither resumed nor replayed.
            optimizer: Moves the dummies. `torch.optim.LBFGS` runs on each guess alone.
            update: File of a captured update, or a folder of them, to attack instead of asking `client`.
        """
        super().__init__(client, draws, record, update)
        self.automatic_optimization = False
        if init == "revealed" and basis == "pixels":
            raise UserError("--model.init revealed needs --model.basis spectrum or balanced")
        check_ranges(
            "--model.",
            langevin=(langevin, NOT_NEGATIVE),
            restarts=(restarts, COUNT),
            seed=(seed, SEED),
            chunk_size=(chunk_size, COUNT),
        )
        if compile and (regularization.features or regularization.batch_norm):
            raise UserError(
                "--model.compile cannot look into the network: set --model.regularization.features and batch_norm to "
                "0, or leave it out"
            )
        if regularization.group_consistency and restarts < 2:
            raise UserError(
                "--model.regularization.group_consistency is about several restarts: set --model.restarts to 2 or more"
            )
        self.title, self.distance, self.basis, self.begin, self.labelled = name, distance, basis, init, labels
        self.regularization, self.signed, self.boxed, self.weigh_tensors = regularization, signed, boxed, weigh_tensors
        self.discrepancy, self.langevin, self.schedule, self.restarts = discrepancy, langevin, schedule, restarts
        self.subjects, self.statistics_file, self.seed = subjects, statistics, seed
        self.chunk_size, self.compile_objective, self.optimizer = chunk_size, compile, optimizer
        self.network = network
        self.along_lines = False  # until the optimiser is known
        self.known_information: float | None = None  # of an update about one coefficient, once it was needed

    @property
    def name(self) -> str:
        """Name of the attack in `results.json`."""
        return self.title

    @property
    def oracles(self) -> tuple[str, ...]:
        """What the attack is told that no attacker knows."""
        return ("labels",) if self.labelled == "oracle" else ()

    @property
    def statistics(self) -> PublicStatistics:
        """What the server takes for granted about pictures."""
        return public_statistics(*self.task.image_shape[1:], self.subjects, self.statistics_file)

    def make_payload(self, client: Client) -> ServerPayload:
        """Nothing is added to the network."""
        if isinstance(client, RecordedClient):
            client.require(client.task.rounds)
        return ServerPayload()

    def announce(self, folder: Path) -> None:
        """Write down the task and the network, which the server ships as it is."""
        self.task.save(folder)
        keep_network(self.client, self.client, folder, self.network)
        for number in range(self.task.rounds):
            ServerPayload().save(folder, payload_name(number))

    def allocate(self) -> None:
        """Make room for the guesses of all ranks, and for the best of them so far."""
        classes = self.task.num_classes if self.labelled == "joint" else None
        count = self.task.updates * self.draws * self.restarts
        self.search = CandidatePool(count, (self.task.victims, *self.task.image_shape), classes)

    def observe(self, client: Client, folder: Path | None) -> None:
        """Let every client of this rank answer, read the labels, and lay out the guesses."""
        device = self.trainer.strategy.root_device
        if device.type == "cpu" and not torch.cuda.is_available():
            # Lightning's setting, for the sake of forks, makes Adam load the GPU's driver library anew in every step.
            os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
        network = network_of(client, self.client, self.network).to(device)
        self.model = functionalize(network, self.task.batch_norm == "train")
        self.coordinates = Parametrization(self.basis, self.statistics, device)
        self._look_for_labels(device)
        if self.basis == "balanced":
            with twice_differentiable(self.task.network):
                self.known_information = information(self.model, self.task, self.coordinates)
            self.coordinates.balance(self.known_information)
        matching = GradientMatching(
            self.model, self.task, self.coordinates, self.distance, self.regularization, self.head
        )
        self.matching = torch.compile(matching) if self.compile_objective else matching
        self.moves = StepRule(self.schedule, self.signed, self.langevin, self.seed, self.trainer.max_steps)
        places = [(index, draw) for index in self.own_updates for draw in range(self.draws)]
        self.observations = {place: self._answer(client, place, folder) for place in places}
        own = [(slot, observation) for place, observation in self.observations.items() for slot in self._slots(place)]
        size = 1 if self.along_lines else self.chunk_size or self._side_by_side(device)
        parts = [own[first : first + size] for first in range(0, len(own), size)]
        self.chunks = [lay_out(part, self.task, self.weigh_tensors) for part in parts]
        self.slots = torch.tensor([slot for slot, _ in own], dtype=torch.int64, device=device)
        if self.trainer.state.fn == "fit" and not self.resumed:
            self.search.begin(self.coordinates, self.begin, self.seed)
            if self.begin == "revealed":
                self._reveal()
            if self.trainer.max_steps and self.chunks:
                with twice_differentiable(self.task.network):
                    matching.by_transforms(self.search.guesses(self.chunks[0], *self.search.now(), None))

    def _look_for_labels(self, device: torch.device) -> None:
        """Find where the network shows labels, and what it says of public pictures, as far as either is needed."""
        self.head, self.predictions = None, None
        if self.labelled != "counted" and not self.regularization.features:
            return
        pictures = public_pictures(self.statistics, self.seed).to(device)
        with twice_differentiable(self.task.network):
            self.head = find_head(self.model, pictures[:_LOOKS])
            if self.labelled == "counted":
                together = max(1, self.task.sharers // self.task.local_steps)
                self.predictions = public_predictions(self.model, pictures, together)

    def _side_by_side(self, device: torch.device) -> int:
        """How many guesses at a time are quickest: on a CPU one that fills the caches is best left alone."""
        if device.type != "cpu":
            return _SIDE_BY_SIDE
        # Activations hold about 16 numbers for each of a picture's, in a network that is small enough to matter.
        pictures = 16 * self.task.victims * math.prod(self.task.image_shape)
        numbers = pictures + sum(parameter.numel() for parameter in self.model.parameters.values())
        return max(1, min(_SIDE_BY_SIDE, _BUSY // numbers))

    def _slots(self, place: Place) -> list[int]:
        """Places among all guesses of those at one update: its restarts."""
        index, draw = place
        first = (index * self.draws + draw) * self.restarts
        return list(range(first, first + self.restarts))

    def _answer(self, client: Client, place: Place, folder: Path | None) -> Observation:
        """What a client answers, and the labels that the server takes it to be about."""
        update, claimed = mean_update(client, place, self.model, folder), True
        if self.labelled == "oracle":
            labels = oracle_labels(client, place[0], folder)
        elif self.labelled == "joint":
            labels = torch.zeros(self.task.victims, dtype=torch.int64)
        else:
            labels, claimed = self._counted(update, place)
            # A finished search is only looked at, which the order does not change.
            if self.task.local_steps > 1 and self.trainer.state.fn == "fit" and self.trainer.max_steps:
                labels = self._in_order(labels, update)
        return Observation(update, labels.to(self.coordinates.mean.device), claimed)

    def _counted(self, update: Update, place: Place) -> tuple[Tensor, bool]:
        """Labels that the update shows, and whether it shows any; says so where most of them are likely wrong."""
        assert self.predictions is not None
        labels = counted_labels(update, self.head, self.task, self.predictions)
        if not len(labels):
            log.warning("Update %d shows no labels: the gradient of the network's last layer is all zeros.", place[0])
            return torch.zeros(self.task.victims, dtype=torch.int64), False  # the search needs some
        if self.head is not None and place[1] == 0:  # once for all draws
            share = labels_to_trust(update, self.head, self.task, self.predictions)
            if share < _TRUSTED:
                log.warning(
                    "Of the labels read from update %d about %.0f %% are right, to judge by public pictures: set "
                    "--model.labels joint to search them with the pictures, or known (an oracle).",
                    place[0],
                    100 * share,
                )
        return labels, True

    def _in_order(self, labels: Tensor, update: Update) -> Tensor:
        """The labels in the order of the client's local steps, as the likelihood tells it, whatever the distance."""
        coordinates = Parametrization("balanced", self.statistics, self.coordinates.mean.device)
        coordinates.balance(information(self.model, self.task, coordinates))
        matching = GradientMatching(self.model, self.task, coordinates, "likelihood", Penalties(spectrum=1.0))
        count = self.chunk_size or self._side_by_side(coordinates.mean.device)
        with twice_differentiable(self.task.network):
            return ordered_labels(labels.to(coordinates.mean.device), update, matching, self.seed, count)

    def _reveal(self) -> None:
        """Start every own guess from what the first layer's gradient reveals, and let every rank know."""
        if self.task.victims > 1:
            raise UserError("init revealed is for updates of a single picture: set --model.init mean")
        found, std = torch.zeros_like(self.search.best), noise_std(self.task)
        for place, observation in self.observations.items():
            found[self._slots(place)] = revealed_picture(self.model, observation.update, std, self.coordinates)
        if self.trainer.world_size > 1:
            dist.all_reduce(found)
        self.search.begin_at(found)

    def configure_optimizers(self) -> list[Optimizer]:
        """One optimiser for all guesses; L-BFGS looks along lines, which must be every guess's own."""
        dummies, logits = list(self.search.dummies), list(self.search.logits)
        together = self.optimizer([*dummies, *logits])
        self.rate, self.along_lines = float(together.param_groups[0]["lr"]), isinstance(together, torch.optim.LBFGS)
        if not self.along_lines:
            return [together]
        if self.trainer.world_size > 1:
            raise UserError("L-BFGS searches on one rank only: set --trainer.devices 1, or another --model.optimizer")
        if self.signed != "none" or self.langevin or self.discrepancy or self.regularization.group_consistency:
            raise UserError(
                "L-BFGS moves every guess along lines of its own: leave out --model.signed, langevin, discrepancy and "
                "regularization.group_consistency, or give another --model.optimizer"
            )
        pairs = zip(dummies, logits, strict=True) if logits else ((one,) for one in dummies)
        return [self.optimizer(list(pair)) for pair in pairs]

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
                group["lr"] = self.rate * self.moves.rate_factor(self.global_step)
        if self.along_lines:
            self._search_lines(many)
        else:
            self._move_together(many[0])
        # The best so far, whose pictures are handed over; stays on the device until somebody logs it.
        self.latest_objective = self.search.lowest[self.slots].mean()

    def _move_together(self, optimizer: LightningOptimizer) -> None:
        """A step of all ranks' guesses on every rank, so that any of them can be resumed from."""
        before, logits = self.search.now()
        centre = None
        if self.regularization.group_consistency:
            centre = torch.cat([group_consistency(restarts) for restarts in torch.split(before, self.restarts)])
        found = self._over_ranks(self.search.evaluated(self._evaluate, self.chunks, before, logits, centre))
        self.search.remember(found.value, before, logits)
        rate = optimizer.param_groups[0]["lr"]
        self.search.follow(self.moves.shaped(found.dummies, self.global_step, rate), found.logits)
        optimizer.step(lambda: found.value)
        rest = None
        if self.discrepancy and self.distance == "likelihood":
            numbers = sum(parameter.numel() for parameter in self.model.parameters.values())
            rest = explained(found.residual, self.task, numbers)
        self.search.settle(self.coordinates, self.boxed, before, rest)

    def _search_lines(self, optimizers: list[LightningOptimizer]) -> None:
        for number, chunk in enumerate(self.chunks):
            slot = int(chunk.slots)
            closure = self.search.along_line(self._evaluate, chunk, slot)
            # Only the first one counts as a step of the trainer's.
            (optimizers[slot] if number == 0 else optimizers[slot].optimizer).step(closure)
        before, _ = self.search.now()
        self.search.settle(self.coordinates, self.boxed, before, None)

    def _evaluate(self, guesses: Candidates) -> Evaluated:
        with twice_differentiable(self.task.network):
            return self.matching(guesses)

    def _over_ranks(self, found: Evaluated) -> Evaluated:
        """What each rank knows of its own guesses, and zero elsewhere, put together in one exchange."""
        if self.trainer.world_size == 1:
            return found
        parts = [part for part in (found.value, found.dummies, found.residual, found.logits) if part is not None]
        together = torch.cat([part.flatten() for part in parts])
        # Not the strategy's reduction, which waits at a barrier first.
        dist.all_reduce(together)
        pieces = torch.split(together, [part.numel() for part in parts])
        value, dummies, residual, *logits = (one.view_as(part) for one, part in zip(pieces, parts, strict=True))
        return Evaluated(value, dummies, logits[0] if logits else None, residual)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the recorded exchange, and how many steps the schedule reckoned with.

        Args:
            checkpoint: What is about to be written.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint["scheduled_steps"] = self.trainer.max_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resume; not with another number of steps, if the steps so far depended on it.

        Args:
            checkpoint: What was read.

        Raises:
            UserError: The search would end elsewhere than without the stop.
        """
        super().on_load_checkpoint(checkpoint)
        steps = self.trainer.max_steps
        before = checkpoint.get("scheduled_steps", steps)
        moves = StepRule(self.schedule, self.signed, self.langevin, self.seed, steps)
        if self.trainer.state.fn == "fit" and before != steps and moves.looks_ahead:
            what = "--model.signed soft" if self.schedule == "constant" else f"--model.schedule {self.schedule}"
            raise UserError(
                f"the stopped search was laid out for {before} steps by {what}, and --trainer.max_steps is {steps}: "
                f"set it to {before} to end where the search would have, or leave out --ckpt_path to search anew"
            )

    @torch.no_grad()
    def reconstructions(self) -> list[Reconstruction]:
        """This rank's pictures as they are now: of every update's restarts the one with the best objective."""
        found = []
        for place, observation in self.observations.items():
            dummies, logits, known = self.search.best_of(self._slots(place))
            known = known or (self.begin == "revealed" and bool(dummies.any()))
            pictures = self.coordinates.pictures(dummies).clamp(0, 1).float()
            labels = observation.labels if logits is None else logits.argmax(-1)
            evident = known and self._evident(observation, pictures, labels if logits is None else logits.softmax(-1))
            claimed = labels.cpu() if observation.claimed else labels[:0].cpu()
            pictures = pictures.cpu()
            start = self.mean_image.expand_as(pictures)
            found.append(Reconstruction(*place, pictures, start, 0, evident, claimed))
        return found

    def _evident(self, observation: Observation, pictures: Tensor, targets: Tensor) -> bool:
        """Whether an update shows these pictures under the announced clip and noise, whatever the search's distance."""
        mean = self.mean_image.to(pictures).expand_as(pictures)
        with twice_differentiable(self.task.network):
            guess, of_mean = (client_update(self.model, one, targets, self.task)[0] for one in (pictures, mean))
        searched = self._freedom() + (targets.numel() if targets.is_floating_point() else 0)
        return is_evident(observation.update, guess, of_mean, announced_std(self.task), searched)

    def _freedom(self) -> float:
        """How many numbers the search of one update is free to choose: all, but for those that its prior decides."""
        count = self.task.victims * self.coordinates.std.numel()
        if self.distance != "likelihood" or not self.regularization.spectrum:
            return count
        if self.known_information is None:
            with twice_differentiable(self.task.network):
                self.known_information = information(self.model, self.task, self.coordinates)
        ratio = self.known_information * self.coordinates.std.square() / self.regularization.spectrum
        return self.task.victims * float((ratio / (1 + ratio)).sum())
