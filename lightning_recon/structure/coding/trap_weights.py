# SPDX-License-Identifier: Apache-2.0
"""Trap weights: random rows that few images excite, and the recipe from which both sides make the same ones."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TrapRecipe:
    """Equal recipes give equal weights, so the weights need not be shipped.

    Args:
        scaling: Factor of the positive half of each row, in (0, 1).
        deviation: Standard deviation of the normal numbers whose magnitudes are used.
        seed: Seed of these numbers.
    """

    scaling: float
    deviation: float
    seed: int

    def settings(self) -> dict[str, bool | int | float | str]:
        """The recipe in a payload's settings."""
        return {"trap_scaling": self.scaling, "trap_deviation": self.deviation, "trap_seed": self.seed}


def trap_weights(units: int, inputs: int, recipe: TrapRecipe) -> Tensor:
    """Rows whose positive half is a little weaker than the negative one, so that few images excite each.

    Args:
        units: Rows (K).
        inputs: Numbers in an image.
        recipe: How to draw them.

    Returns:
        Shape (K, inputs): the halves in random places.

    Source: Boenisch et al. (EuroS&P 2023, arXiv 2112.02918), the adversarial weight initialisation.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    weights = torch.empty(units, inputs)
    positive = inputs // 2
    for row in weights:
        magnitudes = recipe.deviation * torch.randn(inputs, generator=generator).abs()
        magnitudes[:positive] *= recipe.scaling
        magnitudes[positive:] *= -1
        row[torch.randperm(inputs, generator=generator)] = magnitudes
    return weights
