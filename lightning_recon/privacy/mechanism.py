# SPDX-License-Identifier: Apache-2.0
"""What a DP mechanism is: the norm that its clip bounds, the distribution of its noise, and the guarantees of both.

A mechanism adds to every number of a clipped update independent noise of scale zC, where z is the noise multiplier and
C the clipping norm. Epsilon is derived from the noise, never the reverse. Everything here is known to an attacker too;
the generator that the noise is drawn with belongs to `client.noise` alone.
"""

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import ClassVar, Literal, get_args

import numpy as np
from scipy.optimize import brentq
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.privacy.clipping import NormOrder
from lightning_recon.privacy.risk import Guarantee, advantage, true_positive_rate

Adjacency = Literal["add_remove", "replace_one"]
ADJACENCIES: tuple[Adjacency, ...] = get_args(Adjacency)

# At these deltas a guarantee says most about how well membership can be guessed.
_DELTAS = (1e-9, 1e-4, 1e-3, 3e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


class Mechanism(ABC):
    """Additive noise on a clipped update.

    A mechanism of one's own is a subclass without arguments, given by its class path as
    `--model.client.privacy.mechanism`. It defines the attributes without a default and the abstract methods; bounds
    that it does not define are reported as null (None).

    Args:
        name: name in configs and records: the class path, unless the package brings the mechanism.
        norm_order: norm that the clip bounds, which is the sensitivity that the noise is calibrated to: 1 or 2.
        noise_std: standard deviation of noise of scale 1.
        excess_kurtosis: excess kurtosis of the noise, by which a measured noise variance scatters more than that of
            normal noise.
        closed_under_sums: whether the sum of N such noises is one of scale sqrt(N), so that N clients can share it.
        accountant: how epsilon is accounted, for the record.
    """

    name: ClassVar[str]
    norm_order: ClassVar[NormOrder]
    noise_std: ClassVar[float]
    excess_kurtosis: ClassVar[float]
    closed_under_sums: ClassVar[bool] = False
    accountant: ClassVar[str]

    @abstractmethod
    def sample(self, count: int, generator: np.random.Generator) -> Tensor:
        """Draw noise of scale 1.

        Args:
            count: how many numbers.
            generator: of the client's alone; the only source of randomness that may be used.

        Returns:
            Shape (count,), floating point.
        """

    @abstractmethod
    def log_likelihood(self, noise: Tensor) -> Tensor:
        """Log-density of noise of scale 1, up to a constant; shape of the argument, differentiable."""

    @abstractmethod
    def epsilon(self, noise_multiplier: float, rounds: int, delta: float, adjacency: Adjacency) -> float | None:
        """Epsilon of all rounds together, by plain composition.

        Args:
            noise_multiplier: scale of the noise divided by the clipping norm, z, >= 0.
            rounds: releases of the same data, >= 1.
            delta: privacy parameter, in (0, 1).
            adjacency: "add_remove" moves the clipped sum by at most the clipping norm, "replace_one" by twice that.

        Returns:
            An upper bound of the true epsilon, >= 0; None without noise.
        """

    def training_epsilon(
        self,
        noise_multiplier: float,
        sample_rate: float,
        steps: int,
        delta: float,
        adjacency: Adjacency,
        releases: int = 1,
    ) -> float | None:
        """Epsilon of a training whose every step looks at a Poisson sample of the records.

        Args:
            noise_multiplier: z, >= 0.
            sample_rate: probability with which a record takes part in a step, in (0, 1].
            steps: steps so far, >= 0.
            delta: privacy parameter, in (0, 1).
            adjacency: see `epsilon`.
            releases: noisy sums of a step, all of which a record is in that takes part, >= 1.

        Without a better bound, that of the same steps on all records, which holds whatever the sampling.
        """
        if steps == 0:
            return None if noise_multiplier == 0 else 0.0
        return self.epsilon(noise_multiplier, steps * releases, delta, adjacency)

    def noise_multiplier_for(self, epsilon: float, delta: float, rounds: int, adjacency: Adjacency) -> float:
        """The noise multiplier at which `epsilon` is the one asked for.

        Raises:
            UserError: no noise multiplier between 1e-9 and 1e9 reaches it.
        """

        def excess(log_multiplier: float) -> float:
            reached = self.epsilon(10**log_multiplier, rounds, delta, adjacency)
            return (float("inf") if reached is None else reached) - epsilon

        if not excess(-9) >= 0 >= excess(9):
            raise UserError(f"no noise multiplier of the {self.name} mechanism gives epsilon {epsilon}: give another")
        return float(10 ** brentq(excess, -9, 9, xtol=1e-12))

    def mu(self, noise_multiplier: float, rounds: int, adjacency: Adjacency) -> float | None:
        """Parameter of Gaussian differential privacy; None where the mechanism has none, and without noise."""
        return None

    def mutual_information(self, noise_multiplier: float, rounds: float) -> float | None:
        """Nats that all rounds together carry about one clipped record at most; None where no bound is known."""
        return None

    def reconstruction_robustness(self, kappa: float, noise_multiplier: float, rounds: int) -> float | None:
        """Bound on the probability of a reconstruction that blind guessing reaches with probability kappa.

        Args:
            kappa: success probability of the best guess from the prior, in (0, 1).
            noise_multiplier: z.
            rounds: releases of the same data.

        Returns:
            gamma, in [kappa, 1]; None where no bound is known, and without noise.
        """
        return None

    def membership_advantage(self, noise_multiplier: float, rounds: int, adjacency: Adjacency) -> float:
        """True- minus false-positive rate that no attack on membership exceeds, in [0, 1]; 1 without noise.

        Args:
            noise_multiplier: z.
            rounds: releases of the same data.
            adjacency: what an absent record means: it is missing, or another is in its place.

        Without a better bound, what epsilon at several deltas allows.
        """
        return advantage(_guarantees(self, noise_multiplier, rounds, adjacency))

    def true_positive_rate(
        self, false_positive_rate: float, noise_multiplier: float, rounds: int, adjacency: Adjacency
    ) -> float:
        """True-positive rate that no attack on membership exceeds at a false-positive rate in (0, 1); 1 without noise.

        Args:
            false_positive_rate: share of absent records that the attack calls present.
            noise_multiplier: z.
            rounds: releases of the same data.
            adjacency: see `membership_advantage`.
        """
        return true_positive_rate(false_positive_rate, _guarantees(self, noise_multiplier, rounds, adjacency))


@lru_cache(maxsize=16)
def _guarantees(mechanism: Mechanism, noise_multiplier: float, rounds: int, adjacency: Adjacency) -> list[Guarantee]:
    # Kept, because each may take a numerical composition, and several risks follow from the same.
    found = ((mechanism.epsilon(noise_multiplier, rounds, delta, adjacency), delta) for delta in _DELTAS)
    return [(epsilon, delta) for epsilon, delta in found if epsilon is not None]
