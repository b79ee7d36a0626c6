# SPDX-License-Identifier: Apache-2.0
"""The Gaussian mechanism: Euclidean clip, normal noise, exact accounting."""

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_recon.privacy.clipping import NormOrder
from lightning_recon.privacy.gaussian_accounting import ACCOUNTANT, gaussian_epsilon, mu_of, noise_multiplier_for
from lightning_recon.privacy.mechanism import Adjacency, Mechanism
from lightning_recon.privacy.reconstruction_robustness import rero_gamma
from lightning_recon.privacy.risk import gaussian_advantage, gaussian_true_positive_rate
from lightning_recon.privacy.subsampled_accounting import training_epsilon


class Gaussian(Mechanism):
    """Normal noise of standard deviation zC on an update that is clipped to the Euclidean norm C.

    Source: Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy" (ICML 2018).
    """

    name: ClassVar[str] = "gaussian"
    norm_order: ClassVar[NormOrder] = 2
    noise_std: ClassVar[float] = 1.0
    excess_kurtosis: ClassVar[float] = 0.0
    closed_under_sums: ClassVar[bool] = True
    accountant: ClassVar[str] = ACCOUNTANT

    def sample(self, count: int, generator: np.random.Generator) -> Tensor:
        """Standard normal numbers up to 6.7, float32, shape (count,), by the method of Box and Muller.

        Vectorized, which NumPy's own method, rejection from a ziggurat, is not.
        """
        pairs = (count + 1) // 2
        bits = torch.from_numpy(generator.bit_generator.random_raw(pairs).view(np.int32))
        # The radius from 31 bits, whose smallest values keep their precision as floating-point numbers.
        uniform = bits[:pairs].bitwise_and(2**31 - 1).float().add_(0.5).mul_(2**-31)
        radius = uniform.log_().mul_(-2).sqrt_()
        angle = bits[pairs:].float().mul_(math.pi * 2**-31)
        return torch.cat((radius * angle.cos(), radius * angle.sin()))[:count]

    def log_likelihood(self, noise: Tensor) -> Tensor:
        """-x²/2."""
        return -noise.square() / 2

    def epsilon(self, noise_multiplier: float, rounds: int, delta: float, adjacency: Adjacency) -> float | None:
        """Exact, see `gaussian_epsilon`."""
        return gaussian_epsilon(mu_of(noise_multiplier, rounds, adjacency), delta)

    def training_epsilon(
        self,
        noise_multiplier: float,
        sample_rate: float,
        steps: int,
        delta: float,
        adjacency: Adjacency,
        releases: int = 1,
    ) -> float | None:
        """With amplification by Poisson sampling, see `subsampled_accounting.training_epsilon`.

        The releases of a step are one whose noise is smaller by the root of their number.
        """
        return training_epsilon(noise_multiplier / math.sqrt(releases), sample_rate, steps, delta, adjacency)

    def noise_multiplier_for(self, epsilon: float, delta: float, rounds: int, adjacency: Adjacency) -> float:
        """See `gaussian_accounting.noise_multiplier_for`."""
        return noise_multiplier_for(epsilon, delta, rounds, adjacency)

    def mu(self, noise_multiplier: float, rounds: int, adjacency: Adjacency) -> float | None:
        """Sensitivity over noise of all rounds together."""
        return mu_of(noise_multiplier, rounds, adjacency)

    def mutual_information(self, noise_multiplier: float, rounds: float) -> float | None:
        """T / (2 z²); infinite without noise.

        Source: mutual information is at most the divergence from the release without the record, which zCDP bounds by
        T / (2 z²), Bun and Steinke (arXiv 1605.02065).
        """
        return math.inf if noise_multiplier == 0 else rounds / (2 * noise_multiplier**2)

    def reconstruction_robustness(self, kappa: float, noise_multiplier: float, rounds: int) -> float | None:
        """See `rero_gamma`, for releases with and without the record."""
        return rero_gamma(kappa, mu_of(noise_multiplier, rounds, "add_remove"))

    def membership_advantage(self, noise_multiplier: float, rounds: int, adjacency: Adjacency) -> float:
        """Exact, see `gaussian_advantage`."""
        return gaussian_advantage(mu_of(noise_multiplier, rounds, adjacency))

    def true_positive_rate(
        self, false_positive_rate: float, noise_multiplier: float, rounds: int, adjacency: Adjacency
    ) -> float:
        """Exact, see `gaussian_true_positive_rate`."""
        return gaussian_true_positive_rate(false_positive_rate, mu_of(noise_multiplier, rounds, adjacency))
