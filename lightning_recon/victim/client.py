# SPDX-License-Identifier: Apache-2.0
"""The client: trains on its pictures and lets nothing out but the clipped, noisy update."""

import math
from collections import OrderedDict
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_recon.data.images import ClientBatch
from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.structure.inference import InferenceStructure, TamperedNetwork
from lightning_recon.victim.gradients import clipped_sum, exactly, mean_gradient
from lightning_recon.victim.networks import build_network, load_weights, without_batch_norm
from lightning_recon.victim.privacy import Privacy, add_noise, clip, factors_of, noise_generator, tensor_norms

# Stand for a client and a draw in `noise_generator`, so that these random numbers never repeat those of an update.
TRAINING = -1
DROPOUT = -1


@dataclass(frozen=True)
class Release:
    """What a client would release, in numbers: for `recon validate`, never sent.

    Args:
        norms: Euclidean norm of the gradient before the clip, of each sample or of the update (one number).
        clip_factors: by what the clip shrinks each of these norms, in (0, 1].
        structure_share: the server's structure's part of the squared norm after the clip, in [0, 1].
        noise_std: standard deviation of the noise on each number, zC.
        noise_norm: expected norm of the noise, zC times the square root of `parameters`.
        parameters: how many numbers the update holds.
    """

    norms: list[float]
    clip_factors: list[float]
    structure_share: float
    noise_std: float
    noise_norm: float
    parameters: int


