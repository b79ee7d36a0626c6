# SPDX-License-Identifier: Apache-2.0
"""Run all checks of a received model on the client's own images, and describe the findings."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_recon.defense.checks import (
    Reading,
    constant_inputs,
    energy_share,
    false_gradient,
    linear_gradient,
    repeated_rows,
    silent_layer,
    zero_gradient,
)
from lightning_recon.defense.probes import gradient_of, randomize_zero_weights
from lightning_recon.losses import LossName, loss_named

# A check raises an alarm above its threshold. Chosen so that no ordinary network of results/detector.csv reaches one;
# they lie half-way to the structures or nearer to them. Other networks were not tested.
THRESHOLDS = {
    "repeated_rows": 0.5,
    "constant_inputs": 0.5,
    "energy_share": 0.99,
    "false_gradient": 0.1,
    "silent_layer": 0.5,
    "linear_gradient": 0.01,
    "zero_gradient": 0.5,
}
_SENTENCES = {
    "repeated_rows": "{value:.0%} of the rows of {where} are parallel to another: units that measure the same quantity",
    "constant_inputs": "{value:.0f} inputs of {where} are equal for every image: a pilot that reveals scale and sign",
    "energy_share": "{value:.1%} of the gradient's energy is in layers like {where}: it dominates the clipping budget",
    "false_gradient": "{value:.1%} of the gradient's energy is no derivative of the loss: a hidden layer is cancelled",
    "silent_layer": "{where} takes {value:.1%} of the gradient's energy, but its removal hardly changes the logits",
    "linear_gradient": "{value:.1%} of the gradient's energy is a linear copy of the image, most of it in {where}",
    "zero_gradient": "weights such as {where} make up {value:.0%} of the logits' change, but their gradient is zero",
}
_NOTHING = "nothing suspicious ({value:.3g}; the threshold is {threshold:g})"


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Args:
        check: name of the check.
        value: the statistic, at least 0; near 0 for an ordinary network.
        threshold: the check raises an alarm above it.
        where: the tensor or layer in which the statistic is greatest; empty if there is none.
    """

    check: str
    value: float
    threshold: float
    where: str

    @property
    def alarm(self) -> bool:
        """Whether a careful client should find the reason before it answers."""
        return self.value > self.threshold

    @property
    def sentence(self) -> str:
        """The finding in one sentence."""
        text = _SENTENCES[self.check] if self.alarm else _NOTHING
        return text.format(value=self.value, where=self.where, threshold=self.threshold)


def inspect_model(model: nn.Module, images: Tensor, labels: Tensor, loss: LossName = "cross_entropy") -> list[Finding]:
    """Check a received model as a careful client can before it answers.

    The absence of alarms proves nothing: a server that knows these checks can evade each of them, and the docstring of
    each says how. Only clipping and noise protect. Costs a few forward and backward passes, and a copy of the model in
    double precision.

    Args:
        model: images to logits, float32, as it was received; it is not changed.
        images: (B, channels, height, width), float32: some of the client's own images, B at least 1. A single image
            is checked together with its mirror image, because batch normalization needs two.
        labels: (B,), int64, or the targets of another loss, (B, ...).
        loss: name of the announced loss.

    Returns:
        One finding for each check, in the order of `THRESHOLDS`.
    """
    model, value = randomize_zero_weights(model), loss_named(loss)
    if len(images) == 1:
        images, labels = torch.cat([images, images.flip(-1)]), torch.cat([labels, labels])
    gradient = gradient_of(model, images, labels, value)
    readings: dict[str, Reading] = {
        "repeated_rows": repeated_rows(model),
        "constant_inputs": constant_inputs(model, images),
        "energy_share": energy_share(gradient),
        "false_gradient": false_gradient(model, images, labels, value),
        "silent_layer": silent_layer(model, images, gradient),
        "linear_gradient": linear_gradient(model, images, labels, value),
        "zero_gradient": zero_gradient(model, images, gradient),
    }
    return [Finding(name, readings[name].value, level, readings[name].where) for name, level in THRESHOLDS.items()]
