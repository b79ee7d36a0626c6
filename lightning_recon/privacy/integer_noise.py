# SPDX-License-Identifier: Apache-2.0
"""Mechanisms whose noise is a whole number of steps, for sums of integers in secure aggregation."""

import math
import warnings
from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.opacus_import import import_opacus
from lightning_recon.privacy.clipping import NormOrder
from lightning_recon.privacy.mechanism import Adjacency, Mechanism

# The least standard deviation of a client's noise, in steps. Finer steps cost a few bits of modulus and nothing else.
LEAST_STD = 8


class IntegerMechanism(Mechanism):
    """Noise of standard deviation zC on an update whose numbers are whole multiples of an announced step.

    The Euclidean norm of the update is at most C after rounding too: clients clip to C less what rounding may add. The
    step is that of `exchange.Quantization`; noise has a standard deviation of at least `LEAST_STD` steps.
    """

    norm_order: ClassVar[NormOrder] = 2
    noise_std: ClassVar[float] = 1.0
    excess_kurtosis: ClassVar[float] = 0.0

    @abstractmethod
    def sample_steps(self, count: int, std: float, generator: np.random.Generator) -> Tensor:
        """Draw whole numbers of a standard deviation, int64, shape (count,)."""

    @abstractmethod
    def renyi_divergence(self, orders: NDArray[np.float64], noise_multiplier: float) -> NDArray[np.float64]:
        """Bound on the Renyi divergence of neighbouring releases whose distance is one clipping norm, by order."""

    @abstractmethod
    def orders(self) -> NDArray[np.float64]:
        """Orders at which the divergence is bounded."""

    def sample(self, count: int, generator: np.random.Generator) -> Tensor:
        """Refuse noise on real numbers.

        Raises:
            UserError: Always: whole numbers of what step is not known here.
        """
        raise UserError(
            f"{self.name} noise is for updates of whole numbers: set --model.client.quantization.clipping_range, or "
            "--model.client.privacy.mechanism gaussian"
        )

    def log_likelihood(self, noise: Tensor) -> Tensor:
        """-x²/2: over many steps, and with the rounding of the update, normal to within what can be measured."""
        return -noise.square() / 2

    def epsilon(self, noise_multiplier: float, rounds: int, delta: float, adjacency: Adjacency) -> float | None:
        """From the Renyi divergences of all rounds, by the conversion that Opacus has."""
        if not 0 < delta < 1:
            raise UserError(f"delta is {delta}: give a probability between 0 and 1, for example 1e-5")
        if noise_multiplier == 0:
            return None
        import_opacus()  # takes seconds, and most runs do without
        from opacus.accountants.analysis import rdp

        orders, moved = self.orders(), 2.0 if adjacency == "replace_one" else 1.0
        divergence = rounds * self.renyi_divergence(orders, noise_multiplier / moved)
        with warnings.catch_warnings():  # where the best order is the first or the last: a bound all the same
            warnings.simplefilter("ignore")
            return max(0.0, float(rdp.get_privacy_spent(orders=list(orders), rdp=list(divergence), delta=delta)[0]))

    def mutual_information(self, noise_multiplier: float, rounds: float) -> float | None:
        """The divergence at order 1, of all rounds; infinite without noise.

        Source: mutual information is at most the divergence from the release without the record, which grows with the
        order; Bun and Steinke (arXiv 1605.02065).
        """
        if noise_multiplier == 0:
            return math.inf
        return rounds * float(self.renyi_divergence(np.array([1.0]), noise_multiplier)[0])


class DiscreteGaussian(IntegerMechanism):
    """Whole numbers x with probabilities proportional to exp(-x²/2σ²); a sum of several is not one of the kind.

    Source: Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy" (arXiv 2004.00010).
    """

    name: ClassVar[str] = "discrete_gaussian"
    accountant: ClassVar[str] = "discrete-gaussian-zcdp"

    def sample_steps(self, count: int, std: float, generator: np.random.Generator) -> Tensor:
        """Exact but for the precision of float64: two-sided geometric numbers, of which a part is accepted.

        Source: algorithm 3 of the paper.
        """
        scale = math.floor(std) + 1
        found: list[NDArray[np.int64]] = []
        while sum(len(part) for part in found) < count:
            tried = 64 + 2 * (count - sum(len(part) for part in found))
            above, below = generator.geometric(-math.expm1(-1 / scale), (2, tried))
            drawn = above - below
            log_chance = -((np.abs(drawn) - std**2 / scale) ** 2) / (2 * std**2)
            found.append(drawn[-generator.standard_exponential(tried) < log_chance])
        return torch.from_numpy(np.concatenate(found)[:count])

    def renyi_divergence(self, orders: NDArray[np.float64], noise_multiplier: float) -> NDArray[np.float64]:
        """Alpha / (2 z²), as of Gaussian noise.

        Source: theorem 14 of the paper, for vectors by composition over their numbers.
        """
        return orders / (2 * noise_multiplier**2)

    def orders(self) -> NDArray[np.float64]:
        """All orders above 1, in effect."""
        return 1 + np.logspace(-7, 7, 1401)


class Skellam(IntegerMechanism):
    """Differences of two Poisson numbers; a sum of several is one of the kind.

    Source: Agarwal, Kairouz and Liu, "The Skellam Mechanism for Differentially Private Federated Learning" (arXiv
    2110.04995).
    """

    name: ClassVar[str] = "skellam"
    closed_under_sums: ClassVar[bool] = True
    accountant: ClassVar[str] = "skellam-rdp"

    def sample_steps(self, count: int, std: float, generator: np.random.Generator) -> Tensor:
        """Differences of two Poisson numbers of mean std²/2."""
        first, second = generator.poisson(std**2 / 2, (2, count))
        return torch.from_numpy(first - second)

    def renyi_divergence(self, orders: NDArray[np.float64], noise_multiplier: float) -> NDArray[np.float64]:
        """Alpha / (2 z²) and a term that decreases with the number of steps of the noise, here the least allowed.

        Whole numbers have an L1 norm of at most the square of their Euclidean norm. Proved for whole orders from 2; at
        order 1, of which `mutual_information` makes use, tests compare it with exact divergences.

        Source: theorem 3.5 of the paper, with this bound for the L1 norm.
        """
        squared = noise_multiplier**-2
        return orders * squared / 2 + (2 * orders - 1 + 6) * squared / (4 * LEAST_STD**2)

    def orders(self) -> NDArray[np.float64]:
        """Whole orders from 2, for which the bound is proved."""
        return np.unique(np.round(np.logspace(math.log10(2), 7, 801)))
