# SPDX-License-Identifier: Apache-2.0
"""The structure's share of the clipping budget, estimated from the released rows alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_recon.exchange import ServerPayload, Task
from lightning_recon.structure.detection.wiener import RowPrior
from lightning_recon.structure.noise_measurement import noise_is_announced
from lightning_recon.structure.readout import announced_noise, budget_share, l1_clipped, weight_names

# Below this share the structure loses 0.5 dB and more of its signal-to-noise ratio.
LOW_SHARE = 0.9
# A share counts as low if it is so by this many standard errors: by chance in one of 30,000 updates.
_DEVIATIONS = 4.0
# Estimates with a larger standard error are not reported.
_LARGEST_ERROR = 0.1


@dataclass(frozen=True)
class BudgetShare:
    """The structure's share of the clipping budget.

    Args:
        value: Estimate of the energy (squared norm) of the structure's gradient after the clip, divided by the most
            that the clip allows it: 1 if it has the whole budget; noise may move the estimate out of [0, 1].
        error: Its standard error.
    """

    value: float
    error: float

    @property
    def low(self) -> bool:
        """Whether the share is below 0.9 by more than noise explains."""
        return self.value + _DEVIATIONS * self.error < LOW_SHARE


def structure_share(
    rows: Tensor,
    pilots: Tensor,
    noise: float,
    prior: RowPrior,
    task: Task,
    payload: ServerPayload,
    images: int | None = None,
) -> BudgetShare | None:
    """Estimate the structure's share of the budget from one update, or from the mean of several.

    The energy of all rows, less what the noise adds to it on average, is compared with C² for each part of the update
    that was clipped by itself (a sample, or a client's whole update). The standard error counts the noise, the error of
    a noise that had to be measured, and the rows that hold several parts, whose inner products add to the energy with
    either sign.

    A low share means that the network's own gradient took the rest, that the clip was not reached, or that there were
    fewer images or rounds than announced. Local steps that mix rows do not show.

    Args:
        rows: Shape (K, m), from `released_rows`.
        pilots: Shape (K,), likewise.
        noise: Standard deviation of every entry, likewise.
        prior: What was expected of a row.
        task: What was announced.
        payload: What was shipped.
        images: Number of images that the update shows; None: as announced.

    Returns:
        The share; None without a clip, where there is no budget, under an L1 clip, which does not fix the energy, and
        where compression or the optimizer changes the noise.
    """
    if task.max_grad_norm is None or l1_clipped(task) or not noise_is_announced(task):
        return None
    units, entries, victims = len(rows), rows.numel() + pilots.numel(), images or task.victims
    # Samples are clipped by themselves, however many there are; the updates of clients likewise.
    parts = victims if task.granularity == "sample" else task.aggregated
    sharers = victims / parts
    energy = float(rows.double().square().sum() + pilots.double().square().sum()) - entries * noise**2
    variance = 2 * entries * noise**4 + 4 * max(energy, 0.0) * noise**2
    announced = announced_noise(task, budget_share(task, len(weight_names(payload)))) / math.sqrt(task.rounds)
    nulls = payload.tensors["constants"].numel() - 1
    if nulls and not math.isclose(noise, announced, rel_tol=1e-9):
        variance += entries**2 * 2 * noise**4 / (nulls * units)
    # Two encodings of norm 1 have an inner product of this mean square.
    alike = prior.pilot_level**4 + float(prior.power.double().square().sum())
    pairs = (victims**2 - parts * sharers**2) / 2
    variance += 4 * alike * pairs / (units * sharers**2)
    return BudgetShare(energy / parts, math.sqrt(variance) / parts)


def sign_share(rows: Tensor, noise: float, zeros: int, task: Task) -> BudgetShare | None:
    """The same for a structure whose inputs are signs.

    Args:
        rows: All its rows, as they arrived.
        noise: Standard deviation of every entry.
        zeros: Number of entries that it was measured on.
        task: What was announced.

    Returns:
        The share; None without one clip for each update, where compression changes the norm, and without zeros.
    """
    one_clip = task.granularity == "update" and task.aggregated == 1
    if task.max_grad_norm is None or not one_clip or not task.values_arrive or not zeros:
        return None
    entries, budget = rows.numel(), task.max_grad_norm**2
    energy = float(torch.linalg.vector_norm(rows, dtype=torch.float64)) ** 2 - entries * noise**2
    variance = 2 * entries * noise**4 + 4 * max(energy, 0.0) * noise**2
    variance += 2 * (entries * noise**2) ** 2 / zeros
    return BudgetShare(energy / budget, math.sqrt(variance) / budget)


def mean_share(shares: Sequence[BudgetShare | None]) -> tuple[float | None, int]:
    """The mean over updates, None where it cannot be estimated, and how many of them are low."""
    known = [share for share in shares if share is not None]
    low = sum(share.low for share in known)
    if not known or math.hypot(*(share.error for share in known)) / len(known) > _LARGEST_ERROR:
        return None, low
    return sum(share.value for share in known) / len(known), low
