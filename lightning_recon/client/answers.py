# SPDX-License-Identifier: Apache-2.0
"""The clients' side of a round: from the server's payload and their images to the update that they send."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_recon.client.batches import answering_client, drawn_images, present
from lightning_recon.client.clean_update import (
    CleanUpdate,
    Digests,
    clean_key,
    on_device,
    tampered_model,
    version_of_batch,
)
from lightning_recon.client.clipping_norms import ClippingNorms
from lightning_recon.client.gradients import reproducible_fp32
from lightning_recon.client.local_options import LocalOptions
from lightning_recon.client.local_training import LocalRandomness, LocalRound, randomness_of
from lightning_recon.client.noise_key import Generators
from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.client.privatize import added, noised_when_read, privatized
from lightning_recon.client.quantize import add_steps, modular_sum, quantized, shrunk_for_rounding
from lightning_recon.client.silenced_network import (
    KnownOutputs,
    Place,
    Silenced,
    recorded_passes,
    remember,
    silences,
)
from lightning_recon.client.update import Clipped, clipped_update, nothing, summed, zero_gradients
from lightning_recon.data.sources import ClientBatch
from lightning_recon.exchange import (
    BatchSampling,
    ClientUpdate,
    Compression,
    LocalTraining,
    Quantization,
    ServerPayload,
)
from lightning_recon.losses import LossName, loss_named
from lightning_recon.networks.setup_check import explained_batch_norm
from lightning_recon.networks.torch_internals import version_of
from lightning_recon.privacy.correlated_noise import noise_coefficients
from lightning_recon.privacy.integer_noise import IntegerMechanism
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.rng import generator_for

Drawn = tuple[tuple[int, ...], int, int]  # clients that answer, draw, round


@dataclass
class LastClean:
    """The last update before noise, which many draws and rounds share.

    Args:
        update: the update.
        silenced: of networks that the server silences, what rounds with other payloads share too.
        digests: of the clients' images and of the network.
    """

    update: CleanUpdate | None = None
    silenced: dict[Place, Silenced] = field(default_factory=dict)
    digests: Digests = field(default_factory=Digests)


@dataclass(frozen=True)
class Clients:
    """Clients with their images; arguments that are not listed are those of `VictimClient`.

    Args:
        network: the network that they received, on the device.
        device: where it is.
        batches: images of every client.
        privacy: clip, and the noise of each client's own update.
        noise_source: the secret key of everything that a server must not know.
        batch_size: images in a round, where batches are sampled.
        last: the last update before noise; replaced by the next one.
        clips: the clipping norms of all rounds so far, where they follow from the rounds; None: they stay.
        norms: gets the norms before the clip of all gradients that are clipped.
        first: number of the first of these clients among all clients of the run, see `DataProtocol`.
    """

    network: nn.Module
    device: torch.device
    batches: Sequence[ClientBatch]
    privacy: Privacy
    batch_norm: Literal["train", "eval"]
    participation: float
    aggregated: int
    local: LocalOptions
    compression: Compression | None
    chunk_size: int
    seed: int
    noise_source: NoiseSource
    sampling: BatchSampling
    batch_size: int
    last: LastClean = field(default_factory=LastClean)
    quantization: Quantization | None = None
    dropout: float = 0.0
    clips: ClippingNorms | None = None
    norms: list[float] = field(default_factory=list)
    first: int = 0
    loss: LossName = "cross_entropy"

    def share(self, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        """One client's update, or the sum of a group's, see `VictimClient.share`."""
        update = self._clipped_share(payload, client + self.first // self.aggregated, draw, round)
        return replace(update, client=client)

    def _clipped_share(self, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        """The same by the client's number, or the group's, among all of the run, as everything below."""
        if self.clips is None:
            return self._share(payload, client, draw, round)
        clip = self.clips.of(client, draw, round)
        own = replace(self, privacy=replace(self.privacy, max_grad_norm=clip), norms=[])
        update = own._share(payload, client, draw, round)
        contributors = update.contributors or self.aggregated
        expected = contributors * (self.batch_size if self.privacy.granularity == "sample" else 1)
        self.clips.follow(client, draw, round, own.norms, expected)
        return replace(update, max_grad_norm=clip)

    def _share(self, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        """The same under one clipping norm."""
        whole = tuple(range(client * self.aggregated, (client + 1) * self.aggregated))
        members = present(whole, self.dropout, draw, round, self.noise_source)
        # Each client compresses or rounds its own update. Otherwise the clipped updates are summed first, once.
        alone = self.compression is not None or self.quantization is not None
        parts = [(member,) for member in members] if alone else [members]
        digest = payload.digest()
        if self.noise_source.seed is None and self.privacy.noise_multiplier > 0:
            self.noise_source.check_single_use(client, draw, round, self._content(digest, (members, draw, round)))
        releases = (self._release(payload, digest, (part, draw, round)) for part in parts)
        if self.quantization is None:
            gradient = added(releases)
        else:
            rounded = (self._rounded(one, part[0], draw, round) for one, part in zip(releases, parts, strict=True))
            gradient = modular_sum(rounded, self.quantization)
        return ClientUpdate(
            client=client,
            draw=draw,
            round=round,
            gradient=gradient,
            payload=digest,
            reproducible_noise=self.noise_source.seed is not None,
            contributors=len(members) if self.dropout else None,
        )

    def _content(self, digest: str, drawn: Drawn) -> tuple[object, ...]:
        """All that an update is computed from, noise apart; equal for equal updates, after another `bind` too."""
        members, draw, round = drawn
        answering = [self._answering(one, draw, round) for one in members]
        images = tuple(self.last.digests.of_batch(one, self._batch(one)) for one in answering)
        training = self.local, self.loss, self.batch_norm, self.seed, self.sampling, self.batch_size
        release = self.privacy, self.compression, self.quantization
        return digest, members, images, self.last.digests.of_weights(self.network), training, release

    def preview(self, payload: ServerPayload, client: int) -> Clipped:
        """One client's update before noise and compression; that of the first step, if local steps are of DP-SGD."""
        client += self.first
        if not self._trains_privately(client):
            return self._clean_update(payload, payload.digest(), (client,), ((client,), 0, 0))
        return self._clipped(payload, client, None, self._drawn(client, 0, 0))

    def reproducible(self, client: int, step: int) -> AbstractContextManager[None]:
        """Dropout that depends on client and step alone, and batch normalization in its mode."""
        return self._reproducible(self.network, client, step)

    def _reproducible(self, network: nn.Module, client: int, step: int) -> AbstractContextManager[None]:
        dropout = generator_for("dropout", self.seed, client, step).initial_seed()
        return reproducible_fp32(network, self.device, dropout, self.batch_norm == "train")

    def _trains_privately(self, client: int) -> bool:
        """Whether each local step is one of DP-SGD, so that the update has its noise from them."""
        whole = self.sampling.method == "all"
        local = self._local_training(len(self._batch(client).labels) if whole else self.batch_size)
        return self.privacy.granularity == "sample" and not local.is_plain_step

    def _release(self, payload: ServerPayload, digest: str, drawn: Drawn) -> Mapping[str, Tensor]:
        """The update of one client, or the sum of several without compression."""
        members, draw, round = drawn
        clean = self._clean_update(payload, digest, tuple(self._answering(one, draw, round) for one in members), drawn)
        self.norms[len(self.norms) :] = [self.privacy.clip.norm(norms.values()) for norms in clean.norms]
        in_steps = isinstance(self.privacy.noise, IntegerMechanism)  # which is added after rounding
        without = clean.has_noise or in_steps
        noise = [] if without else [term for one in members for term in self._noise(one, draw, round)]
        if self.compression is None:
            return noised_when_read(clean.gradient, self.privacy, noise)
        # All clients of a group keep the same random entries: only those can be added up in secret.
        shared = self.compression.method == "random_k"
        place = members[0] // self.aggregated if shared else members[0]
        return privatized(
            {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in clean.gradient.items()},
            self.privacy,
            noise,
            self.compression,
            self.noise_source.generator("compression", place, draw, round),
        )

    def _rounded(self, release: Mapping[str, Tensor], client: int, draw: int, round: int) -> dict[str, Tensor]:
        """One client's update as secure aggregation adds it up: whole numbers, with noise in whole numbers."""
        assert self.quantization is not None
        source = self.noise_source
        release = shrunk_for_rounding(dict(release), self.privacy, self.quantization)
        steps = quantized(
            release, self.quantization, lambda name: source.generator("rounding", client, draw, round, name)
        )
        return add_steps(steps, self.privacy, self.quantization, source.generators(client, draw, round))

    def _noise(self, client: int, draw: int, round: int) -> list[tuple[float, Generators]]:
        """The independent noises that a client's noise in a round is made of, and their coefficients."""
        coefficients = noise_coefficients(min(self.privacy.noise_bands, round + 1))
        return [(one, self.noise_source.generators(client, draw, round - lag)) for lag, one in enumerate(coefficients)]

    def _clean_update(self, payload: ServerPayload, digest: str, clients: tuple[int, ...], drawn: Drawn) -> Clipped:
        """The sum of clipped updates, computed once for all draws and rounds if it does not depend on them."""
        members, draw, round = drawn
        random = self.local.shuffle or any(self._trains_privately(client) for client in clients)
        random = random or self.sampling.method != "all"
        depends = (*drawn, self.privacy) if random else (self.privacy.max_grad_norm,)
        versions = tuple((client, version_of_batch(self._batch(client))) for client in clients)
        key = clean_key(digest, versions, self.network, self.device, depends)
        if self.last.update is None or self.last.update.key != key:
            self.last.update = None  # frees the memory first
            each = (
                self._clipped(
                    payload,
                    client,
                    randomness_of(self.noise_source, member, draw, round),
                    self._drawn(client, draw, round),
                )
                for client, member in zip(clients, members, strict=True)
            )
            self.last.update = CleanUpdate(key, summed(each))
        return self.last.update.clipped

    def _drawn(self, client: int, draw: int, round: int) -> Tensor | None:
        """Which images of a client a round is about; None: all."""
        count = len(self._batch(client).labels)
        return drawn_images(self.sampling, self.batch_size, count, (client, draw, round), self.noise_source)

    def _clipped(
        self, payload: ServerPayload, client: int, randomness: LocalRandomness | None, drawn: Tensor | None
    ) -> Clipped:
        """One client's own update after clipping; without randomness, of its first step alone."""
        count = len(self._batch(client).labels)
        chosen = tuple(range(count) if drawn is None else drawn.tolist())
        place = client, str(self.device), version_of(self.network), version_of_batch(self._batch(client))
        reuses = self._reuses_outputs(payload, len(chosen))
        silenced = self.last.silenced.get(place) if reuses else None
        known = None if silenced is None else silenced.outputs(chosen)
        network = self.network if known is None else KnownOutputs(known)
        with (
            self._reproducible(network, client, 0),
            explained_batch_norm(),
            recorded_passes(network, self.device, reuses and known is None) as passes,
        ):
            model = tampered_model(network, payload, self.device)
            images, labels = on_device(self._batch(client), self.device)
            if drawn is not None:
                images, labels = images[drawn], labels[drawn]
            local, training = self._local_training(len(images)), None
            if not local.batches(len(images)):
                images, labels = images[:0], labels[:0]
            # Local steps of DP-SGD have noise of their own, also where there is no image.
            if not len(images) and (randomness is None or not self._trains_privately(client)):
                return nothing(model)
            if randomness is None:
                first = local.first_step(len(images))
                images, labels = images[first], labels[first]
            else:
                expected = None if drawn is None else self.batch_size
                training = LocalRound(local, self.local.new_optimizer, randomness, expected)
            loss, zeros = loss_named(self.loss), zero_gradients(model) if silenced is None else silenced.zeros
            clipped = clipped_update(model, images, labels, self.privacy, self.chunk_size, training, loss, zeros)
        if reuses and known is None:
            silenced = Silenced(zeros) if silenced is None else silenced
            silenced.learn(chosen, passes, images[0].numel(), apart=self.privacy.granularity == "sample")
            remember(self.last.silenced, place, silenced, most=self.aggregated)
        return clipped

    def _reuses_outputs(self, payload: ServerPayload, images: int) -> bool:
        """Whether later rounds with as many images can use this one's outputs of the network."""
        one_by_one = self.privacy.granularity == "update" or self.chunk_size == 1
        return images > 0 and one_by_one and self._local_training(images).is_plain_step and silences(payload)

    def _local_training(self, images: int) -> LocalTraining:
        """The local training of a round with so many images."""
        whole = self.sampling.method == "all"
        return self.local.announced(images) if whole else self.local.in_round(self.batch_size, images)

    def _batch(self, client: int) -> ClientBatch:
        """The images of a client, by its number among all clients of the run."""
        return self.batches[client - self.first]

    def _answering(self, client: int, draw: int, round: int) -> int:
        return answering_client(
            client,
            draw,
            round,
            clients=self.first + len(self.batches),
            aggregated=self.aggregated,
            participation=self.participation,
            noise_source=self.noise_source,
        )
