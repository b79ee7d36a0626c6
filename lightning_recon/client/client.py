# SPDX-License-Identifier: Apache-2.0
"""The client: trains on its pictures and lets nothing out but the clipped, noisy update."""

import math
from collections import OrderedDict
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_recon.client.accountant import Accountant
from lightning_recon.client.dp_sgd import private_gradient
from lightning_recon.client.gradients import reproducible_fp32
from lightning_recon.client.noise import add_noise, noise_generator
from lightning_recon.client.poisson_sampler import TRAINING, PoissonSampler, sampler_of
from lightning_recon.client.update import Clipped, Release, clipped_update, release_of, summed
from lightning_recon.data.sources import ClientBatch
from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, NoiseShare, ServerPayload, Task
from lightning_recon.networks.construction import build_network, copied, load_weights, takes_size, without_batch_norm
from lightning_recon.networks.normalization import Normalization, announced, resolve, without_wrapper
from lightning_recon.networks.setup_check import explained_batch_norm, fit_to_pictures
from lightning_recon.privacy.mechanism import Privacy
from lightning_recon.ranges import COUNT, POSITIVE, SEED, SHARE, SIZE, check_ranges
from lightning_recon.structure.layer import InferenceStructure, TamperedNetwork

# Stand for a draw and a client in `noise_generator`, so that these random numbers never repeat those of an update.
DROPOUT = -1
ABSENCE = -2


