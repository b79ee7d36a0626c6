# SPDX-License-Identifier: Apache-2.0
"""The Laplace mechanism: L1 clip, two-sided exponential noise, pure differential privacy."""

import math
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.privacy.clipping import NormOrder
from lightning_recon.privacy.composition import composed_epsilon
from lightning_recon.privacy.mechanism import Adjacency, Mechanism


class Laplace(Mechanism):
    """Laplace noise of scale zC on an update that is clipped to the L1 norm C (the sum of absolute values).

    One release is (1/z)-differentially private under add/remove, (2/z) under replace-one, even at delta 0.

    Source: Dwork, McSherry, Nissim and Smith, "Calibrating Noise to Sensitivity in Private Data Analysis" (2006).
    """

    name: ClassVar[str] = "laplace"
    norm_order: ClassVar[NormOrder] = 1
    noise_std: ClassVar[float] = math.sqrt(2)
    excess_kurtosis: ClassVar[float] = 3.0
    accountant: ClassVar[str] = "laplace-prv"

    def sample(self, count: int, generator: np.random.Generator) -> Tensor:
        """Laplace numbers of scale 1, float64, shape (count,): the difference of two exponential ones."""
        first, second = torch.from_numpy(generator.standard_exponential((2, count))).unbind()
        return first - second

    def log_likelihood(self, noise: Tensor) -> Tensor:
        """-|x|."""
        return -noise.abs()

    def epsilon(self, noise_multiplier: float, rounds: int, delta: float, adjacency: Adjacency) -> float | None:
        """Exact for one round; for more an upper bound, see `composed_epsilon`, and never above pure composition.

        The update has many numbers, and a neighbour may move all of them. The loss is greatest if it moves a single
        one by the whole sensitivity, which is what is accounted (tests/privacy/test_laplace.py compares).

        Source: one round: delta = 1 - exp((epsilon - s) / 2) with s = sensitivity / scale. More rounds: Gopi et al.
        (2021, arXiv 2106.02848), numerical composition of privacy loss random variables, upper end of its error.
        """
        if not 0 < delta < 1:
            raise UserError(f"delta is {delta}: give a probability between 0 and 1, both excluded")
        if noise_multiplier == 0:
            return None
        one = _sensitivity(adjacency) / noise_multiplier
        if rounds == 1:
            return max(0.0, one + 2 * math.log1p(-delta))
        return composed_epsilon(lambda low, high: _Loss(one), rounds * one, rounds, delta, rounds * one)

    def training_epsilon(
        self,
        noise_multiplier: float,
        sample_rate: float,
        steps: int,
        delta: float,
        adjacency: Adjacency,
        releases: int = 1,
    ) -> float | None:
        """The less of composition without sampling and of pure composition with amplification by sampling.

        Source: log(1 + q (exp(s) - 1)) a step, with s that of all its releases; Li, Qardaji and Su (2012), and Steinke
        (arXiv 2210.00597), section 6. Under "replace_one", s is that of replacing a record.
        """
        plain = super().training_epsilon(noise_multiplier, sample_rate, steps, delta, adjacency, releases)
        if plain is None or steps == 0 or sample_rate == 1:
            return plain
        one = releases * _sensitivity(adjacency) / noise_multiplier
        return min(plain, steps * float(np.logaddexp(math.log1p(-sample_rate), math.log(sample_rate) + one)))

    def mutual_information(self, noise_multiplier: float, rounds: float) -> float | None:
        """T (s - 1 + exp(-s)) with s = 1/z; infinite without noise.

        Source: mutual information is at most the Kullback-Leibler divergence from the release without the record; that
        of two Laplace distributions s scales apart, convex in s, is greatest if a single number moves.
        """
        if noise_multiplier == 0:
            return math.inf
        one = 1 / noise_multiplier
        return rounds * (one + math.expm1(-one))

    def reconstruction_robustness(self, kappa: float, noise_multiplier: float, rounds: int) -> float | None:
        """min(1, kappa exp(T/z)).

        Source: Balle, Cherubin and Hayes (arXiv 2201.04845), on pure differential privacy.
        """
        if noise_multiplier == 0:
            return None
        return math.exp(min(0.0, math.log(kappa) + rounds / noise_multiplier))


class _Loss:
    """Privacy loss of one release, log P(x)/Q(x) of an output x drawn from P, where Q is P moved by `shift` scales."""

    def __init__(self, shift: float) -> None:
        self.shift = shift

    def cdf(self, loss: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability of a loss no larger; half of the mass is at the greatest loss, `shift`."""
        inside = np.exp(-(self.shift - np.clip(loss, -self.shift, self.shift)) / 2) / 2
        return np.asarray(np.where(loss < -self.shift, 0.0, np.where(loss < self.shift, inside, 1.0)))

    def mean(self) -> float:
        """The Kullback-Leibler divergence of P from Q."""
        return self.shift + math.expm1(-self.shift)


def _sensitivity(adjacency: Adjacency) -> float:
    return 2.0 if adjacency == "replace_one" else 1.0
