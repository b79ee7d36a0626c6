# SPDX-License-Identifier: Apache-2.0
"""Gradient inversion as a LightningModule: an honest-but-curious server inverts the updates of its clients."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import ParamsT

from lightning_recon.attack.base import Attack
from lightning_recon.attack.inversion.candidates import CandidatePool
from lightning_recon.attack.inversion.distances import Distance
from lightning_recon.attack.inversion.forward_model import check_modelled
from lightning_recon.attack.inversion.observations import Observation, Place, lay_out, mean_update
from lightning_recon.attack.inversion.parametrization import Basis, Start
from lightning_recon.attack.inversion.problem import InverseProblem
from lightning_recon.attack.inversion.settings import Compile, InversionSettings, Labels
from lightning_recon.attack.inversion.solver import Solver, Stepper, build_optimizers, start
from lightning_recon.attack.inversion.step_rules import Schedule, Signed, check_same_length
from lightning_recon.attack.inversion.target_network import keep_network, network_of, oracle_labels
from lightning_recon.attack.recording import Record, recorded_task
from lightning_recon.exchange import Client, RecordedClient, ServerPayload, payload_name
from lightning_recon.priors.base import Prior
from lightning_recon.priors.image_statistics import PublicStatistics, public_statistics
from lightning_recon.priors.regularizers import Regularization
from lightning_recon.reconstruction import Reconstruction


def adam(params: ParamsT) -> Optimizer:
    """The default optimiser."""
    return torch.optim.Adam(params, lr=0.1)


class GradientInversion(Attack):
    """An honest-but-curious server searches for images whose update is the one that it received.

    A candidate is a client's batch under one noise draw, from one start. One step moves all candidates, and none
    influences another. Of an update's candidates the one with the lowest objective is its reconstruction.
    """

    def __init__(
        self,
        client: Client | None,
        name: str = "gradient_inversion",
        distance: Distance = "cosine",
        basis: Basis = "pixels",
        init: Start = "noise",
        labels: Labels = "counted",
        regularization: Regularization = Regularization(),  # noqa: B008 - frozen
        signed: Signed = "none",
        boxed: bool = True,
        weigh_tensors: bool = False,
        discrepancy: bool = False,
        langevin: float = 0.0,
        schedule: Schedule = "constant",
        restarts: int = 1,
        subjects: bool | None = None,
        statistics: str | None = None,
        seed: int = 0,
        chunk_size: int | None = None,
        network: str | None = None,
        compile: Compile = "auto",
        draws: int = 1,
        record: Record = "rows",
        optimizer: OptimizerCallable = adam,
        update: str | None = None,
        priors: list[Prior] | None = None,
    ) -> None:
        """Set up the attack; the configs under `configs/attack/` are the published ones.

        Args:
            client: Answers the server; null with `update`.
            name: Name of the attack in `results.json`.
            distance: Between the candidate's update and the received one: "cosine" and "euclidean" as published, or
                "likelihood", that of the channel: squared distance after the announced clip, in units of the noise.
            basis: Parametrization of the images: "pixels", or decorrelated cosine coefficients, in units of their
                public standard deviation ("spectrum"), or in units that also account for what the update reveals of
                them ("balanced").
            init: Start of the search: "noise", "patches" of noise, the public "mean" image, or the image "revealed" by
                the gradient of a fully connected first layer, for updates of a single image, not in pixels.
            labels: "counted" from the last layer's gradient (for one image the sign rule; for several local steps, in
                the order that explains the update best, found by short searches), optimised "joint" with the images, or
                "oracle": the true ones, which the client provides; named among the oracles in `results.json`.
            regularization: Weights of the regularization terms.
            signed: Whether only the gradient's sign moves the dummies: "hard", or "soft" (its hyperbolic tangent, which
                becomes harder as the search goes on).
            boxed: Whether dummies are clamped to [0, 1] after every step; needs basis "pixels".
            weigh_tensors: Whether each tensor is weighted by the share of its energy that is not noise.
            discrepancy: Whether to freeze a candidate once its residual reaches the noise level (discrepancy
                principle), where that is identifiable.
            langevin: Standard deviation of noise added to the dummies' gradient, relative to the learning rate.
            schedule: Of the learning rate: "constant", "steps" (a tenth at 3/8, 5/8 and 7/8 of all steps), or "cosine"
                (to zero, after a warm-up of 50 steps). The latter two depend on `trainer.max_steps`, which has to stay
                the same when a stopped run is resumed.
            restarts: Searches of every update, from different starts; the one with the lowest objective is kept.
            subjects: Whether the server expects clients to cut the subject out on black. Default: as the task
                announces; whole photographs where it does not.
            statistics: File of public statistics, as `scripts/fit_statistics.py` writes it. Default: the bundled ones.
            seed: Of the starts.
            chunk_size: Candidates differentiated side by side, which takes memory for as many updates. Default: 16; on
                a CPU fewer, down to 1, for larger networks and images.
            network: Name or class path of the network that was shipped, if the client does not run it here. Default:
                what the recorded or captured task says, which may not be a class path, since that would run code.
            compile: Whether to compile the objective with its gradient (`torch.compile`), which takes a minute or more
                at the start. "auto": for searches of at least 30,000 steps for a small network on a CPU, where it saves
                more time than it takes; where the compiler fails, they go on without it, with a warning.
            draws: Number of independent noise realisations of each client's update to attack.
            record: How much of the exchange to record, without which a run can be neither resumed nor replayed. "rows"
                or true: every update. A number: those of the first so many clients. false: nothing.
            optimizer: Moves the dummies. `torch.optim.LBFGS` is applied to each candidate alone.
            update: File of a captured update, or a folder of them, to attack instead of asking `client`.
            priors: Priors of the images beside the regularization terms; see `lightning_recon.priors.Prior`.
        """
        super().__init__(client, draws, record, update)
        self.automatic_optimization = False
        self.settings = InversionSettings(
            distance=distance, basis=basis, init=init, labels=labels, regularization=regularization, signed=signed,
            boxed=boxed, weigh_tensors=weigh_tensors, discrepancy=discrepancy, langevin=langevin, schedule=schedule,
            restarts=restarts, seed=seed, chunk_size=chunk_size, compile=compile, optimizer=optimizer,
            priors=priors or (),
        )  # fmt: skip
        self.title, self.subjects, self.statistics_file, self.network = name, subjects, statistics, network
        self.learning_rate, self.line_search = 0.0, False  # until the optimiser is known

    @property
    def name(self) -> str:
        """Name of the attack in `results.json`."""
        return self.title

    @property
    def oracles(self) -> tuple[str, ...]:
        """Oracle information used."""
        return ("labels",) if self.settings.labels == "oracle" else ()

    @property
    def statistics(self) -> PublicStatistics:
        """Public statistics of images of the task's size."""
        subjects = self.task.expects_subjects(self.subjects)
        return public_statistics(*self.task.image_shape[1:], subjects, self.statistics_file, self.task.image_shape[0])

    def make_payload(self, client: Client) -> ServerPayload:
        """An empty payload: nothing is added to the network."""
        if isinstance(client, RecordedClient):
            client.require(client.task.rounds)
        check_modelled(client.task)
        return ServerPayload()

    def announce(self, folder: Path) -> None:
        """Record the task and the network, which the server ships as it is."""
        recorded_task(self.record, self.task).save(folder)
        keep_network(self.client, self.client, folder, self.network)
        for number in range(self.task.rounds):
            ServerPayload().save(folder, payload_name(number))

    def allocate(self) -> None:
        """Allocate the candidates of all ranks."""
        classes = self.task.num_classes if self.settings.labels == "joint" else None
        count = self.task.updates * self.draws * self.settings.restarts
        # Its name is part of the checkpoints.
        self.search = CandidatePool(count, (self.task.victims, *self.task.image_shape), classes)

    def observe(self, client: Client, folder: Path | None) -> None:
        """Collect the updates of this rank's clients, recover their labels, and initialise the candidates."""
        device = self.trainer.strategy.root_device
        if device.type == "cpu" and not torch.cuda.is_available():
            # Lightning's setting, for the sake of forks, makes Adam load the GPU's driver library anew in every step.
            os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
        network = network_of(client, self.client, self.network).to(device)
        self.problem = problem = InverseProblem(
            network, self.task, self.statistics, self.settings, device, self.trainer.max_steps
        )
        places = [(index, draw) for index in self.own_updates for draw in range(self.draws)]
        self.observations = {
            place: self._observation(client, place, self.folder_of(place[0], folder)) for place in places
        }
        own = [(slot, observation) for place, observation in self.observations.items() for slot in self._slots(place)]
        size = 1 if self.line_search else problem.chunk_size
        chunks = [
            lay_out(own[first : first + size], self.task, self.settings.weigh_tensors)
            for first in range(0, len(own), size)
        ]
        optimizer = self.learning_rate, self.line_search
        ranks = self.trainer.world_size
        self.solver = Solver(self.search, problem, chunks, *optimizer, self.trainer.max_steps, ranks)
        if self.trainer.state.fn == "fit" and not self.resumed:
            by_slots = {self._slots(place): observation for place, observation in self.observations.items()}
            earlier = self.first_client // self.task.aggregated * self.draws * self.settings.restarts
            start(self.search, problem, by_slots, ranks, earlier)
            if self.trainer.max_steps and chunks:
                problem.check_differentiable(self.search.select(chunks[0], *self.search.snapshot(), None))

    def _slots(self, place: Place) -> range:
        """The slots of an update's candidates, its restarts, among all."""
        index, draw = place
        first = (index * self.draws + draw) * self.settings.restarts
        return range(first, first + self.settings.restarts)

    def _observation(self, client: Client, place: Place, folder: Path | None) -> Observation:
        """What a client answers, with its labels."""
        update = mean_update(client, place, self.problem.model, folder)
        labels = oracle_labels(client, place[0], folder) if self.settings.labels == "oracle" else None
        # The order of labels matters to the search alone, not to a finished one that is scored again.
        searches = self.trainer.state.fn == "fit" and self.trainer.max_steps != 0
        return self.problem.observe(update, labels, *place, in_order=searches)

    def configure_optimizers(self) -> list[Optimizer]:
        """One optimiser for all candidates, or one L-BFGS for each."""
        optimizers = build_optimizers(self.search, self.settings, self.trainer.world_size)
        self.learning_rate = float(optimizers[0].param_groups[0]["lr"])
        self.line_search = isinstance(optimizers[0], LBFGS)
        return optimizers

    def training_step(self, batch: object, batch_idx: int) -> None:
        """Move every candidate once.

        Args:
            batch: The step counter.
            batch_idx: Likewise.
        """
        wrapped = self.optimizers()
        first, *others = wrapped if isinstance(wrapped, list) else [wrapped]
        # Only a step of the first one counts as a step of the trainer.
        optimizers: list[Stepper] = [first, *(one.optimizer for one in others)]
        # The lowest so far, that of the images which are handed over; it stays on the device until it is logged.
        self.latest_objective = self.solver.step(optimizers, self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store which recorded exchange the candidates belong to, and the number of steps of the schedule.

        Args:
            checkpoint: The content of the file.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint["scheduled_steps"] = self.trainer.max_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resume; with another number of steps only if the steps so far did not depend on it.

        Args:
            checkpoint: The content of the file.

        Raises:
            UserError: The search would end elsewhere than without the stop.
        """
        super().on_load_checkpoint(checkpoint)
        if self.trainer.state.fn == "fit":
            steps = self.trainer.max_steps
            before = checkpoint.get("scheduled_steps", steps)
            check_same_length(self.settings.schedule, self.settings.signed, before, steps)

    @torch.no_grad()
    def reconstructions(self) -> list[Reconstruction]:
        """This rank's current images: of every update's restarts those with the lowest objective."""
        found = []
        for place, observation in self.observations.items():
            images, labels, evident = self.solver.best_images(self._slots(place), observation)
            start = self.mean_image.expand_as(images)
            # Class indices alone are scored and written.
            own = None if labels.is_floating_point() or labels.dim() > 1 else labels
            found.append(Reconstruction(*place, images, start, 0, evident, own))
        return found
