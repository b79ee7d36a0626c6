# SPDX-License-Identifier: Apache-2.0
"""Accounting of sums of clients' noisy updates, some of which are missing, with their share of the noise."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import logsumexp
from torch import Tensor

from lightning_recon.privacy.gaussian import Gaussian
from lightning_recon.privacy.gaussian_accounting import converted_epsilon, gaussian_epsilon, mu_of
from lightning_recon.privacy.mechanism import Adjacency, Mechanism
from lightning_recon.privacy.visible_sampling import mixture_epsilon


@dataclass(frozen=True)
class IncompleteSums(Mechanism):
    """The noise of a sum over clients that drop out independently; scale 1 is that of the complete sum.

    The noise of a sum of k of N clients is smaller by sqrt(k/N), and whoever attacks sees k. A client that is not in
    a round releases nothing there. At least one client is in every sum, as `client.batches.present` has it.

    Args:
        noise: of each client.
        clients: of a complete sum (N), >= 1.
        dropout: probability with which a client drops out of a round, in (0, 1).
        releases: sums of a round, which the same clients are in, >= 1.
        independent: whether noise and clipping norm are independent of earlier rounds. Otherwise, and for other than
            Gaussian noise, nothing is known: epsilon is None, and the risks are 1.
    """

    accountant: ClassVar[str] = "incomplete-sums"

    noise: Mechanism
    clients: int
    dropout: float
    releases: int = 1
    independent: bool = True

    def sample(self, count: int, generator: np.random.Generator) -> Tensor:
        """Noise of a complete sum."""
        return self.noise.sample(count, generator)

    def log_likelihood(self, noise: Tensor) -> Tensor:
        """That of a complete sum."""
        return self.noise.log_likelihood(noise)

    def epsilon(self, noise_multiplier: float, rounds: int, delta: float, adjacency: Adjacency) -> float | None:
        """Epsilon of so many sums, an upper bound; that of one round is exact if whoever attacks sees who is in it.

        If only k is seen, whether a client is in the sum is hidden too, which the bound leaves out of account.

        Source: given k a round is a Gaussian mechanism, and delta is the mean over k. For several rounds, the Renyi
        divergence of this mixture (its log-moments add up), converted as in `renyi_epsilon`.
        """
        if noise_multiplier == 0 or not self.independent or not isinstance(self.noise, Gaussian):
            return None
        multiplier, number = noise_multiplier / self.releases**0.5, rounds // self.releases
        contributors = np.arange(1, self.clients + 1)
        mus = [mu_of(multiplier * (k / self.clients) ** 0.5, 1, adjacency) or 0.0 for k in contributors.tolist()]
        log_chances = self._log_chances(contributors)
        chances = np.exp(log_chances)
        if number == 1:
            most = gaussian_epsilon(max(mus), delta) or 0.0
            return mixture_epsilon(list(zip(chances.tolist(), mus, strict=True)), delta, most + 1.0)
        absent = max(0.0, 1 - chances.sum())
        # Chances may be far below the least number, and their factors above the greatest: their logarithms are added.
        log_weights = np.append(log_chances, math.log(absent)) if absent > 0 else log_chances
        squares = np.append(np.square(mus), 0.0)[: len(log_weights)]

        def divergence(excess: float) -> float:
            return number * float(logsumexp(log_weights + (1 + excess) * excess / 2 * squares)) / excess

        return converted_epsilon(divergence, delta)

    def reconstruction_robustness(self, kappa: float, noise_multiplier: float, rounds: int) -> float | None:
        """The true-positive rate at a false-positive rate of kappa, with and without the record; None if not known."""
        if self.epsilon(noise_multiplier, rounds, 0.5, "add_remove") is None:
            return None
        return self.true_positive_rate(kappa, noise_multiplier, rounds, "add_remove")

    def _log_chances(self, contributors: NDArray[np.int64]) -> NDArray[np.float64]:
        """Logarithm of the probability that a client is in a sum of so many clients."""
        others = stats.binom.logpmf(contributors - 1, self.clients - 1, 1 - self.dropout)
        chances = np.asarray(math.log1p(-self.dropout) + others)
        kept = self.clients * math.log(self.dropout) - math.log(self.clients)  # all dropped out but one, which is kept
        chances[0] = np.logaddexp(chances[0], kept)
        return chances


def accounted_mechanism(
    noise: Mechanism,
    *,
    clients: int,
    distributed: bool,
    dropout: float,
    rounds: int,
    releases: int = 1,
    noise_bands: int = 1,
    adaptive: bool = False,
) -> Mechanism:
    """The mechanism whose epsilon, risks and bounds hold for a client's updates.

    Args:
        noise: of each client.
        clients: whose updates reach the server as their sum alone, >= 1.
        distributed: whether the noise of the sum is accounted, of which each client adds a share.
        dropout: probability with which a client drops out of a round, in [0, 1).
        rounds: number of rounds, >= 1.
        releases: sums of a round, which the same clients are in, >= 1.
        noise_bands: of how many rounds' independent noise that of a round is made, >= 1.
        adaptive: whether the clipping norm follows from earlier rounds.

    Returns:
        Noise that does not depend on who is in the sum as it is.
    """
    if not distributed or dropout == 0:
        return noise
    independent = (noise_bands == 1 or rounds == 1) and not adaptive
    return IncompleteSums(noise, clients, dropout, releases, independent)
