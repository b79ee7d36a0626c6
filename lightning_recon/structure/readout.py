# SPDX-License-Identifier: Apache-2.0
"""The rows of a structure as an update releases them, in units of the clipping budget."""

import math

import torch
from torch import Tensor

from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.structure.coding.hadamard_spreading import gather
from lightning_recon.structure.layer_spec import LayerSpec
from lightning_recon.structure.local_weights import local_weights
from lightning_recon.structure.noise_measurement import contradicting_multiplier, noise_is_announced, noise_variance


def l1_clipped(task: Task) -> bool:
    """Whether the clip bounds the L1 norm, as the Laplace mechanism's does."""
    return task.max_grad_norm is not None and task.clip.order == 1


def budget_share(task: Task, blocks: int) -> float:
    """Norm that clipping leaves the structure, as a share of the clipping norm.

    One clip leaves it everything; clipping by layer gives it M of the L equal budgets C/√L, hence √(M/L); of the L1
    norm M of L budgets C/L, hence M/L.

    Args:
        task: What was announced.
        blocks: Tensors of the structure, M.
    """
    return task.clip.share(blocks / (task.parameter_tensors + blocks)) if task.per_layer else 1.0


def euclidean_share(task: Task, payload: ServerPayload) -> float:
    """Euclidean norm that clipping leaves the structure's gradient, as a share of the clipping norm.

    An L1 clip leaves each of the rows of the victims that share it an equal part of the L1 norm.

    Args:
        task: What was announced.
        payload: What was shipped.
    """
    spec = LayerSpec.of(payload)
    share = budget_share(task, spec.blocks)
    if spec.norm_ratio is None:
        return share
    return share / (spec.norm_ratio * math.sqrt(len(payload.tensors["directions"]) * task.sharers))


def design_noise(task: Task, assumed: float | None, weakest: bool = False) -> float:
    """Standard deviation of the noise that a structure is designed for, divided by the norm of a victim's rows.

    Args:
        task: What was announced.
        assumed: Noise multiplier to design for; None: the announced one.
        weakest: Whether to design for the victim that local training gives the least weight, not for the typical one.
    """
    noise, local = task.update_noise if assumed is None else assumed * task.noise.noise_std, local_weights(task)
    return noise * local.noise / (local.signal * (local.weakest if weakest else local.typical))


def announced_noise(task: Task, share: float) -> float:
    """Standard deviation of every entry that `released_rows` returns, as announced.

    Args:
        task: What was announced.
        share: Norm that clipping leaves the structure, as a share of the clipping norm.
    """
    local = local_weights(task)
    return task.update_noise / share * (local.noise / local.signal)


def weight_names(payload: ServerPayload) -> list[str]:
    """The structure's tensors in an update, in the order of its blocks."""
    blocks = LayerSpec.of(payload).blocks
    return ["structure.weight"] if blocks == 1 else [f"structure.weight.{block}" for block in range(blocks)]


def measured_multiplier(noise: float, task: Task, payload: ServerPayload) -> float | None:
    """Noise multiplier of a client that the zeros of an update show; None if they agree with the announced one.

    Args:
        noise: From `released_rows`.
        task: What was announced.
        payload: What was shipped.
    """
    if task.max_grad_norm is None or not noise_is_announced(task):
        return None
    local = local_weights(task)
    measured = noise * euclidean_share(task, payload) * math.sqrt(task.rounds) * (local.signal / local.noise)
    return contradicting_multiplier(measured, task)


def released_rows(update: ClientUpdate, task: Task, payload: ServerPayload) -> tuple[Tensor, Tensor, float]:
    """Split the structure's gradient into what came through its image inputs, its pilot and its zeros.

    Args:
        update: Privatised, or the mean of `task.rounds` such; the tensors of `weight_names` are read, together of
            shape (K, m + 1 + nulls) before they were spread.
        task: What was announced; without clipping the norm of the gradient takes the place of the budget.
        payload: What was shipped; its constants are one pilot and the nulls.

    Returns:
        In units of the norm that one clip leaves a victim's rows, at the weight that local training gives them: rows of
        shape (K, m), pilots of shape (K,), and the noise standard deviation of every entry: as announced,
        unless the zeros contradict that. The announcement has no error of its own, which matters where a row's energy
        is a sum over 100 000 inputs.
    """
    names = weight_names(payload)
    weight = torch.cat([update.gradient[name] for name in names], dim=1)
    nulls = payload.tensors["constants"].numel() - 1
    share = euclidean_share(task, payload)
    budget = task.max_grad_norm * share * local_weights(task).signal if task.max_grad_norm else float(weight.norm())
    entries, zeros = torch.split(weight / budget, [weight.shape[1] - nulls, nulls], dim=1)
    rows = gather(entries, payload.tensors["index"].numel() + 1, len(names))
    announced = announced_noise(task, share) ** 2 / task.rounds if task.max_grad_norm else None
    return rows[:, :-1], rows[:, -1], math.sqrt(noise_variance(zeros, announced, task))
