# SPDX-License-Identifier: Apache-2.0
"""Simulated clients that train on images and release clipped, noisy updates."""

import math
from copy import copy
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from lightning_recon.client.accountant import Accountant
from lightning_recon.client.answers import Clients, LastClean
from lightning_recon.client.batches import check_batches
from lightning_recon.client.clipping_norms import ClippingNorms
from lightning_recon.client.dp_sgd import private_gradient
from lightning_recon.client.local_options import LocalOptions
from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.client.option_checks import check_quantization, check_rounds, check_sum
from lightning_recon.client.poisson_sampler import TRAINING, PoissonSampler, sampler_of
from lightning_recon.client.privatize import check_compression
from lightning_recon.client.update import Release, release_of
from lightning_recon.data.sources import ClientBatch, DataProtocol
from lightning_recon.errors import UserError
from lightning_recon.exchange import (
    BatchSampling,
    ClientUpdate,
    Compression,
    NoiseShare,
    Quantization,
    Sampling,
    ServerPayload,
    Task,
)
from lightning_recon.image_format import ImageFormat
from lightning_recon.losses import LossName, are_maps, as_targets, check_outputs, loss_named
from lightning_recon.networks.batch_norm import BatchNorm
from lightning_recon.networks.normalization import Normalization, announced, resolve, without_wrapper
from lightning_recon.networks.target_network import TargetNetwork
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.ranges import COUNT, FRACTION, SEED, SHARE, SIZE, check_ranges


