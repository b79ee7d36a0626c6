# SPDX-License-Identifier: Apache-2.0
"""The parameters of the training that the server knows, because it announces them to the clients."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from lightning_recon.exchange.batch_sampling import BatchSampling
from lightning_recon.exchange.compression import Compression
from lightning_recon.exchange.earlier_tasks import completed
from lightning_recon.exchange.local_training import LocalTraining
from lightning_recon.exchange.quantization import Quantization
from lightning_recon.files import schema
from lightning_recon.files.faults import readable
from lightning_recon.files.serialization import read_json, validated, write_json
from lightning_recon.image_format import ImageFormat
from lightning_recon.losses import LossName
from lightning_recon.networks.normalization import ChannelStatistics, Normalization
from lightning_recon.privacy.adaptive_clipping import AdaptiveClip
from lightning_recon.privacy.clipping import Clip
from lightning_recon.privacy.correlated_noise import equivalent_multiplier
from lightning_recon.privacy.gaussian import Gaussian
from lightning_recon.privacy.incomplete_sums import accounted_mechanism
from lightning_recon.privacy.integer_noise import IntegerMechanism
from lightning_recon.privacy.mechanism import Mechanism
from lightning_recon.privacy.parameters import mechanism_named

NoiseShare = Literal["local", "distributed"]
# The most numbers that the images of one update, or the logits of them, may be: 8 GiB in float32.
MOST_NUMBERS = 1 << 31


@dataclass(frozen=True)
class Task:
    """What the server knows because it runs the training; these parameters are announced, not estimated.

    Args:
        image_shape: channels, height and width of one image, in pixels; its values are in [0, 1] when they enter the
            network, which normalizes them itself, see `normalization`.
        num_classes: number of classes of the network; of labels, values or channels under other losses than
            cross-entropy.
        batch_size: number of images in one client's batch (B). A client may have more or fewer, which it does not say.
        clients: number of clients.
        network: name of the target network.
        granularity: what is clipped: each sample's gradient, or the client's whole update.
        per_layer: whether each of the L tensors is clipped on its own, to C/sqrt(L).
        max_grad_norm: clipping norm C; None if nothing is clipped.
        noise_multiplier: scale of the noise divided by C (z): of each client's own update, or of the sum, as
            `noise_share` says.
        rounds: number of updates of every client (T).
        parameter_tensors: number of parameter tensors of the network, without the server's layer.
        aggregated: number of clients whose updates reach the server only as their sum (secure aggregation, N); 1: no
            aggregation.
        noise_share: noise of each aggregated client: "local", zC, so that the sum has zC sqrt(N); "distributed",
            zC / sqrt(N), so that the sum has zC.
        batch_norm: whether batch normalization uses the batch ("train") or its running statistics ("eval").
        local: how each client trains between the model that it receives and the update that it sends. Records of
            earlier versions have `local_steps`, `local_lr` and `local_epochs` instead, or mean one step of plain SGD.
        normalization: how the network normalizes its input images: "none", "imagenet", or mean and standard deviation;
            "auto" is resolved from the name by `networks.build_network`. Records of earlier versions do not have this
            field and mean "imagenet".
        mechanism: name of the mechanism, see `privacy.parameters.mechanism_named`. Records of earlier versions do not
            have this field and mean "gaussian".
        subjects: whether clients cut the subject out on black before they train; None: not announced, which records
            without this field mean.
        compression: lossy compression of each client's update; None: none.
        parameters: number of parameters of the network, without the server's layer; 0: not announced, which records
            without this field mean.
        sampling: which of its images a client uses in a round. Records of earlier versions do not have this field and
            mean the same batch in every round.
        participation: probability with which a client answers a round on its own images, not on others; None: not
            announced, which records without this field mean.
        client_dropout: probability with which a client of a sum drops out of a round; the server learns how many are in
            each sum. Records without this field mean 0.
        noise_bands: how many rounds' independent noise the noise of a round is made of, see
            `privacy.correlated_noise`; 1, as in records without this field: independent in every round. Otherwise the
            noise multiplier is that of the independent noise.
        adaptive_clip: how the clipping norm of later rounds follows from the rounds before them, see
            `ClientUpdate.max_grad_norm`; None, as in records without this field: it is C in every round.
        quantization: how updates become integers that are summed modulo a number; None, as in records without this
            field: sums are of real numbers.
        bit_depth: bits of a value of an image, see `ImageFormat`; 8, as in records without this field.
        loss: name of the loss that clients train by; targets are never announced. Records of earlier versions do not
            have this field and mean "cross_entropy".
    """

    # Records are validated against these types when they are read from disk.
    __pydantic_config__: ClassVar[ConfigDict] = schema.STRICT

    image_shape: tuple[schema.Side, schema.Side, schema.Side]
    num_classes: schema.Classes
    batch_size: schema.Batch
    clients: schema.Clients
    network: schema.Name
    granularity: Literal["sample", "update"]
    per_layer: bool
    max_grad_norm: schema.Positive | None
    noise_multiplier: schema.NotNegative
    rounds: schema.Rounds
    parameter_tensors: schema.Rounds
    aggregated: schema.Clients = 1
    noise_share: NoiseShare = "local"
    batch_norm: Literal["train", "eval"] = "train"
    local: LocalTraining = LocalTraining()  # noqa: RUF009 - frozen
    normalization: Normalization = "auto"
    mechanism: schema.Name = "gaussian"
    subjects: bool | None = None
    compression: Compression | None = None
    parameters: Annotated[int, Field(ge=0, le=1 << 40)] = 0
    sampling: BatchSampling = BatchSampling()  # noqa: RUF009 - frozen
    participation: Annotated[float, Field(gt=0, le=1)] | None = None
    client_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    noise_bands: schema.Rounds = 1
    adaptive_clip: AdaptiveClip | None = None
    quantization: Quantization | None = None
    bit_depth: Annotated[int, Field(ge=8, le=16)] = 8
    loss: LossName = "cross_entropy"

    @property
    def image_format(self) -> ImageFormat:
        """Channels, height, width and bit depth of an image."""
        return ImageFormat(*self.image_shape, self.bit_depth)

    @property
    def updates(self) -> int:
        """Number of updates in a round: one for each client, or for each group of aggregated clients."""
        return self.clients // self.aggregated

    @property
    def victims(self) -> int:
        """Announced number of images in an update."""
        return self.aggregated * self.batch_size

    @property
    def local_images(self) -> int:
        """Announced number of images from which the batches of an update's rounds are taken."""
        return self.aggregated * (self.sampling.images or self.batch_size)

    @property
    def batches_change(self) -> bool:
        """Whether rounds are about different images, because batches are sampled or clients do not always take part."""
        return self.sampling.method != "all" or self.participation not in (None, 1.0) or self.client_dropout > 0

    @property
    def presence(self) -> float:
        """Probability with which an image is in a round's update."""
        return self.sampling.rate(self.batch_size) * (self.participation or 1.0) * (1 - self.client_dropout)

    @property
    def expected_rounds(self) -> float:
        """Expected number of rounds that an image is in, at least 1; not rounded, so that bounds are not below it."""
        return max(1.0, self.rounds * self.sampling.rate(self.batch_size))

    @property
    def most_rounds(self) -> int:
        """The most rounds that are accounted for an image: those that it can be in, or all."""
        return self.sampling.accounted(self.granularity, self.noise_bands).most_rounds(self.batch_size, self.rounds)

    @property
    def sharers(self) -> int:
        """Number of images that are clipped together: a client's batch, or one."""
        return self.batch_size if self.granularity == "update" else 1

    @property
    def releases_per_round(self) -> int:
        """How many of a round's noisy sums an image is in: one, or one in each epoch of DP-SGD in local steps.

        The mini-batches of an epoch have no image in common, and so compose in parallel: an image is in one of them, of
        the size of a whole mini-batch, without amplification by sampling, because every image is used in every epoch.
        This holds where a neighbouring data set leaves the other images where they are: one image is replaced, or its
        place stays empty.
        """
        return self.local.epochs if self.granularity == "sample" and not self.local.is_plain_step else 1

    @property
    def values_arrive(self) -> bool:
        """Whether every entry of an update arrives, at a precision of at least 16 bits."""
        return self.compression is None or self.compression.method in ("float16", "bfloat16")

    @property
    def noise(self) -> Mechanism:
        """The mechanism itself."""
        return mechanism_named(self.mechanism)

    @property
    def accounted_noise(self) -> Mechanism:
        """The mechanism whose epsilon and bounds hold for a client's updates: `noise`, or that of incomplete sums."""
        return accounted_mechanism(
            self.noise,
            clients=self.aggregated,
            distributed=self.noise_share == "distributed",
            dropout=self.client_dropout,
            rounds=self.rounds,
            releases=self.releases_per_round,
            noise_bands=self.noise_bands,
            adaptive=self.adaptive_clip is not None,
        )

    @property
    def clip(self) -> Clip:
        """The bound on the norm of a sample's gradient, or of a client's update."""
        return Clip(self.max_grad_norm, self.per_layer, self.noise.norm_order)

    @property
    def independent_multiplier(self) -> float:
        """Noise multiplier of noise that is independent in every round, with the same guarantee for all rounds."""
        return equivalent_multiplier(self.noise_multiplier, self.noise_bands, self.rounds)

    @property
    def update_multiplier(self) -> float:
        """Noise multiplier of one of these updates, for bounds; of correlated noise see `independent_multiplier`.

        A sum of noises that is not of their kind has none. Then it is that of each client: adding up is
        post-processing, so that bounds on one client's update hold for the sum.
        """
        if not self.noise.closed_under_sums:
            return self.independent_multiplier
        return summed_noise(self.independent_multiplier, self.aggregated, self.noise_share)

    @property
    def update_noise(self) -> float:
        """Standard deviation of the noise in an update, divided by C, with that of rounding.

        Of noise that is correlated over rounds when it is whitened.
        """
        own = self.noise_multiplier
        if self.adaptive_clip is not None:
            own = self.adaptive_clip.update_multiplier(own)
        own = equivalent_multiplier(own, self.noise_bands, self.rounds)
        added = summed_noise(own, self.aggregated, self.noise_share) * self.noise.noise_std
        return math.hypot(added, self.rounding_noise) if self.rounding_noise else added

    @property
    def rounding_noise(self) -> float:
        """Standard deviation of the rounding in an update, divided by C; 0 for real numbers."""
        if self.quantization is None or self.max_grad_norm is None:
            return 0.0
        return self.quantization.rounding_noise(self.aggregated) / self.max_grad_norm

    @property
    def noise_terms(self) -> int:
        """Number of independent noise variables in an entry of the mean of all rounds: of rounds, clients and steps."""
        steps = self.local.steps(self.batch_size) if self.granularity == "sample" else 1
        return self.rounds * self.aggregated * steps

    @property
    def noise_is_normal(self) -> bool:
        """Whether the mean of all rounds has normal noise, or nearly: sums of several independent terms do."""
        return isinstance(self.noise, Gaussian) or self.noise_terms > 1 or self.noise_multiplier == 0

    def expects_subjects(self, override: bool | None, otherwise: bool = False) -> bool:
        """Whether a server expects subjects on black.

        Args:
            override: its own setting; None: as announced.
            otherwise: what it expects where nothing is announced.
        """
        announced = otherwise if self.subjects is None else self.subjects
        return announced if override is None else override

    def save(self, folder: Path) -> None:
        """Write `task.json` into the folder."""
        write_json(folder / "task.json", {"format": "task 2", **asdict(self)})

    @classmethod
    def load(cls, folder: Path) -> "Task":
        """Read `task.json` from the folder; a missing or damaged file is a `UserError`."""
        path = folder / "task.json"
        with readable(path):
            content = read_json(path, _RECORD, "task 2")
            return cls.from_record(content)

    @classmethod
    def from_record(cls, content: Mapping[str, Any]) -> "Task":
        """Build a task from the JSON record of its fields.

        Raises:
            ValueError: a field is missing, unknown, of another type or out of bounds, or they contradict each other.
        """
        return check_task(validated(completed(content), TASK))


