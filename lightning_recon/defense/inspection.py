# SPDX-License-Identifier: Apache-2.0
"""Run all checks of a received model on the client's own images and word the findings."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_recon.defense.checks import (
    Reading,
    awake,
    constant_inputs,
    energy_share,
    false_gradient,
    gradient_of,
    linear_gradient,
    repeated_rows,
    silent_layer,
    zero_gradient,
)

# Above these a check alarms. Chosen so that none of the ordinary networks of results/detector.csv does, half-way or
# nearer to the structures: they say how those networks look, nothing of networks that were not looked at.
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
    "constant_inputs": "{value:.0f} inputs of {where} are the same for every image: a pilot reveals scale and sign",
    "energy_share": "{value:.1%} of the gradient's energy is in the layer, or the shape, of {where}: it wins the clip",
    "false_gradient": "{value:.1%} of the gradient's energy is no derivative of the loss: something cancels unseen",
    "silent_layer": "{where} takes {value:.1%} of the gradient's energy, and without it the logits hardly change",
    "linear_gradient": "{value:.1%} of the gradient's energy is a linear copy of the image, most of it in {where}",
    "zero_gradient": "weights such as {where} make {value:.0%} of the logits' movement, and their gradient is zero",
}
_NOTHING = "nothing conspicuous ({value:.3g}, an alarm is above {threshold:g})"


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Args:
        check: its name.
        value: the statistic, at least 0; an ordinary network is near 0.
        threshold: above which it alarms.
        where: the tensor or layer that shows it the most; empty if none does.
    """

    check: str
    value: float
    threshold: float
    where: str

    @property
    def alarm(self) -> bool:
        """Whether a careful client should not answer before it knows why."""
        return self.value > self.threshold

    @property
    def sentence(self) -> str:
        """The finding in plain words."""
        text = _SENTENCES[self.check] if self.alarm else _NOTHING
        return text.format(value=self.value, where=self.where, threshold=self.threshold)


def inspect_model(model: nn.Module, images: Tensor, labels: Tensor) -> list[Finding]:
    """Look at a shipped model as a careful client can, before it answers.

    No alarm is no proof: a server that knows these checks can evade each of them, and the docstring of each says how.
    Clip and noise are what protects. A few forward and backward passes and a copy of the model in double precision.

    Args:
        model: images to logits, float32, as it was shipped; it stays as it is.
        images: (B, channels, height, width), float32: some of the client's own images, B at least 1; a single
            one is looked at together with its mirror image, as layers that normalise a batch want two.
        labels: (B,), int64.

    Returns:
        One finding a check, in the order of `THRESHOLDS`.
    """
    model = awake(model)
    if len(images) == 1:
        images, labels = torch.cat([images, images.flip(-1)]), labels.repeat(2)
    gradient = gradient_of(model, images, labels)
    readings: dict[str, Reading] = {
        "repeated_rows": repeated_rows(model),
        "constant_inputs": constant_inputs(model, images),
        "energy_share": energy_share(gradient),
        "false_gradient": false_gradient(model, images, labels),
        "silent_layer": silent_layer(model, images, gradient),
        "linear_gradient": linear_gradient(model, images, labels),
        "zero_gradient": zero_gradient(model, images, gradient),
    }
    return [Finding(name, readings[name].value, level, readings[name].where) for name, level in THRESHOLDS.items()]
