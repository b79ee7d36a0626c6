# SPDX-License-Identifier: Apache-2.0
"""The classifier's last layer, found by what it does: the parameters whose gradient is softmax minus one-hot.

Under other losses it is the loss's own gradient with respect to each output, for instance sigmoid minus label.

The gradient of the logits' loss with respect to a class's bias is the loss's own gradient with respect to its logit,
whatever the layer is called and wherever it is registered; no other parameters have that property.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_recon.attack.inversion.forward_model import Update
from lightning_recon.attack.inversion.functional_model import FunctionalModel

_EXACT = 1e-3  # relative deviation from exact proportionality that rounding may leave
_SPREAD = 4.0  # factor by which the gain of a layer without bias may differ between images


@dataclass(frozen=True)
class Head:
    """The parameters whose gradient is the classes' errors: the mean of softmax minus one-hot, times a positive factor.

    Args:
        weight: name of the weight, (classes, inputs) or the same as a convolution of one pixel; None if it has none.
        bias: name of the bias, (classes,); None if it has none.
        layer: name of the linear layer that holds both; None if it is of another kind.
        gains: factor of each class, (classes,): 1 for linear layers, less where only a part of a map counts.
        direction: without a bias, what every row of the weight's gradient is multiplied with, (inputs,); None if
            images differ so much in it that it shows nothing of several images.
    """

    weight: str | None
    bias: str | None
    layer: str | None
    gains: Tensor
    direction: Tensor | None = None

    @property
    def of_batches(self) -> bool:
        """Whether it shows the labels of several images, and not only those of one."""
        return self.bias is not None or self.direction is not None

    def errors(self, update: Update, noise: float) -> tuple[Tensor, float]:
        """The errors of the classes, with the standard deviation of their noise.

        Args:
            update: by parameter name.
            noise: standard deviation on every number of it.

        Returns:
            (classes,), and the largest standard deviation among them.
        """
        if self.bias is not None:
            gains = self.gains.to(update[self.bias])
            return update[self.bias] / gains, noise / float(gains.min())
        rows = update[str(self.weight)].flatten(1)
        if self.direction is None:  # of one image: the rows are its errors times one vector, its class's the longest
            return -torch.linalg.vector_norm(rows, dim=1), noise * math.sqrt(rows.shape[1])
        return rows @ self.direction.to(rows), noise * float(torch.linalg.vector_norm(self.direction))


def find_head(model: FunctionalModel, images: Tensor) -> Head | None:
    """The parameters whose gradient is softmax minus one-hot; None if there are none.

    Args:
        model: the network, in the mode in which clients differentiate.
        images: public ones, at least 2, (N, C, H, W).
    """
    values = {name: value.detach().requires_grad_() for name, value in model.parameters.items()}
    with torch.enable_grad():
        logits = model.at(values, images)
    classes = logits.shape[1]  # or labels, or values
    candidates = [name for name, value in values.items() if value.dim() and len(value) == classes]
    biases = [name for name in candidates if values[name].dim() == 1]
    weights = [
        name for name in candidates if values[name].dim() > 1 and values[name][0].numel() == values[name].shape[1]
    ]
    if not candidates or not logits.requires_grad or logits.dim() != 2:
        return None
    # Errors of the first image alone, whose sum is zero as that of softmax minus one-hot always is.
    generator = torch.Generator().manual_seed(0)
    errors = torch.randn(2, classes, generator=generator).to(logits)
    errors = errors - errors.mean(1, keepdim=True)
    seen = [_gradients(logits[:1], one[None], values, biases + weights) for one in errors]
    for exact in (True, False):
        for bias in reversed(biases):
            gains = _gains(seen[0][bias] / errors[0], seen[1][bias] / errors[1], exact)
            if gains is not None:
                return _with_bias(model, bias, gains, logits, values, exact)
    for weight in reversed(weights):
        if all(_one_direction(found[weight].flatten(1), one) for found, one in zip(seen, errors, strict=True)):
            direction = _direction(weight, logits, values, errors[0])
            return Head(weight, None, None, torch.ones(classes), direction)
    return None


def _gradients(logits: Tensor, errors: Tensor, values: Update, names: list[str]) -> Update:
    found = torch.autograd.grad(
        logits, [values[name] for name in names], errors, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(names, found, strict=True))


def _gains(first: Tensor, second: Tensor, exact: bool) -> Tensor | None:
    """Ratio of each class's entry to its logit's error, if both trials agree that it depends on nothing else."""
    top = float(first.abs().max())
    if not 0 < top < math.inf or not torch.allclose(first, second, rtol=0, atol=_EXACT * top):
        return None
    if float(first.min()) < -_EXACT * top:
        return None
    if exact:
        return torch.ones_like(first) if float(first.min()) > (1 - _EXACT) * top else None
    return first.clamp(min=0)


def _with_bias(model: FunctionalModel, bias: str, gains: Tensor, logits: Tensor, values: Update, exact: bool) -> Head:
    place, _, _ = bias.rpartition(".")
    weight = f"{place}.weight" if place else "weight"
    layer = place if isinstance(model.network.get_submodule(place), nn.Linear) else None
    if not exact:  # the mean over all images: of one, a class may happen to count for nothing
        each = [
            _gradients(logits[n : n + 1], torch.ones_like(logits[:1]), values, [bias])[bias] for n in range(len(logits))
        ]
        gains = torch.stack(each).mean(0)
        gains = (gains / gains.max()).clamp(min=0.05)
    return Head(weight if weight in values else None, bias, layer, gains.detach(), None)


def _one_direction(rows: Tensor, errors: Tensor) -> bool:
    """Whether a weight's gradient is the errors times one vector."""
    along = torch.outer(errors, errors @ rows) / errors.square().sum()
    energy = torch.linalg.vector_norm(rows)
    return bool(energy > 0) and bool(torch.linalg.vector_norm(rows - along) < _EXACT * energy)


def _direction(weight: str, logits: Tensor, values: Update, errors: Tensor) -> Tensor | None:
    """The mean input of a layer without bias, scaled to show errors as a bias would; None if images disagree.

    Every image's errors reach the weight times that image's input, and a product with the mean input leaves the
    errors times a number, if that number is about the same for all images.
    """
    each = []
    for number in range(len(logits)):
        rows = _gradients(logits[number : number + 1], errors[None], values, [weight])[weight].flatten(1)
        each.append(errors @ rows / errors.square().sum())
    inputs = torch.stack(each)
    mean = inputs.mean(0)
    shown = inputs @ mean / mean.square().sum().clamp(min=1e-30)
    if float(shown.min()) <= 0 or float(shown.max()) > _SPREAD * float(shown.min()):
        return None
    return (mean / mean.square().sum()).detach()
