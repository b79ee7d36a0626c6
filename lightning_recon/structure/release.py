# SPDX-License-Identifier: Apache-2.0
"""The rows of a structure as an update releases them, in units of the clipping budget."""

import math

import torch
from torch import Tensor

from lightning_recon.exchange import ClientUpdate, Task

# How many standard deviations the measured noise may differ from the announced one.
_NULL_REACH = 4.0


def released_rows(update: ClientUpdate, task: Task, nulls: int) -> tuple[Tensor, Tensor, float]:
    """Split the structure's gradient into what came through its picture inputs, its pilot and its zeros.

    Args:
        update: Privatised, or the mean of `task.rounds` such; "structure.weight" of shape (K, m + 1 + nulls) is read.
        task: What was announced; without clipping the gradient's own norm stands for the budget.
        nulls: Number of inputs that are always zero, at least 1.

    Returns:
        Rows of shape (K, m), pilots of shape (K,), and the noise standard deviation of every entry: as announced,
        unless the zeros contradict that. The announcement has no error of its own, which matters where a row's energy
        is a sum over 100 000 inputs.
    """
    weight = update.gradient["structure.weight"]
    layers = len(update.gradient) + len(update.omitted) if task.per_layer else 1
    budget = task.max_grad_norm / math.sqrt(layers) if task.max_grad_norm else float(weight.norm())
    inputs, pilot, zeros = torch.split(weight / budget, [weight.shape[1] - 1 - nulls, 1, nulls], dim=1)
    measured = float(zeros.square().mean())
    if task.max_grad_norm is not None:
        announced = (task.noise_multiplier * task.max_grad_norm / budget) ** 2 / task.rounds
        if abs(measured - announced) <= _NULL_REACH * announced * math.sqrt(2 / zeros.numel()):
            measured = announced
    return inputs, pilot[:, 0], math.sqrt(measured)
