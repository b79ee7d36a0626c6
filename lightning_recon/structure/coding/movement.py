# SPDX-License-Identifier: Apache-2.0
"""How far local training moves a weight whose gradient is zero in all steps but those that hold its image.

The optimizer is asked itself, with one weight for each step of an epoch: formulas for bias corrections, decay, momentum
and schedules are those of PyTorch. Under Adam the first gradient moves a weight by the learning rate, whatever its
magnitude; in later steps the moments decay at known rates, and a weight that is reached at step t moves at bias
corrections of that step.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_recon.exchange import LocalTraining

# Magnitudes of gradients whose movements are compared; far above any epsilon.
_GRADIENT, _OTHER = 1e6, 1e8
# Relative difference up to which movements are equal.
_SAME = 1e-3
_PREFIX = "torch.optim."
# Its steps depend on whole rows and columns of a weight, of which a probe of single entries shows nothing.
_FACTORED = "Adafactor"
# Orders of a shuffled batch that are simulated.
_ORDERS = 16


def scale_free(local: LocalTraining) -> bool:
    """Whether the optimizer moves a weight alike whatever the scale of its gradient, as Adam does and SGD does not.

    False for an optimizer that is not one of PyTorch's.
    """
    moved = _moved(local, torch.tensor([[_GRADIENT, _OTHER]], dtype=torch.float64))
    return moved is not None and bool(moved[0] != 0) and bool((moved[1] / moved[0] - 1).abs() < _SAME)


def movements(local: LocalTraining, images: int, gains: Tensor | None = None) -> Tensor:
    """Movement of the weights of a row along its gradient's sign, for each step of an epoch that may hold its image.

    Args:
        local: What was announced; an optimizer for which `scale_free` holds.
        images: Of a client.
        gains: Factors of the gradient in each optimizer step, shape (..., steps of all epochs), of which several lists
            can be compared; None: 1.

    Returns:
        Shape (..., steps), float64, as it is sent; in random orders (several for each step) if the batch is shuffled.
    """
    steps = local.steps_of_epoch(images)
    if local.shuffle and local.epochs > 1 and steps > 1:
        generator = torch.Generator().manual_seed(9)
        held = torch.randint(steps, (local.epochs, _ORDERS * steps), generator=generator)
    else:
        held = torch.arange(steps).expand(local.epochs, -1)
    if gains is None:
        gains = torch.ones(local.epochs * steps, dtype=torch.float64)
    lists = gains.reshape(-1, local.epochs, steps)
    held = held.expand(len(lists), -1, -1)
    gradients = torch.zeros(local.epochs, steps, *held[:, 0].shape, dtype=torch.float64)
    gradients.scatter_(1, held.transpose(0, 1)[:, None], _GRADIENT * lists.gather(2, held).transpose(0, 1)[:, None])
    moved = _moved(local, gradients.flatten(2).flatten(0, 1))
    assert moved is not None
    return moved.view(*gains.shape[:-1], -1)


def steady_movement(local: LocalTraining, images: int) -> float:
    """Movement of a weight that has a gradient in every step, as it is sent."""
    moved = _moved(local, torch.full((local.steps(images), 1), _GRADIENT, dtype=torch.float64))
    return 0.0 if moved is None else float(moved[0])


def _moved(local: LocalTraining, gradients: Tensor) -> Tensor | None:
    """Old minus new weights after steps with these gradients, shape (steps, weights); None if nobody knows.

    Weight decay is left out: a row starts at 0, and its gradient is far larger.
    """
    weights = torch.zeros(gradients.shape[1], dtype=torch.float64, requires_grad=True)
    name = local.optimizer.rpartition(".")[2]
    kind: Any = getattr(torch.optim, name, None) if local.optimizer.startswith(_PREFIX) else None
    if name == _FACTORED or not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        return None
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in local.options.items()
        if name not in ("weight_decay", "decoupled_weight_decay", "maximize")
    }
    try:
        make: Any = kind
        optimizer = make([weights], lr=local.learning_rate(0), **options)
        for step, gradient in enumerate(gradients):
            optimizer.param_groups[0]["lr"] = local.learning_rate(step)
            weights.grad = gradient.clone()
            optimizer.step()
    except (TypeError, ValueError, RuntimeError):  # options of another version, or a closure that is needed
        return None
    moved = -weights.detach() / local.divisor
    return moved if bool(moved.isfinite().all()) else None