class VictimClient(LightningModule):
    """Simulated clients of federated learning that release clipped, noisy updates.

    An attack asks for updates with `share`. Fitted on its own (`recon fit --model VictimClient`), the module trains the
    target network under the same mechanism, and logs the privacy loss of all steps so far as `epsilon` after every
    epoch:

    - Granularity "sample" is DP-SGD. Batches are Poisson samples whose expected size over all ranks is the data
      module's batch size. Epsilon protects the presence of one image ("add_remove") or its content ("replace_one"),
      with privacy amplification by subsampling.
    - Granularity "update" clips the gradient of each shuffled batch once. Every step counts as one release of a whole
      update, composed without amplification. Epsilon says nothing about single images.

    Epsilon covers all steps of this object: a second training, by a new `Trainer`, draws noise of its own, and its
    steps are added to those of the first. Going back to a checkpoint takes no step back; steps that are repeated from
    there count again. A new object knows only the steps that its checkpoint counts. Epsilon does not cover the training
    behind `weights`, logged losses and accuracies, or the statistics of batch normalization (granularity "sample" has
    none).
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
        local: LocalOptions = LocalOptions(),  # noqa: B008 - frozen
        compression: Compression | None = None,
        chunk_size: int = 1,
        seed: int = 0,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        normalization: Normalization = "auto",
        noise_seed: int | None = None,
        noise_key_folder: str | None = None,
        sampling: Sampling = "all",
        quantization: Quantization | None = None,
        client_dropout: float = 0.0,
        loss: LossName = "cross_entropy",
    ) -> None:
        """Build the network; `bind` provides the images.

        Args:
            network: "convnet", a torchvision or timm name, or the path of a class that takes `num_classes`.
            num_classes: number of classes of the network; of labels, values or channels under other losses.
            weights: file of a state dict, or a checkpoint of a fitted VictimClient; null: untrained.
            privacy: clipping and noise.
            batch_norm: under granularity "update", whether batch normalization uses the batch ("train") or its running
                statistics ("eval").
            participation: probability, above 0, with which a client answers a round on its own batch. Otherwise it
                answers on another client's batch. The server knows this probability, but not which rounds they are,
                and the accounting claims no amplification from it.
            aggregated: number of clients whose updates reach the server only as their sum (secure aggregation, N); must
                divide the number of clients. Each client clips its own update and adds its own noise.
            noise_share: noise of each aggregated client. "local" (local DP): scale zC, so that each client's guarantee
                holds without secure aggregation; the sum has zC sqrt(N). "distributed": zC / sqrt(N), so that the sum
                has zC; the guarantee is that of the sum, and holds only if all N clients add their noise and the server
                sees nothing but the sum.
            local: local training. Under granularity "update" the change of the weights is clipped and noised once;
                under "sample" every local step is one of DP-SGD, and nothing is added to their result.
            compression: lossy compression of each client's update; null: none.
            quantization: secure aggregation of whole numbers, as Flower's SecAgg+ has it: each client rounds its update
                at random to steps, and the server gets the sum modulo a number of them; null: sums of real numbers.
            client_dropout: probability, below 1, with which a client of a group drops out of a round, so that the sum
                lacks its update and its noise. Epsilon of distributed noise counts that.
            chunk_size: under granularity "sample", samples differentiated at once; each takes the memory of one copy of
                all parameters, the server's layer included.
            seed: seed of the untrained weights and of dropout.
            optimizer: optimizer for fitting the network itself.
            normalization: how the network normalizes images in [0, 1]: "none", "imagenet" (its mean and standard
                deviation), or `mean` and `std`, three numbers each. "auto": none for class paths; ImageNet's for
                "convnet"; for torchvision and timm networks that of their published weights, or ImageNet's if they have
                none.
            noise_seed: null: the noise, the Poisson samples of DP-SGD and the participation come from a secret that is
                drawn anew for every run and that the run folder does not hold. A number: they are reproducible, and
                anyone who knows the number can subtract the noise; for tables and tests.
            noise_key_folder: folder in which the secret is kept while a run may need it after an interruption, outside
                the run folder; null: $LIGHTNING_RECON_NOISE_KEYS or ~/.local/state/lightning_recon/noise_keys.
            sampling: which of its images, of which `--data.local_images` gives the number, a client uses in a round:
                "all" of them; "shuffle", the batches of a data loader that shuffles them in every epoch; "fixed_size",
                a batch drawn anew in every round; "poisson", every image independently with the same probability, as in
                DP-SGD. The server knows how, but not which.
            loss: what the network is trained by: "cross_entropy" of one class, or of a class of every pixel;
                "binary_cross_entropy" of several labels, or of the pixels of masks; "mean_squared_error" of values;
                "dice", or "dice_bce" (its sum with the binary cross-entropy), of masks. Class indices become one-hot
                vectors where every output has its target; for other targets see `--data.targets`.
        """
        super().__init__()
        check_ranges(
            "--model.client.",
            num_classes=(num_classes, SIZE),
            participation=(participation, SHARE),
            aggregated=(aggregated, COUNT),
            chunk_size=(chunk_size, COUNT),
            seed=(seed, SEED),
            noise_seed=(noise_seed, SEED),
            client_dropout=(client_dropout, FRACTION),
        )
        check_sum(aggregated, noise_share, client_dropout, privacy.noise)
        check_compression(compression, privacy, aggregated)
        check_outputs(loss, num_classes)
        self.automatic_optimization = False
        self.local, self.compression = local, compression
        self.privacy, self.batch_norm, self.chunk_size, self.seed = privacy, batch_norm, chunk_size, seed
        self.participation, self.optimizer = participation, optimizer
        self.aggregated, self.noise_share = aggregated, noise_share
        self.sampling, self.loss = sampling, loss
        self.quantization, self.client_dropout = quantization, client_dropout
        scale = self.own_noise_multiplier * (privacy.max_grad_norm or 0.0)
        check_quantization(quantization, privacy.noise, scale, privacy.per_layer, compression)
        per_sample = privacy.granularity == "sample"
        self.target = TargetNetwork(network, num_classes, weights, seed, normalization, per_sample)
        self.network, self._misfit = self.target.build_before_data()
        self.accountant = Accountant(privacy)
        self.noise_source = NoiseSource(noise_seed, noise_key_folder, privacy.noise_scale > 0)
        self.accuracy = MulticlassAccuracy(num_classes, average="micro") if loss == "cross_entropy" else None
        self._batches: list[ClientBatch] = []
        self._protocol = DataProtocol(1)
        self._announced = local.announced(None)
        self._last_clean = LastClean()
        self._clips = ClippingNorms.begin(privacy, aggregated, noise_share, self.noise_source)

    # --- Answering a server ---

    def bind(self, batches: list[ClientBatch], protocol: DataProtocol | None = None) -> None:
        """Give every client its images.

        Args:
            batches: one batch for each client; all images have one shape, and batches may differ in size.
            protocol: what is announced of them; None: the size of the largest batch, and nothing else.

        Raises:
            UserError: the batches do not fit the options (see `check_batches`), or the network cannot take the images.
        """
        options = self.aggregated, self.participation, self.local
        if protocol is None:
            check_batches(batches, *options)
        else:
            check_batches(batches, *options, *self._sampling_of(protocol), protocol.first_client)
        if batches:
            largest = max(batches, key=lambda batch: len(batch.images)).images
            shape = largest.shape[1], largest.shape[2], largest.shape[3]
            batches = [replace(batch, labels=self.targets(batch.labels)) for batch in batches]
            self._fit_network(shape, min(2, len(largest)), are_maps(batches[0].labels))
            self._protocol = DataProtocol(len(largest)) if protocol is None else protocol
            self._announced = self.local.announced(self._protocol.batch_size)
            check_rounds(self.privacy, self._announced)
        self._batches = list(batches)
        self._last_clean = LastClean()
        self._clips = ClippingNorms.begin(self.privacy, self.aggregated, self.noise_share, self.noise_source)

    @property
    def task(self) -> Task:
        """What the server knows about the training; after `bind`."""
        _, channels, height, width = self._batches[0].images.shape
        return Task(
            image_shape=(channels, height, width),
            num_classes=self.target.num_classes,
            batch_size=self._protocol.batch_size,
            clients=len(self._batches),
            network=self.target.name,
            granularity=self.privacy.granularity,
            per_layer=self.privacy.per_layer,
            max_grad_norm=self.privacy.max_grad_norm,
            noise_multiplier=self.privacy.noise_multiplier,
            rounds=self.privacy.rounds,
            mechanism=self.privacy.mechanism,
            noise_bands=self.privacy.noise_bands,
            adaptive_clip=self.privacy.adaptive_clip,
            quantization=self.quantization,
            parameter_tensors=len(list(self.network.parameters())),
            parameters=sum(parameter.numel() for parameter in self.network.parameters()),
            aggregated=self.aggregated,
            noise_share=self.noise_share,
            batch_norm=self.batch_norm,
            local=self._announced,
            normalization=announced(resolve(self.target.normalization, self.target.name, self.network, channels)),
            subjects=self._protocol.subjects,
            compression=self.compression,
            sampling=self._sampling_of(self._protocol)[0],
            participation=self.participation,
            client_dropout=self.client_dropout,
            bit_depth=self._protocol.bit_depth,
            loss=self.loss,
        )

    def share(self, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        """Answer one round's payload with a privatized update, in float32 whatever the trainer's precision.

        Args:
            payload: what the server adds to the network; an empty one adds nothing.
            client: index of the client, from 0; under secure aggregation of the group: number i is the sum of
                clients iN to iN + N - 1.
            draw: index of the noise realization, from 0.
            round: index of the round, from 0.

        Returns:
            The update, on the module's device: equal for equal arguments in one run. The noise is independent between
            clients, draws and rounds. It depends on nothing else, so under a secret key only one update is released
            there, whatever the payload, the images and the weights; of changes in place, those through `.data` are not
            seen. Granularity "sample": the sum of the clipped
            gradients plus noise; "update": the clipped gradient of the mean loss plus noise; or what local training
            makes of them, compressed as announced. For a group, the sum of its clients' updates.

        Raises:
            UserError: a gradient holds NaN or infinity; or the noise is secret, and this client has released another
                update in the same round and draw.
        """
        return self._clients.share(payload, client, draw, round)

    def preview(self, payload: ServerPayload, client: int) -> Release:
        """Describe in numbers the update that one client would release on its own, without releasing it.

        Args:
            payload: what the server adds to the network.
            client: index of the client, from 0.

        Returns:
            Of DP-SGD in local steps that of the first step, of the others that before compression.
        """
        return release_of(self._clients.preview(payload, client), self._clients.privacy)

    def labels(self, update: int) -> Tensor:
        """Labels of an update's images, int64, or their other targets: an oracle that no server has.

        Args:
            update: index of the client, or of the group of clients.
        """
        members = self._batches[update * self.aggregated : (update + 1) * self.aggregated]
        return torch.cat([batch.labels for batch in members])

    def targets(self, labels: Tensor) -> Tensor:
        """The targets of the loss for labels of the data, see `losses.as_targets`."""
        return as_targets(self.loss, labels, self.target.num_classes)

    def under_noise(self, noise_multiplier: float) -> "VictimClient":
        """The same clients, with the same network and images, under another noise multiplier; after `bind`."""
        other = copy(self)
        other.privacy = replace(self.privacy, noise_multiplier=noise_multiplier)
        other._clips = ClippingNorms.begin(other.privacy, self.aggregated, self.noise_share, self.noise_source)
        return other

    @property
    def own_noise_multiplier(self) -> float:
        """Scale of the noise that each client adds itself, divided by the clipping norm."""
        distributed, adaptive = self.noise_share == "distributed", self.privacy.adaptive_clip
        z = self.privacy.noise_multiplier
        z = z if adaptive is None else adaptive.update_multiplier(z)
        return z / (math.sqrt(self.aggregated) if distributed else 1.0)

    @property
    def reproducible_noise(self) -> bool:
        """Whether anyone who knows the config can regenerate the noise."""
        return self.noise_source.seed is not None

    @property
    def normalises_batches(self) -> bool:
        """Whether the network has batch normalization, so that `batch_norm` matters."""
        return any(isinstance(module, BatchNorm) for module in self.network.modules())

    def _fit_network(self, image_shape: tuple[int, int, int], count: int, maps: bool | None) -> None:
        network = self.target.fit(self.network, self._misfit, image_shape, count, maps)
        self.network, self._misfit = network.to(self.device), None

    @property
    def _clients(self) -> Clients:
        return Clients(
            network=self.network,
            device=self.device,
            batches=self._batches,
            privacy=replace(self.privacy, noise_multiplier=self.own_noise_multiplier, adaptive_clip=None),
            batch_norm=self.batch_norm,
            participation=self.participation,
            aggregated=self.aggregated,
            local=self.local,
            compression=self.compression,
            chunk_size=self.chunk_size,
            seed=self.seed,
            noise_source=self.noise_source,
            sampling=self._sampling_of(self._protocol)[0],
            batch_size=self._protocol.batch_size,
            last=self._last_clean,
            quantization=self.quantization,
            dropout=self.client_dropout,
            clips=self._clips,
            first=self._protocol.first_client,
            loss=self.loss,
        )

    def _sampling_of(self, protocol: DataProtocol) -> tuple[BatchSampling, int]:
        """How batches are drawn from what clients hold, and the number of images in a batch."""
        return BatchSampling(self.sampling, protocol.local_images), protocol.batch_size

    # --- Training the target network ---

    def setup(self, stage: str) -> None:
        """Refuse a training without an end, and one of aggregated clients.

        Args:
            stage: the trainer's stage.
        """
        if stage == "fit" and self.aggregated > 1:
            raise UserError(f"--model.aggregated is {self.aggregated}: leave it out where a target network is trained")
        if stage == "fit":
            check_rounds(self.privacy, None)
        if stage == "fit" and self.trainer.max_steps < 0 and (self.trainer.max_epochs or -1) < 0:
            raise UserError("the training has no end: give --trainer.max_epochs or --trainer.max_steps")

    def fit_to_images(self, image_format: ImageFormat) -> None:
        """Adapt the network to the images that it is trained on; called by the data module before the first step.

        Args:
            image_format: of the images.
        """
        if not self._batches:
            # The targets are not known yet: a network that does not fit them is refused in the first step.
            self._fit_network(image_format.shape, 2, True if self.loss.startswith("dice") else None)

    def sampler(self, count: int, batch_size: int) -> PoissonSampler | None:
        """How batches are drawn when the network itself is trained; called by the data module.

        Args:
            count: number of training images.
            batch_size: their expected number in a step.

        Returns:
            The sampler of DP-SGD; None under granularity "update", which uses shuffled batches.
        """
        if self.privacy.granularity == "update":
            return None
        place = self.trainer.global_rank, self.trainer.world_size
        return PoissonSampler(count, batch_size, self.noise_source, lambda: self.global_step, *place)

    def configure_callbacks(self) -> list[Callback]:
        """Accountant and noise of the training; Lightning ignores them where this module is the client of an attack."""
        return [self.accountant, self.noise_source]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer for the network itself."""
        return self.optimizer(self.network.parameters())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """One step of DP training: clip, sum over ranks, add noise, step."""
        images, labels = batch
        sampled, step = self.privacy.granularity == "sample", self.global_step
        with self._clients.reproducible(TRAINING, step):
            gradient, loss = private_gradient(
                self.network,
                images,
                self.targets(labels),
                self.privacy,
                expected=sampler_of(self.trainer).expected if sampled else len(images),
                chunk_size=self.chunk_size,
                noise=self.noise_source.generators(TRAINING, self.noise_source.trainings, step),
                reduce=lambda tensor, how: self.trainer.strategy.reduce(tensor, reduce_op=how),
                loss=loss_named(self.loss),
            )
        for name, parameter in self.network.named_parameters():
            parameter.grad = gradient[name]
        optimizer: Any = self.optimizers()
        optimizer.step()
        optimizer.zero_grad()
        if not loss.isnan():  # a Poisson sample may be empty
            self.log("train_loss", loss, prog_bar=True)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Accuracy on images that were not trained on, or the loss where the network does not choose a class."""
        images, targets = batch[0], self.targets(batch[1])
        outputs = self.network(images)
        if self.accuracy is None:
            self.log("val_loss", loss_named(self.loss)(outputs, targets), prog_bar=True, batch_size=len(images))
        else:
            self.accuracy(outputs, targets)
            self.log("val_accuracy", self.accuracy, prog_bar=True)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also read checkpoints of earlier versions, in which a wrapper normalized the images.

        Args:
            checkpoint: what was read.
        """
        checkpoint["state_dict"] = without_wrapper(checkpoint["state_dict"], self.state_dict(), "network.")
