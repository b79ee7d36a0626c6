# SPDX-License-Identifier: Apache-2.0
"""Factors of the gradients of each step with which all images of a client move their rows equally far.

Adam removes the scale of a gradient, and an image of an early step moves its row for longer than one of a late step:
in two epochs of four steps almost twice as far. The movement of the images that move least decides on the code, while
the others use up the clipping norm. What Adam does not remove is the ratio of the gradients of an image's two visits. A
second gradient of the opposite sign stops a row that the first one has set in motion, and hardly changes one that moves
for a few steps only, so that two epochs can give all images the same movement.
"""

import itertools

import torch
from torch import Tensor

from lightning_recon.exchange import LocalTraining
from lightning_recon.structure.coding.movement import movements

# The gradient weight of an image may differ by this factor between its visits, since batch normalization sees other
# mini-batches: of a ResNet-18 by 1.05 at most in 99 % of them.
_TOLERANCE = 1.1
# Most optimizer steps for which factors are sought: they help less in longer training, and the search takes longer.
_MOST_STEPS = 64
# Where the search starts: gains of the first epoch grow by these exponents, and those of the second one have these
# exponents at its beginning, and grow by these.
_FIRST, _SECOND, _GROWTH = (0, 2, 4), (-2.5, -1.5, -1, -0.5, 0), (-1, 0, 1, 2)
# Factors by which single gains are then changed, the sweeps over all of them, and the range of their magnitudes.
_CHANGES = (0.25, 0.5, 0.7, 0.85, 0.93, 0.97, 1.03, 1.07, 1.2, 1.4, 2.0, 4.0)
_SWEEPS, _ENOUGH, _RANGE = 5, 1e-3, (0.01, 100.0)
# Exponent of the mean that stands for the least movement, which changes with every gain.
_SHARPNESS, _LEAST = 16, 1e-3


def equal_movement_gains(local: LocalTraining, images: int) -> Tensor | None:
    """Factors of the gradients of each optimizer step, for an optimizer for which `scale_free` holds.

    Args:
        local: The announced training.
        images: Of a client.

    Returns:
        Shape (steps,), float64: positive in the first epoch, of the opposite sign in the second one, and 0 in later
        ones, or whatever is more even; None for one epoch, and for more than `_MOST_STEPS` steps.
    """
    steps = local.steps_of_epoch(images)
    if local.epochs == 1 or local.epochs * steps > _MOST_STEPS:
        return None
    gains = _starts(local.epochs, steps)
    evenness = _evenness(local, images, gains)
    gains, best = gains[evenness.argmax()], float(evenness.max())
    changes = torch.tensor(_CHANGES, dtype=torch.float64)
    for _ in range(_SWEEPS):
        before = best
        for step in torch.nonzero(gains).flatten().tolist():
            changed = gains.repeat(len(changes), 1)
            changed[:, step] = changed[:, step].sign() * (changed[:, step].abs() * changes).clamp(*_RANGE)
            evenness = _evenness(local, images, changed)
            if float(evenness.max()) > best:
                gains, best = changed[evenness.argmax()], float(evenness.max())
        if best - before < _ENOUGH:
            break
    return gains


def _starts(epochs: int, steps: int) -> Tensor:
    """Gains of which the best are improved: no change, one epoch alone, and a second one of the opposite sign."""
    place = torch.linspace(0, 1, steps, dtype=torch.float64)
    none = torch.zeros((epochs - 2) * steps, dtype=torch.float64)
    found = [torch.ones(epochs * steps, dtype=torch.float64)]
    for first, second, growth in itertools.product(_FIRST, _SECOND, _GROWTH):
        reversed_ = -torch.exp(second + growth * place)
        found += [torch.cat([torch.exp(first * place), reversed_, none])]
    return torch.stack(found)


def _evenness(local: LocalTraining, images: int, gains: Tensor) -> Tensor:
    """About the least movement by the root mean square, of the least favourable gradient weights, shape (lists,)."""
    steps = local.steps_of_epoch(images)
    first, later = gains[:, :steps], gains[:, steps:]
    variants = [torch.cat([first, factor * later], dim=1) for factor in (1 / _TOLERANCE, 1.0, _TOLERANCE)]
    moved = movements(local, images, torch.stack(variants, dim=1)).flatten(1)
    # Steps whose learning rate is zero move nothing, whatever the gain.
    reached = moved.abs().amax(dim=0) > 0
    moved = moved[:, reached] / moved.square().mean(dim=1, keepdim=True).sqrt()
    return moved.clamp(min=_LEAST).pow(-_SHARPNESS).mean(dim=1).pow(-1 / _SHARPNESS)
