# SPDX-License-Identifier: Apache-2.0
"""What was announced, as it applies to single rounds and to their mean."""

import math
from collections.abc import Sequence
from dataclasses import replace

from lightning_recon.exchange.lazy_tensors import LazyTensors, shapes_of
from lightning_recon.exchange.task import Task
from lightning_recon.exchange.update import ClientUpdate
from lightning_recon.privacy.correlated_noise import noise_coefficients, round_weights


def factor_in_mean(task: Task, update: ClientUpdate, rounds: int) -> float:
    """Factor by which an update is multiplied before the updates of some rounds are averaged.

    Rounds with correlated noise get the weights that whiten it. Where the clipping norm changes from round to round,
    so do signal and noise, and every update is scaled to that of the first.

    Args:
        task: What was announced.
        update: Of one of these rounds.
        rounds: How many rounds are averaged, the first ones.

    Returns:
        1 for rounds with independent noise and one clipping norm.
    """
    factor = clip_factor(task, update)
    return factor * round_weights(task.noise_bands, rounds)[update.round] * rounds if task.noise_bands > 1 else factor


def clip_factor(task: Task, update: ClientUpdate) -> float:
    """Factor that brings an update from its round's clipping norm to that of the first round."""
    if update.max_grad_norm is None or task.max_grad_norm is None:
        return 1.0
    return task.max_grad_norm / update.max_grad_norm


def at_first_clip(task: Task, update: ClientUpdate) -> ClientUpdate:
    """The update as if its round had the clipping norm of the first."""
    if (factor := clip_factor(task, update)) == 1:
        return update
    released = update.gradient
    return replace(update, gradient=LazyTensors(shapes_of(released), lambda name: factor * released[name]))


def task_of_one_round(task: Task) -> Task:
    """What was announced, for a round that is read by itself, however its noise is correlated with that of others."""
    if task.noise_bands == 1:
        return replace(task, rounds=1)
    own = (
        task.noise_multiplier
        if task.adaptive_clip is None
        else task.adaptive_clip.update_multiplier(task.noise_multiplier)
    )
    std = math.hypot(*noise_coefficients(min(task.noise_bands, task.rounds)))
    return replace(task, rounds=1, noise_bands=1, adaptive_clip=None, noise_multiplier=own * std)


def task_of_sums(task: Task, contributors: Sequence[int | None]) -> Task:
    """What was announced, for sums that some clients dropped out of, and took their noise with them.

    Args:
        task: What was announced.
        contributors: Number of clients in the sum of each round that is averaged; None: all.

    Returns:
        Of a single round the task of as many clients as are in its sum; of several, in which all may take part, that
        of all clients with less noise.
    """
    counts = [task.aggregated if count is None else count for count in contributors]
    share = sum(counts) / len(counts) / task.aggregated
    if share == 1:
        return task
    if len(counts) > 1:
        return replace(task, noise_multiplier=task.noise_multiplier * share**0.5)
    own = share**0.5 if task.noise_share == "distributed" else 1.0
    return replace(task, aggregated=counts[0], noise_multiplier=task.noise_multiplier * own)
