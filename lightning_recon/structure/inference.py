# SPDX-License-Identifier: Apache-2.0
"""The layer a malicious server adds to the model: its weight gradient is a copy of the picture."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.errors import UserError
from lightning_recon.exchange import ServerPayload
from lightning_recon.structure.moments import moments
from lightning_recon.structure.transform import analyse
from lightning_recon.structure.trap_weights import trap_weights


class InferenceStructure(nn.Module):
    """Fully connected units of which each victim excites one per measurement direction.

    A picture x becomes inputs e(x): chosen, scaled coefficients followed by constants (a pilot that reveals scale and
    sign, zeros that reveal the noise). Unit k measures a = weight_k · e(x) and passes gradient only if a lies in its
    interval. All outputs are added to the logits through one ±1 code over the classes, so the gradient of the weight
    of an excited unit is δ · e(x) with δ = strength · code · (softmax − one-hot): not zero, unlike for a shift that is
    equal for all classes. With `cancel` every unit is paired with a frozen twin of opposite sign, so the layer outputs
    exactly 0 while its gradient stays what it was.

    Source: method after "Robbing the Fed" (Fowl et al. 2022) and You et al. (2025); the cancelling twin is ours.
    """

    mean: Tensor
    colour: Tensor
    index: Tensor
    gain: Tensor
    constants: Tensor
    lower: Tensor
    upper: Tensor
    code: Tensor
    bias_constants: Tensor
    offset: Tensor | None

    def __init__(self, payload: ServerPayload) -> None:
        """Build the layer from what the server shipped.

        Args:
            payload: Settings `pixels` (send pixels instead of cosine coefficients), `strength`, `cancel`,
                `target_scale` and optionally `moments` (send the statistics of `moments.moments` too); tensors named
                like the buffers below, `directions` (D, inputs), and `unit_direction` (K,); or, instead of these two,
                settings `trap_scaling`, `trap_deviation` and `trap_seed`, from which `trap_weights` makes every unit
                a weight of its own. Optional `bias_constants` (P,) gives the units a second weight over constant
                inputs, called `bias`, as in the seed paper.
                Optional `offset` (K, inputs) is taken off the inputs of each unit, so its gradient is δ · (e − offset).
        """
        super().__init__()
        tensors = payload.tensors
        for name in ("mean", "colour", "index", "gain", "constants", "lower", "upper", "code"):
            self.register_buffer(name, tensors[name].clone())
        self.pixels = bool(payload.settings["pixels"])
        self.cancel = bool(payload.settings["cancel"])
        self.strength = float(payload.settings["strength"])
        self.target_scale = float(payload.settings["target_scale"])
        if not self.cancel and bool((self.lower == -torch.inf).any()):
            raise UserError(
                "the structure has an interval without a lower end and no cancelling twin, so its output is infinite: "
                "set `cancel`, or make every lower end finite"
            )
        self.moments = bool(payload.settings.get("moments", False))
        # The weight is a recipe on the wire: every unit of one direction has that direction as its weight row.
        shipped = "directions" in tensors
        weight = tensors["directions"][tensors["unit_direction"]] if shipped else _from_recipe(payload)
        self.weight = nn.Parameter(F.pad(weight, (0, self.constants.numel())))
        offset = F.pad(tensors["offset"], (0, self.constants.numel())) if "offset" in tensors else None
        self.register_buffer("offset", offset)
        self.bias: nn.Parameter | None = None
        if "bias_constants" in tensors:
            self.register_buffer("bias_constants", tensors["bias_constants"].clone())
            self.bias = nn.Parameter(torch.zeros(len(self.weight), tensors["bias_constants"].numel()))

    def encode(self, images: Tensor) -> Tensor:
        """Inputs of the layer: the scaled coefficients of each picture, its moments if wanted, then the constants.

        Args:
            images: Shape (B, 3, H, W), values in [0, 1].

        Returns:
            Shape (B, m + constants).
        """
        picture = images if self.pixels else analyse(images, self.mean, self.colour)
        sent = picture.flatten(1)[:, self.index] * self.gain
        extra = [moments(images).flatten(1)] if self.moments else []
        return torch.cat([sent, *extra, self.constants.to(sent).expand(len(sent), -1)], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Contribution to the logits, shape (B, classes); exactly 0 with `cancel`."""
        inputs = self.encode(images)
        measured = F.linear(inputs, self.weight.detach())
        activation = F.linear(inputs, self.weight) - self._known(self.weight)
        # The same operations on the same operands round alike, so the twins cancel to the last bit.
        twin = measured - self._known(self.weight.detach()) if self.cancel else self.lower.expand_as(activation)
        if self.bias is not None:
            activation = activation + self.bias @ self.bias_constants.to(inputs)
        excited = (self.lower <= measured) & (measured < self.upper)
        output = torch.where(excited, activation - twin, 0.0).sum(dim=1, keepdim=True)
        return self.strength * output * self.code.to(output)

    def _known(self, weight: Tensor) -> Tensor | float:
        """What the units' offsets contribute to their products, shape (K,): it is sent no more."""
        return 0.0 if self.offset is None else (weight * self.offset.to(weight)).sum(dim=1)


class TamperedNetwork(nn.Module):
    """The target network with the server's inference structure beside it.

    Args:
        network: Maps images in [0, 1], shape (B, 3, H, W), to logits (B, classes).
        structure: The added layer.
    """

    def __init__(self, network: nn.Module, structure: InferenceStructure) -> None:
        """Keep both as submodules, so gradients are named `network.*` and `structure.*`."""
        super().__init__()
        self.network = network
        self.structure = structure

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the target network plus the structure's contribution."""
        extra: Tensor = self.structure(images)
        # The seed paper silences its victims' target network, so that nothing competes for the clipping budget.
        if self.structure.target_scale == 0:
            return extra
        logits: Tensor = self.network(images)
        return self.structure.target_scale * logits + extra


def _from_recipe(payload: ServerPayload) -> Tensor:
    """The trap weights that the settings describe, shape (K, inputs)."""
    settings, tensors = payload.settings, payload.tensors
    return trap_weights(
        tensors["lower"].numel(),
        tensors["index"].numel(),
        float(settings["trap_scaling"]),
        float(settings["trap_deviation"]),
        int(settings["trap_seed"]),
    )


def structure_bytes(payload: ServerPayload) -> int:
    """What the structure adds to one client's upload in one round, in bytes of float32."""
    tensors = payload.tensors
    inputs = tensors["directions"].shape[1] if "directions" in tensors else tensors["index"].numel()
    inputs += tensors["constants"].numel()
    if "bias_constants" in tensors:
        inputs += tensors["bias_constants"].numel()
    return 4 * tensors["lower"].numel() * inputs
