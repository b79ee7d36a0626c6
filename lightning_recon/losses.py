# SPDX-License-Identifier: Apache-2.0
"""The losses that a client may train by, by name: the server announces one, and never knows the targets.

Each is a pure function of outputs and targets that returns the mean over the batch, so that the loss of one sample is
the loss of a batch of one.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.plural import counted

Loss = Callable[[Tensor, Tensor], Tensor]  # outputs (B, ...), targets (B, ...) -> scalar, the mean over the batch
LossName = Literal["cross_entropy", "binary_cross_entropy", "mean_squared_error", "dice", "dice_bce"]
LOSS_NAMES: tuple[LossName, ...] = get_args(LossName)

# Added to numerator and denominator of the Dice coefficient, as MONAI's DiceLoss does. It keeps the loss of an empty
# mask defined, and leaves it a gradient.
DICE_SMOOTHING = 1e-5


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy of every output with its target, as for several labels, or the pixels of a mask.

    Args:
        outputs: logits, (B, labels) or (B, channels, H, W).
        targets: in [0, 1], floating point, of the same shape.

    Raises:
        UserError: the shapes differ.
    """
    _check_shapes(outputs, targets)
    return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs))


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared difference of outputs and targets; shapes as in `binary_cross_entropy`."""
    _check_shapes(outputs, targets)
    return F.mse_loss(outputs, targets.to(outputs))


def dice(outputs: Tensor, targets: Tensor) -> Tensor:
    """Soft Dice loss of masks: 1 - (2 Σ p y + s)/(Σ p + Σ y + s), the mean over images and channels.

    Args:
        outputs: logits, (B, channels, H, W); p are their sigmoids.
        targets: masks y in [0, 1], floating point, of the same shape.

    Raises:
        UserError: the shapes differ, or they are no maps.

    Source: Milletari et al. 2016 (arXiv 1606.04797), with the denominator of Dice (1945).
    """
    _check_shapes(outputs, targets)
    if outputs.ndim != 4:
        raise UserError(
            f"the Dice loss is of masks, and the model returns the shape {tuple(outputs.shape)}: choose a network that "
            "returns (B, channels, H, W), or --model.client.loss binary_cross_entropy"
        )
    probability, targets = outputs.sigmoid().flatten(2), targets.to(outputs).flatten(2)
    both = 2 * (probability * targets).sum(2) + DICE_SMOOTHING
    each = probability.sum(2) + targets.sum(2) + DICE_SMOOTHING
    return (1 - both / each).mean()


def dice_bce(outputs: Tensor, targets: Tensor) -> Tensor:
    """The sum of `dice` and `binary_cross_entropy`, as segmentation networks are usually trained."""
    return dice(outputs, targets) + binary_cross_entropy(outputs, targets)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean softmax cross-entropy: of class indices (B,) or probabilities (B, classes), or of maps of class indices.

    Args:
        outputs: logits, (B, classes) or (B, classes, H, W).
        targets: (B,), int64, or (B, classes), floating point; or (B, H, W), int64.

    Raises:
        UserError: the shapes do not fit each other.
    """
    if targets.shape not in (outputs.shape, outputs.shape[:1] + outputs.shape[2:]):
        raise _misfit(outputs, targets)
    return F.cross_entropy(outputs, targets)


_LOSSES: dict[LossName, Loss] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "mean_squared_error": mean_squared_error,
    "dice": dice,
    "dice_bce": dice_bce,
}


def loss_named(name: LossName) -> Loss:
    """The loss of a name."""
    return _LOSSES[name]


def check_outputs(loss: LossName, outputs: int) -> None:
    """Refuse a number of outputs that a loss is not defined for.

    Args:
        loss: name of the loss.
        outputs: number of logits, values or channels.

    Raises:
        UserError: the cross-entropy of a single class is always 0.
    """
    if outputs < 2 and loss == "cross_entropy":
        raise UserError(
            f"num_classes is {outputs}: the cross-entropy needs at least 2 classes, and of a single output "
            "--model.client.loss is binary_cross_entropy or mean_squared_error"
        )