class VictimClient(LightningModule):
    """A client of federated learning under local differential privacy.

    It answers a server by `share`. Fitted itself (`recon fit --model VictimClient`), it trains the target network under
    the same protection: "sample" is DP-SGD, "update" clips each batch's gradient once. The statistics of batch
    normalisation are not protected by either; granularity "sample" has none.
    """

    def __init__(
        self,
        network: str = "resnet18",
        num_classes: int = 1000,
        weights: str | None = None,
        privacy: Privacy = Privacy(),  # noqa: B008 - frozen
        batch_norm: Literal["train", "eval"] = "train",
        chunk_size: int = 1,
        seed: int = 0,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    ) -> None:
        """Build the network; the pictures come by `bind`.

        Args:
            network: "convnet", a torchvision or timm name, or the path of a class that takes `num_classes`.
            num_classes: how many classes the network tells apart.
            weights: file of a state dict, or a checkpoint of a fitted client; null: untrained.
            privacy: clipping and noise.
            batch_norm: under granularity "update", whether batch normalisation uses the batch ("train") or its running
                statistics ("eval").
            chunk_size: under granularity "sample", pictures differentiated at once; memory grows by one copy of all
                parameters (the server's structure included) for each.
            seed: seed of the untrained weights and of the noise.
            optimizer: optimiser of training the network itself.
        """
        super().__init__()
        if chunk_size < 1:
            raise UserError(f"--model.client.chunk_size is {chunk_size}: give a whole number of at least 1")
        self.automatic_optimization = False
        self.network_name, self.num_classes = network, num_classes
        self.privacy, self.batch_norm, self.chunk_size, self.seed = privacy, batch_norm, chunk_size, seed
        self.optimizer = optimizer
        self.network = build_network(network, num_classes, seed=seed)
        if privacy.granularity == "sample":
            self.network = without_batch_norm(self.network)
        if weights is not None:
            load_weights(self.network, weights)
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")
        self._batches: list[ClientBatch] = []
        self._clean: _Clean | None = None

    def setup(self, stage: str) -> None:
        """Refuse a training without an end.

        Args:
            stage: The trainer's stage.
        """
        if stage == "fit" and self.trainer.max_steps < 0 and (self.trainer.max_epochs or -1) < 0:
            raise UserError("the training has no end: give --trainer.max_epochs or --trainer.max_steps")

    def bind(self, batches: list[ClientBatch]) -> None:
        """Give every client its pictures.

        Args:
            batches: one batch for each client, all of one size and shape.

        Raises:
            UserError: a label that the network has no class for.
        """
        for batch in batches:
            if not 0 <= int(batch.labels.min()) <= int(batch.labels.max()) < self.num_classes:
                raise UserError(
                    f"the pictures have labels up to {int(batch.labels.max())}, the network has {self.num_classes} "
                    "classes: raise --model.client.num_classes"
                )
        self._batches = list(batches)
        self._clean = None

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
        )

    def share(self, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        """Answer one round's payload with a privatised update, in float32 whatever the trainer's precision.

        Args:
            payload: what the server adds to the network; an empty one adds nothing.
            client: index of the client, from 0.
            draw: index of the noise realisation, from 0.
            round: index of the round, from 0.

        Returns:
            The update, on the module's device: the same for the same arguments. The noise is independent between
            clients, draws and rounds; another payload in the same place meets the same noise, as in a second run.
            Granularity "sample": the sum of the clipped gradients plus noise; "update": the clipped gradient of the
            mean loss plus noise.

        Raises:
            UserError: a gradient holds NaN or infinity.
        """
        clean = self._clean_update(payload, client)
        gradient = {name: tensor.clone() for name, tensor in clean.gradient.items()}
        add_noise(gradient, self.privacy.noise_std, noise_generator(self.seed, client, draw, round))
        return ClientUpdate(client=client, draw=draw, round=round, gradient=gradient, payload=clean.payload)

    def preview(self, payload: ServerPayload, client: int) -> Release:
        """Say in numbers what the client would answer, without answering.

        Args:
            payload: what the server adds to the network.
            client: index of the client, from 0.
        """
        clean = self._clean_update(payload, client)
        before, after, structure = [], [], 0.0
        for norms in clean.norms:
            factors = factors_of(norms, self.privacy.max_grad_norm, self.privacy.per_layer)
            clipped = {name: norm * factors[name] for name, norm in norms.items()}
            before.append(math.hypot(*norms.values()))
            after.append(math.hypot(*clipped.values()))
            structure += sum(norm**2 for name, norm in clipped.items() if name.startswith("structure."))
        parameters = sum(tensor.numel() for tensor in clean.gradient.values())
        return Release(
            norms=before,
            clip_factors=[a / b if b > 0 else 1.0 for a, b in zip(after, before, strict=True)],
            structure_share=structure / max(sum(norm**2 for norm in after), 1e-300),
            noise_std=self.privacy.noise_std,
            noise_norm=self.privacy.noise_std * math.sqrt(parameters),
            parameters=parameters,
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """One step of DP training: clip, sum over ranks, add noise, step."""
        images, labels = batch
        privacy, ranks, reduce = self.privacy, self.trainer.world_size, self.trainer.strategy.reduce
        bound = privacy.max_grad_norm, privacy.per_layer
        with self._seeded(TRAINING, self.global_step):
            if privacy.granularity == "sample":
                summed, _, loss = clipped_sum(self.network, F.cross_entropy, images, labels, *bound, self.chunk_size)
                gradient = {name: reduce(tensor, reduce_op="sum") for name, tensor in summed.items()}
                divisor = len(images) * ranks
            else:
                buffers = dict(self.network.named_buffers())
                mean, loss = mean_gradient(self.network, F.cross_entropy, images, labels, buffers)
                gradient = clip({name: reduce(tensor, reduce_op="mean") for name, tensor in mean.items()}, *bound)
                divisor = 1
        # Every rank adds the same noise to the same sum, so that the networks stay equal and the noise counts once.
        add_noise(gradient, privacy.noise_std, noise_generator(self.seed, TRAINING, 0, self.global_step))
        for name, parameter in self.network.named_parameters():
            parameter.grad = gradient[name].div_(divisor)
        optimizer: Any = self.optimizers()
        optimizer.step()
        optimizer.zero_grad()
        self.log("train_loss", loss, prog_bar=True, sync_dist=ranks > 1)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Accuracy on pictures that were not trained on."""
        images, labels = batch
        self.accuracy(self.network(images), labels)
        self.log("val_accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser of training the network itself."""
        return self.optimizer(self.network.parameters())

    def _clean_update(self, payload: ServerPayload, client: int) -> "_Clean":
        """The clipped update before noise, computed once for all draws and rounds of the same payload."""
        digest, parameters = payload.digest(), list(self.network.parameters())
        # The version counters change with every step of training.
        key = (digest, client, str(self.device), sum(parameter._version for parameter in parameters))
        if self._clean is None or self._clean.key != key:
            self._clean = None  # frees the memory first
            bound = self.privacy.max_grad_norm, self.privacy.per_layer
            with self._seeded(client, 0):
                # Clones, because tensors that were made in inference mode cannot be differentiated.
                images = self._batches[client].images.to(self.device, torch.float32).clone()
                labels = self._batches[client].labels.to(self.device).clone()
                model = self._tampered(payload)
                if self.privacy.granularity == "sample":
                    gradient, norms, _ = clipped_sum(model, F.cross_entropy, images, labels, *bound, self.chunk_size)
                else:
                    gradient, _ = mean_gradient(model, F.cross_entropy, images, labels)
                    norms = [tensor_norms(gradient)]
                    factors = factors_of(norms[0], *bound)
                    for name, tensor in gradient.items():
                        tensor.mul_(factors[name])
            self._clean = _Clean(key, digest, gradient, norms)
        return self._clean

    def _tampered(self, payload: ServerPayload) -> nn.Module:
        model: nn.Module
        if payload.settings or payload.tensors:
            model = TamperedNetwork(self.network, InferenceStructure(payload).to(self.device))
        else:
            model = nn.Sequential(OrderedDict(network=self.network))
        if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
            model = deepcopy(model).float()
        return model

    def _seeded(self, client: int, step: int) -> AbstractContextManager[None]:
        dropout = noise_generator(self.seed, client, DROPOUT, step).initial_seed()
        return exactly(self.network, self.device, dropout, self.batch_norm == "train")


@dataclass(frozen=True)
class _Clean:
    """An update before noise, with what it belongs to: never leaves the client."""

    key: tuple[str, int, str, int]
    payload: str
    gradient: dict[str, Tensor]
    norms: list[dict[str, float]]
