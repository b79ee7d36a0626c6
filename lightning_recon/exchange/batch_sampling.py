# SPDX-License-Identifier: Apache-2.0
"""How a client chooses the images of a round among its own, as it is announced."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from lightning_recon.files import schema

Sampling = Literal["all", "shuffle", "fixed_size", "poisson"]


@dataclass(frozen=True)
class BatchSampling:
    """Which of its images a client uses in a round; the default is all of them in every round.

    Args:
        method: "all": the same batch in every round; "shuffle": the batches of a data loader that shuffles the images
            in every epoch; "fixed_size": a batch of given size drawn anew in every round; "poisson": every image with
            the same probability, independently, as in DP-SGD. The choice itself is the client's secret.
        images: number of images that a client holds (n); None: as many as its batch.
    """

    # Records are validated against these types when they are read from disk.
    __pydantic_config__: ClassVar[ConfigDict] = schema.STRICT

    method: Sampling = "all"
    images: schema.Batch | None = None

    def accounted(self, granularity: str, noise_bands: int) -> "BatchSampling":
        """The sampling as far as epsilon depends on it.

        Where each sample is clipped, an image is in the rounds alone that it was drawn for, and the server is taken to
        see which they are. A client whose whole updates are clipped is in all rounds, and noise that is correlated over
        rounds is accounted for an image that is in all of them.
        """
        return self if granularity == "sample" and noise_bands == 1 else BatchSampling()

    def rate(self, batch_size: int) -> float:
        """Share of the rounds that an image takes part in, in (0, 1].

        Args:
            batch_size: images in a batch, of Poisson samples their expected number.
        """
        return 1.0 if self.method == "all" or self.images is None else min(1.0, batch_size / self.images)

    def most_rounds(self, batch_size: int, rounds: int) -> int:
        """The most rounds that an image can be in: of shuffled batches one in every epoch, else all.

        Args:
            batch_size: images in a batch.
            rounds: number of rounds.
        """
        if self.method != "shuffle" or self.images is None:
            return rounds
        return math.ceil(rounds / math.ceil(self.images / batch_size))
