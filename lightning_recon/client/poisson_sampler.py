# SPDX-License-Identifier: Apache-2.0
"""Poisson sampling for DP-SGD: every image is in a batch with the same probability, independently of the others."""

from collections.abc import Callable, Iterator

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, DistributedSampler

from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.errors import UserError

TRAINING = -1  # takes the place of a client, so that training never repeats the random numbers of an attacked update


class PoissonSampler(DistributedSampler[list[int]]):
    """Draws batches of random size: every image is in a step's batch with probability `rate`, independently.

    The accounting of DP-SGD assumes this sampling; it does not hold for shuffled batches. A step's batch depends only
    on the key of the noise and the step number, so that a resumed training draws the same batches as an uninterrupted
    one. The key is secret by default: amplification by sampling holds only if nobody knows who was sampled. All
    ranks draw the same batch and each takes a part of it: together they process one Poisson sample. (The class derives
    from DistributedSampler only so that Lightning does not replace it.)

    Source: Abadi et al. 2016 (arXiv 1607.00133), section 3.1.
    """

    def __init__(
        self, count: int, expected: int, source: NoiseSource, step: Callable[[], int], rank: int, ranks: int
    ) -> None:
        """Store the parameters of the draws.

        Args:
            count: number of images (n), at least 1.
            expected: expected size of a step's batch over all ranks, at least 1; limited to n.
            source: key of the draws.
            step: returns the number of the next step, from 0; called at the beginning of each epoch.
            rank: index of this process.
            ranks: number of processes.
        """
        super().__init__(range(count), num_replicas=ranks, rank=rank)  # type: ignore[arg-type]
        self.count, self.source, self.step = count, source, step
        self.expected = min(expected, count)
        self.rate = self.expected / count

    def __len__(self) -> int:
        """Number of steps in an epoch, in which every image is drawn about once."""
        return max(1, self.count // self.expected)

    def __iter__(self) -> Iterator[list[int]]:
        """Indices of this rank's part of each step's batch; a part may be empty."""
        first = self.step()
        for step in range(first, first + len(self)):
            yield self.drawn(step)[self.rank :: self.num_replicas]

    def drawn(self, step: int) -> list[int]:
        """Sorted indices of a step's whole batch."""
        place = (step, self.source.trainings) if self.source.trainings else (step,)
        drawn = self.source.generator("poisson sampling", *place).random(self.count) < self.rate
        chosen: list[int] = drawn.nonzero()[0].tolist()
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
