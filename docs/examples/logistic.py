# SPDX-License-Identifier: Apache-2.0
"""Your own mechanism: logistic noise on an update that is clipped to an L1 norm.

A mechanism states the norm that the clip bounds, the distribution of its noise and the epsilon that follows. Bounds it
does not define are null in `results.json`.

    recon fit --config quickstart.yaml --config attack/linear.yaml --model.client.privacy.mechanism logistic.Logistic
"""

import math
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recon.privacy.clipping import NormOrder
from lightning_recon.privacy.mechanism import Adjacency, Mechanism


class Logistic(Mechanism):
    """Logistic noise of scale zC, (1/z)-differentially private like Laplace noise: |d log p(x) / dx| < 1."""

    name: ClassVar[str] = "logistic.Logistic"
    norm_order: ClassVar[NormOrder] = 1
    noise_std: ClassVar[float] = math.pi / math.sqrt(3)
    excess_kurtosis: ClassVar[float] = 1.2
    accountant: ClassVar[str] = "pure composition"

    def sample(self, count: int, generator: np.random.Generator) -> Tensor:
        """Numbers from the generator that it is given, and from no other."""
        return torch.from_numpy(generator.logistic(size=count))

    def log_likelihood(self, noise: Tensor) -> Tensor:
        """-x - 2 log(1 + exp(-x))."""
        return -noise - 2 * F.softplus(-noise)

    def epsilon(self, noise_multiplier: float, rounds: int, delta: float, adjacency: Adjacency) -> float | None:
        """Pure differential privacy of each release, added up over the rounds."""
        sensitivity = 2.0 if adjacency == "replace_one" else 1.0
        return None if noise_multiplier == 0 else rounds * sensitivity / noise_multiplier
