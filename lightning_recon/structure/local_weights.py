# SPDX-License-Identifier: Apache-2.0
"""How the gradients of a client's local SGD steps add up in its update: weights of the victims, and the noise.

The update of any number of SGD steps, with momentum, weight decay and a learning rate schedule, is a linear function of
their gradients. A structure that measures with constants has the same gradient for an image at every step, so a
victim's rows are this gradient times the sum of the known weights of the steps that visit it.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_recon.exchange import LocalTraining, Task
from lightning_recon.exchange.local_training import SGD

_OPTIONS = ("momentum", "dampening", "nesterov", "weight_decay", "maximize")
# Weights that differ by less are equal.
_ROUNDING = 1e-9
# Upper limit of the factor that makes up for a small weight of a step.
_LARGEST_GAIN = 100.0
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
    victims = victim_weights(local, task.batch_size, task.granularity == "sample")
    root = float(victims.square().mean().sqrt())
    seen = victims[victims != 0].abs() / root
    spread = float(seen.log().std(correction=0))
    found = LocalWeights(
        size=root * task.batch_size,
        typical=math.exp(float(seen.log().mean())),
        weakest=float(seen.min()),
        spread=spread if spread > _ROUNDING else 0.0,
    )
    if task.granularity == "update":
        return found
    noise = step_weights(local, task.batch_size) / _dp_sgd_divisors(local, task.batch_size).repeat(local.epochs)
    return replace(found, signal=root, noise=float(noise.norm()))


def layer_settings(task: Task, strength: float) -> dict[str, bool | int | float | str]:
    """Settings of a cancelling layer that fit the announced local training.

    Where a client trains, the trained weight starts at zero, on which weight decay does nothing, and over several
    epochs the gradient of an image keeps its sign. Where the change of the weights is clipped, the strength makes up
    for small learning rates, so that this change exceeds the clip.

    Args:
        task: What was announced.
        strength: Factor of the layer's gradient for one step of plain SGD.
    """
    if task.local.is_plain_step:
        return {"strength": strength}
    size = local_weights(task).size if task.granularity == "update" else 1.0
    fixed = {"fixed_signs": True} if task.local.epochs > 1 else {}
    return {"strength": strength / size, "zero_weight": True, **fixed}


def layer_tensors(task: Task) -> dict[str, Tensor]:
    """Tensors of a cancelling layer that fit the announced local training, see `step_gains`."""
    if task.local.is_plain_step or task.local.optimizer != SGD or task.granularity == "sample":
        return {}
    return {"step_gains": step_gains(task.local, task.batch_size).float()}


def step_gains(local: LocalTraining, batch: int) -> Tensor:
    """Factors of the gradients of each image of every mini-batch, with which all images get the same weight.

    Under momentum an early step moves the weights more than a late one, and a smaller mini-batch weighs its images
    more. A layer that counts mini-batches can make up for both. Factors have an upper limit, so that a last step whose
    learning rate is nearly zero does not take the whole update.

    Args:
        local: The announced training.
        batch: Images of a client.

    Returns:
        Shape (mini-batches of all epochs,), float64; to be multiplied by the size of the mini-batch.
    """
    weights = step_weights(local, batch)
    usual = weights.abs().mean()
    gains = torch.where(weights < 0, -1.0, 1.0) / (weights.abs() / usual).clamp(min=1 / _LARGEST_GAIN)
    return gains_of_batches(gains, local, batch)


def gains_of_batches(gains: Tensor, local: LocalTraining, batch: int) -> Tensor:
    """The tensor `step_gains` of a layer.

    Args:
        gains: Factor of the gradient of each image in every optimizer step, shape (steps of all epochs,).
        local: The announced training.
        batch: Images of a client.

    Returns:
        Shape (mini-batches of all epochs,); to be multiplied by the size of the mini-batch.
    """
    return gains.view(local.epochs, -1)[:, _steps_of_batches(local, batch)].flatten() / (local.batch_size or batch)


def step_weights(local: LocalTraining, batch: int) -> Tensor:
    """Weight of each optimizer step's gradient in the update.

    The optimizer itself is asked: each step's gradient is a unit impulse to a parameter of its own.

    Args:
        local: The announced training.
        batch: Images of a client.

    Returns:
        Shape (optimizer steps,), float64.
    """
    impulses = torch.zeros(local.steps(batch), dtype=torch.float64, requires_grad=True)
    options: dict[str, Any] = {name: value for name, value in local.options.items() if name in _OPTIONS}
    optimizer = torch.optim.SGD([impulses], lr=local.learning_rate(0), **options)
    for step in range(len(impulses)):
        optimizer.param_groups[0]["lr"] = local.learning_rate(step)
        impulses.grad = torch.zeros_like(impulses)
        impulses.grad[step] = 1.0
        optimizer.step()
    return -impulses.detach() / local.divisor


def victim_weights(local: LocalTraining, batch: int, sampled: bool) -> Tensor:
    """Weight of a victim's own gradient in the update, summed over its visits.

    Args:
        local: The announced training.
        batch: Images of a client.
        sampled: Whether each sample is clipped, so that `step_gains` have no effect, and sums over samples are divided
            by an expected number of images, as in DP-SGD.

    Returns:
        One for each image in the order of the batch; for a batch that is shuffled, of many simulated orders.
    """
    size, steps = local.batch_size or batch, _steps_of_batches(local, batch)
    weights = step_weights(local, batch).view(local.epochs, -1)[:, steps]
    if sampled:
        weights = weights / _dp_sgd_divisors(local, batch)[steps]
    else:
        gains = step_gains(local, batch).view_as(weights)
        weights = weights * gains / local.accumulate_grad_batches
    sizes = torch.full((len(steps),), size)
    sizes[-1] = min(size, batch - size * (len(steps) - 1))
    # One row for each epoch; images that are left out at the end of an epoch have the weight 0.
    visits = weights.repeat_interleave(sizes, dim=1)
    visits = torch.nn.functional.pad(visits, (0, batch - visits.shape[1]))
    if not local.shuffle:
        return visits.sum(dim=0)
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(_ORDERS, *visits.shape, generator=generator).argsort(dim=2)
    return visits.expand(_ORDERS, -1, -1).gather(2, places).sum(dim=1).flatten()


def _steps_of_batches(local: LocalTraining, batch: int) -> Tensor:
    """Which optimizer step of an epoch each of its mini-batches belongs to."""
    return torch.arange(local.batches(batch)) // local.accumulate_grad_batches


def _dp_sgd_divisors(local: LocalTraining, batch: int) -> Tensor:
    """What DP-SGD divides the sum over clipped samples by, in every optimizer step of an epoch."""
    return local.expected_batch_size(batch) * torch.bincount(_steps_of_batches(local, batch)).double()
