# SPDX-License-Identifier: Apache-2.0
"""The noise on an update, measured on inputs of a structure that are always zero.

A server knows the noise that was announced, which has no error of its own. The zeros show whether a client adds other
noise: only then does their measurement take the place of the announcement.
"""

import math

from scipy import stats
from torch import Tensor

from lightning_recon.exchange import Task, summed_noise
from lightning_recon.exchange.local_training import SGD
from lightning_recon.privacy.laplace import Laplace

# Probability that noise as announced is taken for other noise: that of a normal number beyond four standard deviations.
_FALSE_ALARM = 2 * float(stats.norm.sf(4.0))


def optimizer_keeps_noise(task: Task) -> bool:
    """Whether no optimizer other than SGD takes steps along the noise."""
    return task.granularity == "update" or task.local.optimizer == SGD


def noise_is_announced(task: Task) -> bool:
    """Whether the noise on every entry of an update follows from the noise multiplier.

    It does not where compression or an optimizer changes it.
    """
    return task.values_arrive and optimizer_keeps_noise(task)


def noise_variance(zeros: Tensor, announced: float | None, task: Task) -> float:
    """Variance of the noise on every entry: as announced, unless inputs that are always zero contradict that.

    Args:
        zeros: What arrived of these inputs, of any shape, possibly none.
        announced: The announced variance; None where none follows from what was announced.
        task: What was announced.
    """
    count = zeros.numel()
    if not count:
        return announced or 0.0
    values = zeros.cpu().double()  # not every device has float64
    measured = shown = float(values.square().mean())
    if announced is None:
        return measured
    if isinstance(task.noise, Laplace) and task.noise_terms == 1 and not task.rounding_noise:
        # Squares of Laplace numbers scatter more than their absolute values, whose mean has a gamma distribution.
        shown = 2 * float(values.abs().mean()) ** 2
        low, high = ((float(bound) / count) ** 2 for bound in stats.gamma.interval(1 - _FALSE_ALARM, count))
    else:
        # The mean of squares of normal numbers has a chi-square distribution, that of others nearly so.
        excess_kurtosis = task.noise.excess_kurtosis / task.noise_terms
        degrees = count / (1 + excess_kurtosis / 2)
        low, high = (float(bound) / degrees for bound in stats.chi2.interval(1 - _FALSE_ALARM, degrees))
    # Zeros may lie on a level of the quantization, where nothing is rounded.
    rounded = (task.rounding_noise / task.update_noise) ** 2 if task.rounding_noise else 0.0
    return announced if low * (1 - rounded) * announced <= shown <= high * announced else measured


def contradicting_multiplier(measured: float, task: Task) -> float | None:
    """The noise multiplier of a client whose updates show other noise than announced; None if they do not.

    Args:
        measured: Standard deviation of the noise in one update, divided by C, with a variance from `noise_variance`.
        task: What was announced.
    """
    announced = task.update_noise
    if math.isclose(measured, announced, rel_tol=1e-9):
        return None
    if announced == 0:
        return measured / (task.noise.noise_std * summed_noise(1.0, task.aggregated, task.noise_share))
    return task.noise_multiplier * measured / announced
