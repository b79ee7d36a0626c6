# SPDX-License-Identifier: Apache-2.0
"""Distances between the update of a candidate and the one that was received."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from lightning_recon.attack.inversion.forward_model import Update
from lightning_recon.exchange import Task

Distance = Literal["cosine", "euclidean", "likelihood"]

# Noise that the likelihood assumes if none is announced: float32 does not reproduce an update exactly.
_LEAST_NOISE = 1e-5
_LARGE = 2**16  # numbers of a tensor above which a copy costs more than the calls that it saves


def _pieces(update: Update, names: Iterable[str], weights: Update | None) -> list[Tensor]:
    """The numbers of an update, times the root of their tensor's weight, in few vectors: all small tensors in one."""
    flat = [
        update[name].flatten() if weights is None else update[name].flatten() * weights[name].sqrt() for name in names
    ]
    small, large = ([one for one in flat if (one.numel() < _LARGE) == is_small] for is_small in (True, False))
    return [torch.cat(small), *large] if small else large


def _norm(pieces: list[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(one) for one in pieces]
    norm: Tensor = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    return norm


def cosine_distance(candidate: Update, observed: Update, weights: Update | None = None) -> Tensor:
    """1 − cosine of the angle between two updates, in [0, 2]; scale does not matter, so clipping does not either.

    Args:
        candidate: tensors by name.
        observed: tensors of the same names and shapes.
        weights: weight of each tensor's products, a scalar of at least 0; None: 1.

    Source: Geiping et al. 2020 (arXiv 2003.14053), section 4.
    """
    left, right = _pieces(candidate, observed, weights), _pieces(observed, observed, weights)
    product = sum((one * other).sum() for one, other in zip(left, right, strict=True))
    return 1 - product / (_norm(left) * _norm(right)).clamp(min=1e-15)


def squared_distance(candidate: Update, observed: Update, weights: Update | None = None) -> Tensor:
    """Squared Euclidean distance of two updates.

    Args:
        candidate: tensors by name.
        observed: tensors of the same names and shapes.
        weights: weight of each tensor's squares, a scalar of at least 0; None: 1.

    Source: Zhu et al. 2019 (arXiv 1906.08935), equation 4.
    """
    left, right = _pieces(candidate, observed, weights), _pieces(observed, observed, weights)
    parts = [(one - other).square().sum() for one, other in zip(left, right, strict=True)]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


def negative_log_likelihood(candidate: Update, observed: Update, task: Task, weights: Update | None = None) -> Tensor:
    """Negative log-density of the mechanism's own noise at what a candidate's update leaves unexplained, in nats.

    Args:
        candidate: tensors by name.
        observed: tensors of the same names and shapes.
        task: the announced training parameters; its noise is not 0.
        weights: a scalar of at least 0 for each tensor, by which its terms are multiplied; None: 1.

    Returns:
        A scalar, up to a constant. For normal noise it is `squared_distance` / (2 σ²).
    """
    scale = noise_std(task) / task.noise.noise_std
    terms = {name: task.noise.log_likelihood((candidate[name] - observed[name]) / scale).sum() for name in observed}
    return -torch.stack([term if weights is None else weights[name] * term for name, term in terms.items()]).sum()


def announced_std(task: Task) -> float:
    """Standard deviation of the announced noise on every number of the mean of all rounds; 0 without noise."""
    return (task.max_grad_norm or 0.0) * task.update_noise / math.sqrt(task.rounds)


def noise_std(task: Task) -> float:
    """Standard deviation of the noise on every number of the mean of all rounds; at least what float32 leaves."""
    return (task.max_grad_norm or 1.0) * max(task.update_noise / math.sqrt(task.rounds), _LEAST_NOISE)


def signal_weights(observed: Update, std: float) -> Update:
    """Share of each tensor's energy that is not noise, estimated from the update.

    Args:
        observed: the update.
        std: standard deviation of its noise.

    Returns:
        A scalar in [0, 1] for each tensor: Wiener's weight of a tensor as a whole.
    """
    weights = {}
    for name, tensor in observed.items():
        energy = tensor.square().sum()
        weights[name] = ((energy - tensor.numel() * std**2) / energy.clamp(min=1e-30)).clamp(0, 1)
    return weights


def fit_is_visible(task: Task, numbers: int) -> bool:
    """Whether the residual separates perfect candidates from useless ones: more signal energy than noise spread.

    Args:
        task: the announced training parameters.
        numbers: number of values of an update, D.

    Returns:
        Whether z < (2 D)^(-1/4): then C² exceeds σ² √(2 D), one standard deviation of the noise's energy.
    """
    # A bound on the L1 norm says little of the signal's energy.
    return task.clip.order == 2 and bool(task.update_noise / math.sqrt(task.rounds) < (2 * numbers) ** -0.25)


def explained(residuals: Tensor, task: Task, numbers: int) -> Tensor:
    """Which candidates have reached the noise level, where that is identifiable.

    Args:
        residuals: squared distances of clipped updates, (P,).
        task: the announced training parameters.
        numbers: number of values of an update, D.

    Returns:
        (P,), bool: D σ² is reached, the discrepancy principle.

    Source: Morozov 1966, the discrepancy principle.
    """
    if not fit_is_visible(task, numbers):
        return torch.zeros_like(residuals, dtype=torch.bool)
    return residuals <= numbers * noise_std(task) ** 2
