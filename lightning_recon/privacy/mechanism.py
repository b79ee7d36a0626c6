# SPDX-License-Identifier: Apache-2.0
"""What a DP mechanism is: the norm that its clip bounds, the distribution of its noise, and the guarantees of both.

A mechanism adds to every number of a clipped update independent noise of scale zC, where z is the noise multiplier and
C the clipping norm. Epsilon is derived from the noise, never the reverse. Everything here is known to an attacker too;
the generator that the noise is drawn with belongs to `client.noise` alone.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, get_args

import numpy as np
from scipy.optimize import brentq
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.privacy.clipping import NormOrder

Adjacency = Literal["add_remove", "replace_one"]
ADJACENCIES: tuple[Adjacency, ...] = get_args(Adjacency)


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
        self, noise_multiplier: float, sample_rate: float, steps: int, delta: float, adjacency: Adjacency
    ) -> float | None:
        """Epsilon of a training whose every step looks at a Poisson sample of the records.

        Without a better bound, that of the same steps on all records, which holds whatever the sampling.
        """
        if steps == 0:
            return None if noise_multiplier == 0 else 0.0
        return self.epsilon(noise_multiplier, steps, delta, adjacency)

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

    def mutual_information(self, noise_multiplier: float, rounds: int) -> float | None:
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