def as_targets(loss: LossName, labels: Tensor, outputs: int) -> Tensor:
    """The targets of a loss for what a data set has.

    Args:
        loss: name of the loss.
        labels: class indices (B,) or (B, H, W), int64; or labels or values (B, outputs), or masks (B, channels, H, W),
            float32.
        outputs: number of classes, of labels or values, or of channels.

    Returns:
        Of class indices a one-hot vector where the loss has a target for each output, (B, outputs) float32. Of a mask
        of one channel the class of each pixel, (B, H, W) int64, where the loss is the cross-entropy. Else the same.

    Raises:
        UserError: a label is not one of the classes, or targets do not fit loss or number of outputs.
    """
    if labels.ndim == 1 and not labels.is_floating_point():
        _check_classes(labels, outputs)
        if loss == "cross_entropy":
            return labels
        if loss in ("dice", "dice_bce"):
            raise UserError(f"--model.client.loss is {loss}, whose targets are masks: set --data.targets masks")
        return F.one_hot(labels, outputs).float()
    if loss == "cross_entropy":
        if labels.ndim == 3 and not labels.is_floating_point():
            _check_classes(labels, outputs)
            return labels
        if labels.ndim != 4 or labels.shape[1] != 1:
            raise UserError(
                f"--model.client.loss is cross_entropy, and the targets have the shape {tuple(labels.shape)}: it needs "
                "class indices, or masks of one channel; several labels are learned by binary_cross_entropy, values by "
                "mean_squared_error"
            )
        return (labels[:, 0] > 0.5).long()
    if labels.ndim == 3:
        raise UserError(
            f"the targets have the shape {tuple(labels.shape)}, and {loss} needs masks with an axis of channels: make "
            f"them ({labels.shape[0]}, 1, {labels.shape[1]}, {labels.shape[2]})"
        )
    if labels.ndim < 2 or labels.shape[1] != outputs:
        each = labels.shape[1] if labels.ndim > 1 else 1
        what = f"targets of {counted(each, 'channel')}" if are_maps(labels) else counted(each, "target")
        raise UserError(
            f"the data have {what} for an image, and the network {counted(outputs, 'output')}: set "
            f"--model.client.num_classes {each}"
        )
    if loss != "mean_squared_error" and labels.numel() and not (labels.min() >= 0 and labels.max() <= 1):
        raise UserError(
            f"the targets reach from {float(labels.min()):g} to {float(labels.max()):g}, and those of {loss} are in "
            "[0, 1]: correct them, or set --model.client.loss mean_squared_error"
        )
    return labels


def are_maps(targets: Tensor) -> bool:
    """Whether targets are maps over the pixels of an image: (B, channels, H, W), or class indices (B, H, W)."""
    return targets.ndim >= 3


def _check_classes(labels: Tensor, outputs: int) -> None:
    if labels.numel() and int(labels.min()) < 0:
        raise UserError(
            f"an image has the label {int(labels.min())}, and classes are counted from 0: leave out images without "
            "a label"
        )
    if labels.numel() and int(labels.max()) >= outputs:
        raise UserError(
            f"the images have labels up to {int(labels.max())}, but the network has {outputs} classes: "
            "raise --model.client.num_classes"
        )


def _check_shapes(outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape != targets.shape:
        raise _misfit(outputs, targets)


def _misfit(outputs: Tensor, targets: Tensor) -> UserError:
    return UserError(
        f"the model returns the shape {tuple(outputs.shape)}, and the targets have {tuple(targets.shape)}: choose a "
        "network, a loss (--model.client.loss) and targets (--data.targets) that fit each other"
    )


def relaxed_targets(loss: LossName, free: Tensor) -> Tensor:
    """Targets as a smooth function of free numbers, for an attack that optimises them beside the images.

    Args:
        loss: name of the loss.
        free: any real numbers, (..., outputs).

    Returns:
        Probabilities of the classes, the probability of each label, or values; of the same shape.
    """
    if loss == "cross_entropy":
        return torch.softmax(free, -1)
    return free if loss == "mean_squared_error" else free.sigmoid()
