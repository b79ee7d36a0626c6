# SPDX-License-Identifier: Apache-2.0
"""Which pictures take part in a step of DP-SGD: each with the same probability, whatever the others do."""

from collections.abc import Callable, Iterator

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, DistributedSampler

from lightning_recon.client.noise import noise_generator
from lightning_recon.errors import UserError

# Stand for a client and a draw in `noise_generator`: no other random numbers are the same.
TRAINING = -1
SAMPLING = -2


class PoissonSampler(DistributedSampler[list[int]]):
    """Batches of a random size: every picture is in a step's batch with probability `rate`, independently.

    This is the sampling that the accountant of DP-SGD assumes; batches of a shuffled pass are not. What a step draws
    depends on seed and step number alone, so that an interrupted training goes on with the steps it would have had.
    All ranks draw the same batch and share it out: the ranks together take one Poisson sample. (It is a
    DistributedSampler only so that Lightning does not put one of its own in its place.)

    Source: Abadi et al. 2016 (arXiv 1607.00133), section 3.1.
    """

    def __init__(self, count: int, expected: int, seed: int, step: Callable[[], int], rank: int, ranks: int) -> None:
        """Describe the draws.

        Args:
            count: pictures to draw from (n), at least 1.
            expected: mean size of a step's batch, over all ranks, at least 1; at most n counts.
            seed: seed of the draws.
            step: tells the number of the next step, from 0; asked at the beginning of each epoch.
            rank: index of this process.
            ranks: number of processes.
        """
        super().__init__(range(count), num_replicas=ranks, rank=rank)  # type: ignore[arg-type]
        self.count, self.random_seed, self.step = count, seed, step
        self.expected = min(expected, count)
        self.rate = self.expected / count

    def __len__(self) -> int:
        """Steps in an epoch, in which every picture takes part about once."""
        return max(1, self.count // self.expected)

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's part of each step's batch: indices, often fewer or more than expected, sometimes none."""
        first = self.step()
        for step in range(first, first + len(self)):
            yield self.drawn(step)[self.rank :: self.num_replicas]

    def drawn(self, step: int) -> list[int]:
        """The whole batch of a step, in the order of the pictures."""
        generator = noise_generator(self.random_seed, TRAINING, SAMPLING, step)
        chosen: list[int] = torch.nonzero(torch.rand(self.count, generator=generator) < self.rate).flatten().tolist()
        return chosen


def sampler_of(trainer: Trainer) -> PoissonSampler:
    """The sampler of the training loader.

    Args:
        trainer: a trainer that is fitting.

    Raises:
        UserError: the loader does not draw Poisson samples.
    """
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader) or not isinstance(loader.sampler, PoissonSampler):
        raise UserError(
            'granularity "sample" trains on Poisson samples only: build the training loader with the sampler of '
            "VictimClient.sampler, as ClientDataModule does"
        )
    return loader.sampler
