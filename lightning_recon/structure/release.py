# SPDX-License-Identifier: Apache-2.0
"""The rows of a structure as an update releases them, in units of the clipping budget."""

import math

import torch
from torch import Tensor

from lightning_recon.exchange import ClientUpdate, Task


def released_rows(update: ClientUpdate, task: Task, nulls: int) -> tuple[Tensor, Tensor, float]:
    """Split the structure's gradient into what came through its picture inputs, its pilot and its zeros.

    Args:
        update: Privatised, or the mean of several such; "structure.weight" of shape (K, m + 1 + nulls) is read.
        task: What was announced; without clipping the gradient's own norm stands for the budget.
        nulls: Number of inputs that are always zero, at least 1.

    Returns:
        Rows of shape (K, m), pilots of shape (K,), and the noise standard deviation of every entry, read off the zeros.
    """
    weight = update.gradient["structure.weight"]
    layers = len(update.gradient) + len(update.omitted) if task.per_layer else 1
    budget = task.max_grad_norm / math.sqrt(layers) if task.max_grad_norm else float(weight.norm())
    inputs, pilot, zeros = torch.split(weight / budget, [weight.shape[1] - 1 - nulls, 1, nulls], dim=1)
    return inputs, pilot[:, 0], float(zeros.square().mean().sqrt())
