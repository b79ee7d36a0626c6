# SPDX-License-Identifier: Apache-2.0
"""Head weights of losses beside the cross-entropy of one label: which outputs carry the gradient to the structure.

The structure adds u · (activation − frozen copy) to the outputs z, which changes nothing, and the gradient weight of a
sample is δ = Σ u · ∂L/∂z over its outputs. The server knows z but not the targets y, so u is chosen for each sample
such that |δ| depends on them as little as can be, and never vanishes:

- Binary cross-entropy of L outputs: ∂L/∂z = (σ(z) − y)/L. With u = ±2L on outputs whose less likely values have the
  probabilities q, |δ| = 2 |Σ q − n|, n of them being true. Where Σ q = 1/2, it is 1 for n = 0 and for n = 1.
- Cross-entropy of every pixel: `balanced_code` on one pixel, times their number.
- Dice: ∂L/∂z = p(1 − p)(A − 2 y D)/D², with A = 2 Σ p y + s and D = Σ p + Σ y + s, is never 0 at a single pixel. A sum
  over pixels could be. |δ| depends on the unknown area of the mask: where p = 1/2 everywhere, by a factor of 3 between
  areas of 5 and 80 %. It is 2 to 20 times as large where the pixel is in the mask. Hence a pixel of the image's
  border, where masks seldom reach, and one that the network hardly believes to be in the mask.
- Dice plus binary cross-entropy: both have the same sign at a pixel; of the second |δ| = 1 at an undecided one.
- Mean squared error: ∂L/∂z = 2 (z − y)/L, a residual that the server does not know, so nothing can be equalised.
"""

import math

import torch
from torch import Tensor

from lightning_recon.exchange import Task
from lightning_recon.losses import LossName
from lightning_recon.structure.head_weights import MAX_WEIGHT_RATIO, balanced_code, class_code

# The most outputs that carry a sample's gradient together: were all of them unlike the prediction, its weight would be
# about twice this, as that of a misclassified sample may be 30 times as large.
_MOST_OUTPUTS = int(MAX_WEIGHT_RATIO)
# Probability of the mask at the pixel that carries the gradient of the Dice loss: hardly ever in the mask, and not so
# sure that its own gradient vanishes.
_UNLIKELY = 1 / MAX_WEIGHT_RATIO
_LEAST_SLOPE = 1e-6  # of the sigmoid at that pixel, for which the weights still make up


def loss_code(loss: LossName, outputs: Tensor, signs: Tensor | None = None) -> Tensor:
    """Head weights for each image under which its gradient weight depends least on its targets.

    Args:
        loss: name of the loss.
        outputs: the network's own outputs, shape (B, outputs) or (B, channels, H, W), without gradient.
        signs: as in `balanced_code`. Where the sign of an image's gradient must stay the same at every visit, losses
            other than the cross-entropy use the first output of each image. None: whichever output is best.

    Returns:
        Of the shape and dtype of the outputs.
    """
    if loss == "cross_entropy":
        return balanced_code(outputs, signs) if outputs.ndim == 2 else _pixel_code(outputs, signs)
    if loss == "mean_squared_error":
        return torch.ones_like(outputs)
    logits = outputs.flatten(1)
    if loss == "binary_cross_entropy":
        code = _binary_code(logits, 1 if signs is not None else _MOST_OUTPUTS, signs is not None)
    elif loss == "dice_bce":
        code = _binary_code(logits, 1, signs is not None)
    else:
        code = _dice_code(outputs, signs is not None).flatten(1)
    return code.view_as(outputs)


def loss_settings(task: Task) -> dict[str, bool | int | float | str]:
    """The settings of a layer that fit the announced loss; none for the cross-entropy, as in earlier payloads."""
    return {} if task.loss == "cross_entropy" else {"loss": task.loss}


def fixed_code(loss: LossName, outputs: int) -> Tensor:
    """The same head weights for all images, shape (outputs,), for logits of which nothing is known.

    Args:
        loss: name of the loss.
        outputs: number of classes, of labels or values, or of channels; every pixel of a channel has its weight.

    Returns:
        `class_code` for the cross-entropy, ones for the mean squared error; else the first output alone, since errors
        of several labels can cancel.
    """
    if loss == "cross_entropy":
        return class_code(outputs)
    code = torch.ones(outputs)
    if loss != "mean_squared_error":
        code[1:] = 0
    return code


def _binary_code(logits: Tensor, most: int, first: bool) -> Tensor:
    """Weights of the binary cross-entropy, shape (B, L): of up to `most` outputs, or of the first one alone."""
    # Of each output the probability of its less likely value, in a form that stays above 0 for sure ones.
    unlikely = torch.sigmoid(-logits.abs())
    if first:
        chosen, place = unlikely[:, :1], torch.zeros_like(logits[:, :1], dtype=torch.int64)
    else:
        chosen, place = unlikely.topk(min(most, logits.shape[1]), dim=1)
    total = chosen.cumsum(dim=1)
    last = (total - 0.5).abs().argmin(dim=1, keepdim=True)
    used = torch.arange(chosen.shape[1], device=logits.device) <= last
    mass = total.gather(1, last).clamp(min=1e-30)
    # |δ| is 1 for the less frequent of the two cases, and the other one at most 30 times as much.
    scale = torch.minimum(1 / torch.minimum(mass, 1 - mass), MAX_WEIGHT_RATIO / (1 - mass))
    sign = 1.0 if first else torch.where(logits.gather(1, place) < 0, 1.0, -1.0).to(logits)
    return torch.zeros_like(logits).scatter(1, place, used * sign * scale * logits.shape[1])


def _pixel_code(outputs: Tensor, signs: Tensor | None) -> Tensor:
    """Weights of the cross-entropy of every pixel: of the least decided pixel or, with signs, of the first one."""
    logits = outputs.flatten(2)  # (B, classes, pixels)
    likeliest = logits.topk(2, dim=1).values
    margin = likeliest[:, 0] - likeliest[:, 1]
    place = torch.zeros_like(margin[:, :1], dtype=torch.int64) if signs is not None else margin.argmin(1, keepdim=True)
    place = place[:, None].expand(-1, logits.shape[1], -1)
    code = balanced_code(logits.gather(2, place)[:, :, 0], signs)
    return torch.zeros_like(logits).scatter(2, place, logits.shape[2] * code[:, :, None]).view_as(outputs)


def _dice_code(outputs: Tensor, first: bool) -> Tensor:
    """Weights of the Dice loss: of one pixel, which is undone by its slope and by the predicted area of the mask."""
    logits = outputs.flatten(1)
    area = outputs.sigmoid().sum(dim=(2, 3), keepdim=True).expand_as(outputs).flatten(1)
    if first:
        place = torch.zeros_like(logits[:, :1], dtype=torch.int64)
    else:
        interior = torch.ones(outputs.shape[2:], dtype=torch.bool, device=outputs.device)
        interior[0], interior[-1], interior[:, 0], interior[:, -1] = False, False, False, False
        distance = (outputs - math.log(_UNLIKELY / (1 - _UNLIKELY))).abs().masked_fill(interior, torch.inf)
        place = distance.flatten(1).argmin(dim=1, keepdim=True)
    slope = torch.sigmoid(logits) * torch.sigmoid(-logits)
    weight = outputs.shape[1] * area / slope.clamp(min=_LEAST_SLOPE)
    return torch.zeros_like(logits).scatter(1, place, weight.gather(1, place)).view_as(outputs)
