# SPDX-License-Identifier: Apache-2.0
"""Distribute a data set over clients so that their labels differ: proportions from a Dirichlet distribution."""

from collections.abc import Sequence

import numpy as np

from lightning_recon.errors import UserError

_ATTEMPTS = 10  # further ones, as in flwr-datasets


def dirichlet_partition(
    labels: Sequence[int],
    partitions: int,
    alpha: float,
    min_partition_size: int = 10,
    self_balancing: bool = False,
    seed: int = 42,
) -> list[list[int]]:
    """Distribute the indices of a data set over partitions.

    Args:
        labels: of every image.
        partitions: number of clients that share the data set.
        alpha: concentration, above 0: small values give a client few classes, large values give all the same mixture.
        min_partition_size: fewest images of a client; the distribution is drawn again until it is reached.
        self_balancing: whether a client with more images than the average gets none of further classes.
        seed: of the distribution and of the order within a client.

    Returns:
        For each client its indices, in random order; each index is in one of them.

    Raises:
        UserError: there are too few images, or no draw reaches the minimum size.

    Source: Hsu et al. 2019 (arXiv 1909.06335) for the distribution. The draws are those of `DirichletPartitioner` of
    flwr-datasets 0.6, so that the same seed gives the same partition.
    """
    targets, rng = np.asarray(labels), np.random.default_rng(seed)
    if partitions > len(targets):
        raise UserError(f"{len(targets)} images cannot be distributed over {partitions} clients: lower their number")
    for _ in range(_ATTEMPTS + 1):
        found: list[list[int]] = [[] for _ in range(partitions)]
        for label in np.unique(targets):
            shares = rng.dirichlet(np.full(partitions, alpha))
            if self_balancing:
                full = np.array([len(one) for one in found]) > len(targets) / partitions
                shares = np.where(full, 0.0, shares)
                shares = shares / shares.sum()
            indices = np.nonzero(targets == label)[0]
            ends = (np.cumsum(shares) * len(indices)).astype(int)[:-1]
            for one, part in zip(found, np.split(indices, ends), strict=True):
                one.extend(part.tolist())
        if min(map(len, found)) >= min_partition_size:
            for one in found:
                rng.shuffle(one)
            return found
    raise UserError(
        f"no distribution over {partitions} clients with alpha {alpha:g} gave each {min_partition_size} images in "
        f"{_ATTEMPTS + 1} draws: raise alpha, or lower the minimum size or the number of clients"
    )
