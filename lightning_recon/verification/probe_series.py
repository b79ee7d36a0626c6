# SPDX-License-Identifier: Apache-2.0
"""All probes of one verification: silent ones, the network itself, and canaries of a given norm."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lightning_recon.rng import generator_for
from lightning_recon.verification.claims import Claims
from lightning_recon.verification.client_under_test import Batch
from lightning_recon.verification.probes import BLANK, LAYERS, Canaries, ProbeModel

COMMON_NORM = 1e-6  # norm of the gradient that is in every release, in standard deviations of the noise


@dataclass(frozen=True)
class Probes:
    """All that is sent to clients in one verification.

    Args:
        network: the network under test.
        canaries: geometry of the canaries.
        claims: what is claimed, from which norms follow.
        releases: how many silent releases are asked of the first client; of other probes half as many.
        seed: of the choice of canaries.
    """

    network: nn.Module
    canaries: Canaries
    claims: Claims
    releases: int
    seed: int

    @property
    def few(self) -> int:
        """Number of silent releases of the second client, and of the first after a restart."""
        return max(2, self.releases // 8)

    def silent(self) -> tuple[ProbeModel, Batch]:
        """A probe whose release is nothing but noise."""
        blank = torch.full((self.claims.batch_size,), BLANK, dtype=torch.int64)
        return self._model((0.0,) * LAYERS), self.canaries.batch(blank)

    def open(self, number: int) -> tuple[ProbeModel, Batch]:
        """The network itself, on random images."""
        generator = generator_for("open probe", self.seed, number)
        shape = (self.claims.batch_size, *self.canaries.image_shape)
        labels = torch.randint(self.canaries.classes, shape[:1], generator=generator)
        return self._model((0.0,) * LAYERS, silent=False), (torch.rand(shape, generator=generator), labels)

    def with_canaries(self, norm: float, numbers: Tensor, layers: int) -> tuple[ProbeModel, Batch]:
        """A probe with canaries.

        Args:
            norm: norm of their gradients, in clipping norms.
            numbers: which, see `Canaries.batch`.
            layers: into how many of the server's layers they send their gradients.
        """
        gain = self.canaries.gain(norm * self.claims.max_grad_norm / layers**0.5 / self._rate)
        return self._model([gain] * layers + [0.0] * (LAYERS - layers)), self.canaries.batch(numbers)

    def chosen(self, number: int) -> tuple[Tensor, Tensor]:
        """The canaries of one release.

        Args:
            number: of the release.

        Returns:
            The canary of each image in the batch, and which canaries are in the batch, (count,) bool. Each canary is
            in with probability 1/2, on its own; where the update is clipped as a whole there is one in all images.
        """
        size, count = self.claims.batch_size, self.canaries.count
        generator = generator_for("canaries", self.seed, number)
        if self.claims.privacy.granularity == "update":
            present = torch.zeros(count, dtype=torch.bool)
            present[number % count] = bool(torch.rand((), generator=generator) < 0.5)
            return torch.full((size,), number % count if present.any() else BLANK, dtype=torch.int64), present
        present = torch.rand(count, generator=generator) < 0.5
        numbers = torch.full((size,), BLANK, dtype=torch.int64)
        numbers[:count] = torch.where(present, torch.arange(count), BLANK)
        return numbers, present

    @property
    def _rate(self) -> float:
        """Factor between a gradient and the update that is clipped."""
        trained = self.claims.released == "state_dict" and self.claims.privacy.granularity == "update"
        return self.claims.learning_rate if trained else 1.0

    @cached_property
    def _plain(self) -> ProbeModel:
        common_gain = self.canaries.gain(COMMON_NORM * self.claims.noise_std / self._rate)
        return ProbeModel(self.network, self.canaries.count, self.canaries.classes, (0.0,) * LAYERS, common_gain)

    def _model(self, gains: Sequence[float], silent: bool = True) -> ProbeModel:
        model = copy.copy(self._plain)  # shares all tensors; clients are given deep copies
        model.gains, model.silent = tuple(gains), silent
        return model
