# SPDX-License-Identifier: Apache-2.0
"""The integers that secure aggregation adds up in place of real numbers, as they are announced."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from lightning_recon.errors import UserError
from lightning_recon.files import schema


@dataclass(frozen=True)
class Quantization:
    """How clients turn their updates into integers, whose sum the server gets modulo a number.

    Each client multiplies its update by its weight, limits every number to the clipping range, and rounds it at random,
    without bias, to one of equally spaced levels. Names and defaults are those of Flower's `SecAggPlusWorkflow`.

    Args:
        clipping_range: numbers are limited to [-clipping_range, clipping_range].
        quantization_range: number of steps between these limits.
        modulus_range: the sum is known modulo this number of steps.
        weight: factor of a client's update; in Flower its number of examples divided by `max_weight`.
    """

    # Records are validated against these types when they are read from disk.
    __pydantic_config__: ClassVar[ConfigDict] = schema.STRICT

    clipping_range: Annotated[float, Field(gt=0, le=1e18)] = 8.0
    quantization_range: Annotated[int, Field(ge=2, le=1 << 48)] = 1 << 22
    modulus_range: Annotated[int, Field(ge=2, le=1 << 52)] = 1 << 32
    weight: Annotated[float, Field(gt=0, le=1e18)] = 1.0

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        flag = "--model.client.quantization."
        for name in ("clipping_range", "weight"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise UserError(f"{flag}{name} is {getattr(self, name)}: give a number above 0")
        if not 2 <= self.quantization_range <= self.modulus_range <= 1 << 52:
            raise UserError(
                f"{flag}quantization_range is {self.quantization_range} and modulus_range {self.modulus_range}: give 2 "
                "or more steps, and a modulus that is no smaller"
            )

    @property
    def step(self) -> float:
        """Distance of two levels, in the unit of an update."""
        return 2 * self.clipping_range / self.quantization_range / self.weight

    @property
    def reach(self) -> float:
        """Largest number of an update that is not limited, in its unit."""
        return self.clipping_range / self.weight

    @property
    def sum_reach(self) -> float:
        """Largest magnitude of a sum that does not wrap around, in the unit of an update."""
        return self.modulus_range * self.step / 2

    def rounding_noise(self, clients: int) -> float:
        """Standard deviation of the rounding in a sum, of numbers that lie anywhere between two levels.

        A number at a share f of the step above its level is rounded with variance f (1 - f) of the step's square, which
        is 1/6 on average.
        """
        return self.step * math.sqrt(clients / 6)

    @property
    def in_words(self) -> str:
        """The quantization in a few words."""
        return (
            f"sums of integers modulo {self.modulus_range}, {self.quantization_range} steps in "
            f"±{self.clipping_range:g}, weight {self.weight:g}"
        )
