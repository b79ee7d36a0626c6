# SPDX-License-Identifier: Apache-2.0
"""How the gradients of a client's local SGD steps add up in its update: weights of the victims, and the noise.

The update of any number of SGD steps, with momentum, weight decay and a learning rate schedule, is a linear function of
their gradients. A structure that measures with constants has the same gradient for an image at every step, so a
victim's rows are this gradient times the sum of the known weights of the steps that visit it.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_recon.exchange import LocalTraining, Task
from lightning_recon.exchange.local_training import SGD

_OPTIONS = ("momentum", "dampening", "nesterov", "weight_decay", "maximize")
# Weights that differ by less are equal.
_ROUNDING = 1e-9
# Simulated orders of a batch that is shuffled in every epoch.
_ORDERS = 64


@dataclass(frozen=True)
class LocalWeights:
    """What local training makes of a victim's part in an update, and of the noise.

    Args:
        size: Norm of the update before it is clipped, relative to that of one step on the whole batch.
        signal: Norm of a victim's rows, as a share of what a single release leaves it; a root mean square over victims.
            Not 1 only where every sample is clipped in every local step.
        noise: Standard deviation of the noise in an update, relative to that of a single release; likewise.
        typical: Weight of the typical victim, relative to the root mean square: 1 where all victims have equal weights.
        weakest: Weight of the weakest victim that a step visits at all, likewise.
        spread: Standard deviation of the logarithm of the weights: victims that are visited in early steps have more
            weight under momentum, and those in a smaller mini-batch, too.
    """

    size: float = 1.0
    signal: float = 1.0
    noise: float = 1.0
    typical: float = 1.0
    weakest: float = 1.0
    spread: float = 0.0


def local_weights(task: Task) -> LocalWeights:
    """The weights that follow from the announced local training; those of one step if its optimizer is not linear.

    Args:
        task: What was announced.
    """
    local = task.local
    if local.is_plain_step or local.optimizer != SGD:
        return LocalWeights()
    steps = step_weights(local, local.steps(task.batch_size))
    victims = victim_weights(local, task.batch_size, steps, task.granularity == "sample")
    root = float(victims.square().mean().sqrt())
    seen = victims[victims != 0].abs() / root
    sampled, spread = task.granularity == "sample", float(seen.log().std(correction=0))
    return LocalWeights(
        size=root * task.batch_size,
        signal=root if sampled else 1.0,
        noise=float(steps.norm()) / _divisor(local, task.batch_size) if sampled else 1.0,
        typical=math.exp(float(seen.log().mean())),
        weakest=float(seen.min()),
        spread=spread if spread > _ROUNDING else 0.0,
    )


def layer_settings(task: Task, strength: float) -> dict[str, bool | int | float | str]:
    """Settings of a cancelling layer that fit the announced local training.

    Where a client trains, the trained weight starts at zero, on which weight decay does nothing. Where it clips the
    change of its weights, the strength makes up for small learning rates, so that this change exceeds the clip.

    Args:
        task: What was announced.
        strength: Factor of the layer's gradient for one step of plain SGD.
    """
    if task.local.is_plain_step:
        return {"strength": strength}
    size = local_weights(task).size if task.granularity == "update" else 1.0
    return {"strength": strength / size, "zero_weight": True}


def step_weights(local: LocalTraining, count: int) -> Tensor:
    """Weight of each optimizer step's gradient in the update.

    The optimizer itself is asked: each step's gradient is a unit impulse to a parameter of its own.

    Args:
        local: The announced training.
        count: Optimizer steps of a client.

    Returns:
        Shape (count,), float64.
    """
    impulses = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    options: dict[str, Any] = {name: value for name, value in local.options.items() if name in _OPTIONS}
    optimizer = torch.optim.SGD([impulses], lr=local.learning_rate(0), **options)
    for step in range(count):
        optimizer.param_groups[0]["lr"] = local.learning_rate(step)
        impulses.grad = torch.zeros_like(impulses)
        impulses.grad[step] = 1.0
        optimizer.step()
    return -impulses.detach() / local.divisor


def victim_weights(local: LocalTraining, batch: int, steps: Tensor, sampled: bool) -> Tensor:
    """Weight of a victim's own gradient in the update, summed over its visits.

    Args:
        local: The announced training.
        batch: Images of a client.
        steps: From `step_weights`.
        sampled: Whether sums of clipped samples are divided by the expected size of a mini-batch, as in DP-SGD,
            instead of the actual one.

    Returns:
        One for each image in the order of the batch; for a batch that is shuffled, of many simulated orders.
    """
    expected = _divisor(local, batch)
    sizes = torch.full((local.batches(batch),), expected)
    sizes[-1] = min(expected, batch - expected * (len(sizes) - 1))
    order = torch.arange(len(sizes)) // local.accumulate_grad_batches
    shares = 1.0 / (local.accumulate_grad_batches * (torch.full_like(sizes, expected) if sampled else sizes).double())
    # One row for each epoch; images that are left out at the end of an epoch have the weight 0.
    visits = (steps.view(local.epochs, -1)[:, order] * shares).repeat_interleave(sizes, dim=1)
    visits = torch.nn.functional.pad(visits, (0, batch - visits.shape[1]))
    if not local.shuffle:
        return visits.sum(dim=0)
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(_ORDERS, *visits.shape, generator=generator).argsort(dim=2)
    return visits.expand(_ORDERS, -1, -1).gather(2, places).sum(dim=1).flatten()


def _divisor(local: LocalTraining, batch: int) -> int:
    """Expected size of a mini-batch, by which DP-SGD divides."""
    return min(batch, local.batch_size or batch)
