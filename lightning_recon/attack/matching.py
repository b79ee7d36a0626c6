# SPDX-License-Identifier: Apache-2.0
"""How far the update that guessed pictures would give is from the one that arrived."""

import math
from typing import Literal

import torch
from torch import Tensor

from lightning_recon.attack.local import Update
from lightning_recon.exchange import Task

Distance = Literal["cosine", "euclidean", "likelihood"]

# Noise that the likelihood reckons with where none is announced: float32 does not reproduce an update exactly.
_LEAST_NOISE = 1e-5


def inner(left: Update, right: Update, weights: Update | None = None) -> Tensor:
    """Weighted inner product of two updates, a scalar.

    Args:
        left: tensors by name.
        right: tensors of the same names and shapes.
        weights: a scalar for each tensor; None: 1.
    """
    parts = [(left[name] * right[name]).sum() * (1.0 if weights is None else weights[name]) for name in left]
    return torch.stack(parts).sum()


def cosine_distance(guess: Update, seen: Update, weights: Update | None = None) -> Tensor:
    """1 − cosine of the angle between two updates, in [0, 2]; scale does not matter, so clipping does not either.

    Source: Geiping et al. 2020 (arXiv 2003.14053), section 4.
    """
    energy = inner(guess, guess, weights) * inner(seen, seen, weights)
    return 1 - inner(guess, seen, weights) / energy.clamp(min=1e-30).sqrt()


def squared_distance(guess: Update, seen: Update, weights: Update | None = None) -> Tensor:
    """Squared Euclidean distance of two updates.

    Source: Zhu et al. 2019 (arXiv 1906.08935), equation 4.
    """
    difference = {name: guess[name] - seen[name] for name in seen}
    return inner(difference, difference, weights)


def noise_std(task: Task) -> float:
    """Standard deviation of the noise on every number of the mean of all rounds; at least what float32 leaves."""
    return (task.max_grad_norm or 1.0) * max(task.update_noise / math.sqrt(task.rounds), _LEAST_NOISE)


def signal_weights(seen: Update, std: float) -> Update:
    """What share of each tensor's energy is not noise, as the update alone shows.

    Args:
        seen: the update.
        std: standard deviation of its noise.

    Returns:
        A scalar in [0, 1] for each tensor: Wiener's weight of a tensor as a whole.
    """
    weights = {}
    for name, tensor in seen.items():
        energy = tensor.square().sum()
        weights[name] = ((energy - tensor.numel() * std**2) / energy.clamp(min=1e-30)).clamp(0, 1)
    return weights


def fit_is_visible(task: Task, numbers: int) -> bool:
    """Whether the residual tells a perfect guess from a useless one: the signal's energy against the noise's spread.

    Args:
        task: what was announced.
        numbers: how many numbers an update holds, D.

    Returns:
        Whether z < (2 D)^(-1/4): then C² exceeds σ² √(2 D), one standard deviation of the noise's energy.
    """
    return bool(task.update_noise / math.sqrt(task.rounds) < (2 * numbers) ** -0.25)


def explained(residuals: Tensor, task: Task, numbers: int) -> Tensor:
    """Which guesses leave no more than what noise alone would, where that can be told at all.

    Args:
        residuals: squared distances of clipped updates, (P,).
        task: what was announced.
        numbers: how many numbers an update holds, D.

    Returns:
        (P,), bool: D σ² is reached, the discrepancy principle.

    Source: Morozov 1966, the discrepancy principle.
    """
    if not fit_is_visible(task, numbers):
        return torch.zeros_like(residuals, dtype=torch.bool)
    return residuals <= numbers * noise_std(task) ** 2
