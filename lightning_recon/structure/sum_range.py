# SPDX-License-Identifier: Apache-2.0
"""What secure aggregation of whole numbers demands of a code: no number may be limited, and no sum wrap around."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_recon.exchange import Task

# A coefficient of a photograph may be this many standard deviations from its mean, and noise so many of its own.
_COEFFICIENT_REACH = 6.0
# The clip scales every row to its share of the norm, and the pilot of a plain image up by so much.
_PILOT_REACH = 1.5
_NOISE_REACH = 4.0


@dataclass(frozen=True)
class SumRange:
    """Room for the numbers of an update.

    Args:
        room: Largest magnitude that a victim's row may have in a number, after noise, divided by the clipping norm;
            0 or less: noise alone exceeds it.
        cause: What limits it, in words.
    """

    room: float
    cause: str

    def power_limit(self, row: float) -> float:
        """Largest power of a coefficient, where all powers of a row add up to 1.

        Args:
            row: Norm of a victim's row, divided by the clipping norm.
        """
        return max(0.0, self.room / (_COEFFICIENT_REACH * row)) ** 2

    def pilot_limit(self, row: float) -> float:
        """The same of the pilot, which is sent with a fixed value."""
        return max(0.0, self.room / (_PILOT_REACH * row)) ** 2


def sum_range(task: Task) -> SumRange | None:
    """The room that an announced quantization leaves; None for sums of real numbers."""
    quantization, clip = task.quantization, task.max_grad_norm
    if quantization is None or clip is None:
        return None
    one = task.update_noise / (math.sqrt(task.aggregated) if task.aggregated > 1 else 1.0)
    own = quantization.reach / clip - _NOISE_REACH * one
    summed = quantization.sum_reach / clip - _NOISE_REACH * task.update_noise
    if own <= summed:
        return SumRange(own, f"numbers are limited to ±{quantization.reach:.3g}")
    return SumRange(summed, f"sums wrap around beyond ±{quantization.sum_reach:.3g}")


def limited(power: Tensor, limit: float) -> Tensor:
    """Powers of which none exceeds a limit, with the same sum where that is possible.

    What is taken from the powers above the limit goes to those below it, in proportion, as a water level would rise.

    Args:
        power: Of every coefficient, not negative.
        limit: The largest power of one.
    """
    total = float(power.sum())
    found = power.clamp(max=limit)
    for _ in range(50):
        missing, below = total - float(found.sum()), torch.where(found < limit, found, 0.0)
        if missing <= 1e-6 * total or not bool(below.any()):
            break
        found = (found + below * (missing / float(below.sum()))).clamp(max=limit)
    return found