TASK = TypeAdapter(Task)
_RECORD = TypeAdapter(dict[str, Any])  # not validated before `completed`


def check_task(task: Task) -> Task:
    """Refuse a task whose fields contradict each other, or whose update needs more memory than any real training.

    Returns:
        The task.

    Raises:
        ValueError: the fault, in one line.
    """
    if isinstance(task.normalization, ChannelStatistics):
        task.normalization.check(task.image_shape[0])
    if task.max_grad_norm is None and task.noise_multiplier > 0:
        raise ValueError(
            f"task.noise_multiplier is {task.noise_multiplier:g} but task.max_grad_norm is null: noise without "
            "a clip protects nothing, so set the clipping norm"
        )
    if task.noise_bands > 1 and not isinstance(task.noise, Gaussian):
        raise ValueError(f"task.noise_bands is {task.noise_bands}, which noise of {task.mechanism} cannot have")
    if task.adaptive_clip is not None and task.noise_multiplier >= task.adaptive_clip.noise_limit:
        raise ValueError("task.noise_multiplier is above what task.adaptive_clip.unclipped_num_std allows")
    if isinstance(task.noise, IntegerMechanism) and task.quantization is None:
        raise ValueError(f"task.quantization is null, but noise of {task.mechanism} is on integers")
    if task.noise_share == "distributed" and task.aggregated > 1 and not task.noise.closed_under_sums:
        raise ValueError(f"task.noise_share is distributed, which a sum of {task.mechanism} noises cannot be")
    if task.clients % task.aggregated:
        raise ValueError(f"task.aggregated is {task.aggregated}, which does not divide task.clients, {task.clients}")
    if not task.local.batches(task.batch_size):
        raise ValueError("task.local.batch_size exceeds task.batch_size, and task.local.drop_last drops the rest")
    if not any(task.local.learning_rates):
        raise ValueError("task.local.learning_rates are all 0: nothing would be sent")
    if task.sampling.method != "all" and (task.sampling.images or 0) < task.batch_size:
        raise ValueError(
            f"task.sampling.images is {task.sampling.images}, of which no batches of {task.batch_size} can be drawn"
        )
    if task.local.divisor == 0:
        raise ValueError("task.local.learning_rates begins with 0, by which the update was to be divided")
    for size, what in ((math.prod(task.image_shape), "pixels"), (task.num_classes, "logits")):
        if task.victims * size > MOST_NUMBERS:
            raise ValueError(f"one update is about {task.victims} images with {size} {what} each: too many")
    return task


def summed_noise(noise_multiplier: float, aggregated: int, noise_share: NoiseShare) -> float:
    """Noise of a sum of clients' updates, as `Task` describes it, divided by the clipping norm; for Gaussian noise."""
    return noise_multiplier * (math.sqrt(aggregated) if noise_share == "local" else 1.0)