class VictimClient(LightningModule):
    """A client of federated learning under local differential privacy.

    It answers a server by `share`. Fitted itself (`recon fit --model VictimClient`), it trains the target network under
    the same protection, and the epsilon of all steps so far is logged after every epoch as `epsilon`:

    - granularity "sample" is DP-SGD. Batches are Poisson samples whose expected size is the data module's batch size,
      over all ranks; what is accounted is the presence of one picture ("add_remove") or which picture it is
      ("replace_one"), with amplification by that sampling.
    - granularity "update" clips the gradient of each shuffled batch once. What is accounted is one such release a step,
      plainly composed, with each step's whole update as the record: no statement about single pictures.

    Accounted are the steps of this training alone: not what `weights` cost, nor logged losses and accuracies, nor the
    statistics of batch normalisation (granularity "sample" has none).
    """

    def __init__(
        self,
        network: str = "resnet18",
        num_classes: int = 1000,
        weights: str | None = None,
        privacy: Privacy = Privacy(),  # noqa: B008 - frozen
        batch_norm: Literal["train", "eval"] = "train",
        participation: float = 1.0,
        aggregated: int = 1,
        noise_share: NoiseShare = "local",
        local_steps: int = 1,
        local_lr: float = 0.1,
        local_epochs: int = 1,
        chunk_size: int = 1,
        seed: int = 0,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        normalization: Normalization = "auto",
    ) -> None:
        """Build the network; the pictures come by `bind`.

        Args:
            network: "convnet", a torchvision or timm name, or the path of a class that takes `num_classes`.
            num_classes: how many classes the network tells apart.
            weights: file of a state dict, or a checkpoint of a fitted client; null: untrained.
            privacy: clipping and noise.
            batch_norm: under granularity "update", whether batch normalisation uses the batch ("train") or its running
                statistics ("eval").
            participation: probability, above 0, with which a client answers a round on its batch; otherwise it answers
                on other pictures (another client's batch stands in), as one does that goes through its pictures batch
                by batch. Neither announced to the server nor counted in the client's favour by the accounting.
            aggregated: how many clients' updates the server gets as their sum alone, as by secure aggregation (N);
                must divide the number of clients. Each clips its own update and adds its own noise.
            noise_share: noise of each of the aggregated clients. "local" (local DP): zC, so that every client's
                promise holds whatever becomes of the sum, which has zC sqrt(N). "distributed":
                zC / sqrt(N), so that the sum has zC: the accounted epsilon is that of the sum, and holds only while
                all N clients add their share and the server sees nothing but the sum.
            local_steps: plain gradient steps that a client takes before it answers (FedAvg), each on an equal part of
                its batch; what they took from the weights, divided by `local_lr`, is then clipped and noised.
                Granularity "update" only.
            local_lr: learning rate of these steps.
            local_epochs: how often a client goes through its batch so.
            chunk_size: under granularity "sample", pictures differentiated at once; memory grows by one copy of all
                parameters (the server's structure included) for each.
            seed: seed of the untrained weights and of the noise.
            optimizer: optimiser of training the network itself.
            normalization: of the pictures, which are in [0, 1], inside the network: "none", "imagenet" (its mean and
                standard deviation), or `mean` and `std`, three numbers each. "auto": none for class paths; for
                torchvision's and timm's networks what their published weights ask for, ImageNet's if none do; for
                "convnet" ImageNet's.
        """
        super().__init__()
        check_ranges(
            "--model.client.",
            num_classes=(num_classes, SIZE),
            participation=(participation, SHARE),
            aggregated=(aggregated, COUNT),
            local_steps=(local_steps, COUNT),
            local_lr=(local_lr, POSITIVE),
            local_epochs=(local_epochs, COUNT),
            chunk_size=(chunk_size, COUNT),
            seed=(seed, SEED),
        )
        if local_steps * local_epochs > 1 and privacy.granularity == "sample":
            raise UserError(
                f"the client takes {local_steps * local_epochs} local steps, but under granularity sample every one "
                "is released on its own (DP-SGD): set --model.client.privacy.granularity update, or more rounds"
            )
        self.automatic_optimization = False
        self.local_steps, self.local_lr, self.local_epochs = local_steps, local_lr, local_epochs
        self.network_name, self.num_classes = network, num_classes
        self.privacy, self.batch_norm, self.chunk_size, self.seed = privacy, batch_norm, chunk_size, seed
        self.participation, self.optimizer = participation, optimizer
        self.aggregated, self.noise_share = aggregated, noise_share
        self.weights, self.normalization = weights, normalization
        self._unloaded: UserError | None = None  # why the weights do not fit a network of the default size
        self.network = self._built(None)
        self.accountant = Accountant(privacy)
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")
        self._batches: list[ClientBatch] = []
        self._clean: _Clean | None = None

    def setup(self, stage: str) -> None:
        """Refuse a training without an end, or of a sum: this client trains alone.

        Args:
            stage: The trainer's stage.
        """
        if stage == "fit" and self.aggregated > 1:
            raise UserError(f"--model.aggregated is {self.aggregated}: leave it out where a target network is trained")
        size = getattr(getattr(self.trainer, "datamodule", None), "image_size", None)
        if not self._batches and size is not None:
            self._fit_to((3, size, size), 2)
        if stage == "fit" and self.trainer.max_steps < 0 and (self.trainer.max_epochs or -1) < 0:
            raise UserError("the training has no end: give --trainer.max_epochs or --trainer.max_steps")

    def bind(self, batches: list[ClientBatch]) -> None:
        """Give every client its pictures.

        Args:
            batches: one batch for each client, all of one size and shape.

        Raises:
            UserError: a label that the network has no class for, clients that do not part into groups of
                `aggregated`, nobody to stand in for an absent client, or a network that cannot take the pictures.
        """
        if len(batches) % self.aggregated:
            raise UserError(
                f"--model.client.aggregated is {self.aggregated}, which does not divide the {len(batches)} client(s): "
                f"set --data.clients to a multiple of {self.aggregated}"
            )
        if self.participation < 1 and len(batches) < 2 * self.aggregated:
            raise UserError(
                f"--model.client.participation is {self.participation}, but there are no other pictures to answer on: "
                "raise --data.clients"
            )
        if batches and len(batches[0].labels) % self.local_steps:
            raise UserError(
                f"--model.client.local_steps is {self.local_steps}, which does not part batches of "
                f"{len(batches[0].labels)} evenly: set --data.batch_size to a multiple"
            )
        for batch in batches:
            if not 0 <= int(batch.labels.min()) <= int(batch.labels.max()) < self.num_classes:
                raise UserError(
                    f"the pictures have labels up to {int(batch.labels.max())}, the network has {self.num_classes} "
                    "classes: raise --model.client.num_classes"
                )
        if batches:
            channels, height, width = batches[0].images.shape[1:]
            self._fit_to((channels, height, width), min(2, len(batches[0].images)))
        self._batches = list(batches)
        self._clean = None

    def _built(self, image_size: tuple[int, int] | None) -> nn.Module:
        """The target network with its weights, for pictures of a height and width; None: of the default size."""
        network = build_network(self.network_name, self.num_classes, None, self.seed, self.normalization, image_size)
        if self.privacy.granularity == "sample":
            network = without_batch_norm(network)
        if self.weights is not None:
            try:
                load_weights(network, self.weights)
            except UserError as error:
                # They may belong to the same network, built for pictures of another size.
                if image_size is not None or not takes_size(self.network_name) or not Path(self.weights).is_file():
                    raise
                self._unloaded = error
        return network

    def _fit_to(self, image_shape: tuple[int, int, int], pictures: int) -> None:
        """Make sure that the network can be trained on pictures of a shape, so many at a time or more."""
        if (unloaded := self._unloaded) is not None:
            try:
                self.network, self._unloaded = self._built((image_shape[1], image_shape[2])), None
            except UserError:
                raise unloaded from None
        rebuild = self._built if takes_size(self.network_name) else None
        network = fit_to_pictures(
            self.network, rebuild, self.network_name, image_shape, self.num_classes, pictures, self.seed
        )
        self.network = network.to(self.device)

    def under_noise(self, noise_multiplier: float) -> "VictimClient":
        """The same clients, with the same network and pictures, under another noise multiplier; after `bind`."""
        other = copy(self)
        other.privacy = replace(self.privacy, noise_multiplier=noise_multiplier)
        return other

    @property
    def normalises_batches(self) -> bool:
        """Whether the network has batch normalisation, whose mode then matters."""
        return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.network.modules())

    @property
    def task(self) -> Task:
        """What the server knows of the training; after `bind`."""
        batch_size, channels, height, width = self._batches[0].images.shape
        return Task(
            image_shape=(channels, height, width),
            num_classes=self.num_classes,
            batch_size=batch_size,
            clients=len(self._batches),
            network=self.network_name,
            granularity=self.privacy.granularity,
            per_layer=self.privacy.per_layer,
            max_grad_norm=self.privacy.max_grad_norm,
            noise_multiplier=self.privacy.noise_multiplier,
            rounds=self.privacy.rounds,
            parameter_tensors=len(list(self.network.parameters())),
            aggregated=self.aggregated,
            noise_share=self.noise_share,
            batch_norm=self.batch_norm,
            local_steps=self.local_steps,
            local_lr=self.local_lr,
            local_epochs=self.local_epochs,
            normalization=announced(resolve(self.normalization, self.network_name, self.network)),
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read checkpoints of the time when a wrapper normalised the pictures, too.

        Args:
            checkpoint: what was read.
        """
        checkpoint["state_dict"] = without_wrapper(checkpoint["state_dict"], self.state_dict(), "network.")

    def labels(self, update: int) -> Tensor:
        """What only an oracle would tell a server: the labels of an update's victims, int64.

        Args:
            update: index of the client, or of the group of clients.
        """
        members = self._batches[update * self.aggregated : (update + 1) * self.aggregated]
        return torch.cat([batch.labels for batch in members])

    @property
    def own_noise_multiplier(self) -> float:
        """Standard deviation of the noise that each client adds itself, divided by the clipping norm."""
        shared = self.noise_share == "distributed"
        return self.privacy.noise_multiplier / (math.sqrt(self.aggregated) if shared else 1.0)

    def share(self, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        """Answer one round's payload with a privatised update, in float32 whatever the trainer's precision.

        Args:
            payload: what the server adds to the network; an empty one adds nothing.
            client: index of the client, from 0; under secure aggregation of the group: number i is the sum of
                clients iN to iN + N - 1.
            draw: index of the noise realisation, from 0.
            round: index of the round, from 0.

        Returns:
            The update, on the module's device: the same for the same arguments. The noise is independent between
            clients, draws and rounds; another payload in the same place meets the same noise, as in a second run.
            Granularity "sample": the sum of the clipped gradients plus noise; "update": the clipped gradient of the
            mean loss plus noise. Of several clients the sum of what each would answer alone.

        Raises:
            UserError: a gradient holds NaN or infinity.
        """
        members = range(client * self.aggregated, (client + 1) * self.aggregated)
        clean = self._clean_update(payload, tuple(self._answering(member, draw, round) for member in members))
        gradient = {name: tensor.clone() for name, tensor in clean.clipped.gradient.items()}
        std = self.own_noise_multiplier * (self.privacy.max_grad_norm or 0.0)
        for member in members:
            add_noise(gradient, std, noise_generator(self.seed, member, draw, round))
        return ClientUpdate(client=client, draw=draw, round=round, gradient=gradient, payload=clean.payload)

    def preview(self, payload: ServerPayload, client: int) -> Release:
        """Say in numbers what one client would answer alone, without answering.

        Args:
            payload: what the server adds to the network.
            client: index of the client, from 0.
        """
        own = replace(self.privacy, noise_multiplier=self.own_noise_multiplier)
        return release_of(self._clean_update(payload, (client,)).clipped, own)

    def sampler(self, count: int, batch_size: int) -> PoissonSampler | None:
        """How batches are to be drawn when the network itself is trained: asked by the data module.

        Args:
            count: pictures to train on.
            batch_size: their expected number in a step.

        Returns:
            The sampler of DP-SGD; None under granularity "update", which goes through shuffled batches.
        """
        if self.privacy.granularity == "update":
            return None
        place = self.trainer.global_rank, self.trainer.world_size
        return PoissonSampler(count, batch_size, self.seed, lambda: self.global_step, *place)

    def configure_callbacks(self) -> list[Callback]:
        """The accountant of the training; an attack, whose client this is, does without."""
        return [self.accountant]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """One step of DP training: clip, sum over ranks, add noise, step."""
        images, labels = batch
        sampled, step = self.privacy.granularity == "sample", self.global_step
        with self._seeded(TRAINING, step):
            gradient, loss = private_gradient(
                self.network,
                images,
                labels,
                self.privacy,
                expected=sampler_of(self.trainer).expected if sampled else len(images),
                chunk_size=self.chunk_size,
                noise=noise_generator(self.seed, TRAINING, 0, step),
                reduce=lambda tensor, how: self.trainer.strategy.reduce(tensor, reduce_op=how),
            )
        for name, parameter in self.network.named_parameters():
            parameter.grad = gradient[name]
        optimizer: Any = self.optimizers()
        optimizer.step()
        optimizer.zero_grad()
        if not loss.isnan():  # a Poisson sample may be empty
            self.log("train_loss", loss, prog_bar=True)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Accuracy on pictures that were not trained on."""
        images, labels = batch
        self.accuracy(self.network(images), labels)
        self.log("val_accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser of training the network itself."""
        return self.optimizer(self.network.parameters())

    def _answering(self, client: int, draw: int, round: int) -> int:
        """Whose pictures a client's answer is about: its own, or those of one that stands in for its others."""
        generator = noise_generator(self.seed, ABSENCE - client, draw, round)
        if self.participation == 1 or float(torch.rand((), generator=generator)) < self.participation:
            return client
        # A member of another group: nobody answers twice in one sum.
        groups = len(self._batches) // self.aggregated
        away = self.aggregated * int(torch.randint(1, groups, (), generator=generator))
        return (client + away) % len(self._batches)

    def _clean_update(self, payload: ServerPayload, clients: tuple[int, ...]) -> "_Clean":
        """The sum of clipped updates before noise, computed once for all draws and rounds of the same payload."""
        digest, parameters = payload.digest(), list(self.network.parameters())
        # The version counters change with every step of training.
        key = (digest, clients, str(self.device), sum(parameter._version for parameter in parameters))
        if self._clean is None or self._clean.key != key:
            self._clean = None  # frees the memory first
            self._clean = _Clean(key, digest, summed(self._clipped(payload, client) for client in clients))
        return self._clean

    def _clipped(self, payload: ServerPayload, client: int) -> Clipped:
        """One client's own update after the clip, before noise."""
        with self._seeded(client, 0):
            # Clones, because tensors that were made in inference mode cannot be differentiated.
            images = self._batches[client].images.to(self.device, torch.float32).clone()
            labels = self._batches[client].labels.to(self.device).clone()
            with explained_batch_norm():
                return clipped_update(
                    self._tampered(payload),
                    images,
                    labels,
                    self.privacy,
                    self.chunk_size,
                    self.local_steps,
                    self.local_lr,
                    self.local_epochs,
                )

    def _tampered(self, payload: ServerPayload) -> nn.Module:
        model: nn.Module
        if payload.settings or payload.tensors:
            # Missing gradients are made zeros where they are computed.
            model = TamperedNetwork(self.network, InferenceStructure(payload).to(self.device), zeros=False)
        else:
            model = nn.Sequential(OrderedDict(network=self.network))
        if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
            model = copied(model).float()
        return model

    def _seeded(self, client: int, step: int) -> AbstractContextManager[None]:
        dropout = noise_generator(self.seed, client, DROPOUT, step).initial_seed()
        return reproducible_fp32(self.network, self.device, dropout, self.batch_norm == "train")


@dataclass(frozen=True)
class _Clean:
    """An update before noise, with what it belongs to: never leaves the client."""

    key: tuple[str, tuple[int, ...], str, int]
    payload: str
    clipped: Clipped
