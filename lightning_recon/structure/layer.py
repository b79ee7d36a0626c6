# SPDX-License-Identifier: Apache-2.0
"""The layer a malicious server adds to the model: its weight gradient is a copy of the picture."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.errors import UserError
from lightning_recon.exchange import ServerPayload
from lightning_recon.priors.dct import analyse
from lightning_recon.structure.coding.code_plan import shipped_plan
from lightning_recon.structure.coding.hadamard_spreading import block_width, spread
from lightning_recon.structure.coding.leaked_moments import moments
from lightning_recon.structure.coding.modulation import DigitalWords
from lightning_recon.structure.curious_abandon_honesty import trap_weights
from lightning_recon.structure.head_weights import balanced_code


class InferenceStructure(nn.Module):
    """Fully connected units of which each victim excites one per measurement direction.

    A picture x becomes inputs e(x): chosen, scaled coefficients followed by constants (a pilot that reveals scale and
    sign, zeros that reveal the noise). Unit k measures a = weight_k · e(x) and passes gradient only if a lies in its
    interval. All outputs are added to the logits through a code over the classes, so the gradient of the weight of an
    excited unit is δ · e(x) with δ = strength · code · (softmax − one-hot): not zero, unlike for a shift that is equal
    for all classes. The code is the same ±1 for all pictures, or chosen for each, see `head_weights.py`. With `cancel`
    every unit is paired with a frozen copy of opposite sign, so the layer outputs exactly 0 while its gradient stays
    what it was.

    Source: method after "Robbing the Fed" (Fowl et al. 2022) and You et al. (2025); the cancelling copy is ours.
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
                Optional setting `balanced` chooses the code for each picture from the network's logits. Optional
                setting `detach_logits` takes the network's own gradient away, see `TamperedNetwork`. Optional
                setting `blocks` spreads all inputs but the zeros at the end over so many tensors, called `weight.0`,
                `weight.1` …, see `spreading`. Optional `digital_amplitudes` and the settings of `digital_plan.Plan` add
                a digital code, see `digital_words`.
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
                "the structure has an interval without a lower end and no cancelling copy, so its output is infinite: "
                "set `cancel`, or make every lower end finite"
            )
        self.balanced = bool(payload.settings.get("balanced", False))
        self.detach_logits = bool(payload.settings.get("detach_logits", False))
        self.moments = bool(payload.settings.get("moments", False))
        self.digital = shipped_plan(payload)
        # The weight is a recipe on the wire: every unit of one direction has that direction as its weight row.
        shipped = "directions" in tensors
        weight = tensors["directions"][tensors["unit_direction"]] if shipped else _from_recipe(payload)
        self.blocks = int(payload.settings.get("blocks", 1))
        weight = self._spread(F.pad(weight, (0, self.constants.numel())))
        self.weight: nn.Parameter | nn.ParameterList
        if self.blocks == 1:
            self.weight = nn.Parameter(weight)
        else:
            self.weight = nn.ParameterList(piece.contiguous() for piece in _blocks_of(weight, payload))
        offset = self._spread(F.pad(tensors["offset"], (0, self.constants.numel()))) if "offset" in tensors else None
        self.register_buffer("offset", offset)
        self.bias: nn.Parameter | None = None
        if "bias_constants" in tensors:
            self.register_buffer("bias_constants", tensors["bias_constants"].clone())
            self.bias = nn.Parameter(torch.zeros(self.lower.numel(), tensors["bias_constants"].numel()))

    def encode(self, images: Tensor) -> Tensor:
        """Inputs of the layer: the scaled coefficients of each picture, its moments if wanted, then the constants.

        Args:
            images: Shape (B, 3, H, W), values in [0, 1].

        Returns:
            Shape (B, m + constants), or as many entries as all blocks have.
        """
        picture = images if self.pixels else analyse(images, self.mean, self.colour)
        sent = picture.flatten(1)[:, self.index] * self.gain
        extra = [moments(images).flatten(1)] if self.moments else []
        if self.digital is not None:
            words = DigitalWords.apply(images, self.digital)
            usual = self.digital.sketch - self.constants[0] ** 2
            extra.append(words if self.digital.shared else words * (sent.norm(dim=1, keepdim=True) / usual.sqrt()))
        return self._spread(torch.cat([sent, *extra, self.constants.to(sent).expand(len(sent), -1)], dim=1))

    @property
    def matrix(self) -> Tensor:
        """The weight as one matrix, shape (K, inputs)."""
        return torch.cat(tuple(self.weight), dim=1) if isinstance(self.weight, nn.ParameterList) else self.weight

    def forward(self, images: Tensor, logits: Tensor | None = None) -> Tensor:
        """Contribution to the logits, shape (B, classes); exactly 0 with `cancel`.

        Args:
            images: Shape (B, 3, H, W), values in [0, 1].
            logits: What the network itself says, shape (B, classes); needed for a balanced code.
        """
        inputs, weight = self.encode(images), self.matrix
        measured = F.linear(inputs, weight.detach())
        activation = F.linear(inputs, weight) - self._known(weight)
        # The same operations on the same operands round alike, so the pairs cancel to the last bit.
        frozen = measured - self._known(weight.detach()) if self.cancel else self.lower.expand_as(activation)
        if self.bias is not None:
            activation = activation + self.bias @ self.bias_constants.to(inputs)
        excited = (self.lower <= measured) & (measured < self.upper)
        output = torch.where(excited, activation - frozen, 0.0).sum(dim=1, keepdim=True)
        code = balanced_code(logits) if self.balanced and logits is not None else self.code
        return self.strength * output * code.to(output)

    def _known(self, weight: Tensor) -> Tensor | float:
        """What the units' offsets contribute to their products, shape (K,): it is sent no more."""
        return 0.0 if self.offset is None else (weight * self.offset.to(weight)).sum(dim=1)

    def _spread(self, inputs: Tensor) -> Tensor:
        """Deal inputs to the blocks; zeros at the end, which reveal the noise, stay zeros."""
        if self.blocks == 1:
            return inputs
        used = inputs.shape[-1] - (self.constants.numel() - 1)
        return torch.cat([spread(inputs[..., :used], self.blocks), inputs[..., used:]], dim=-1)


class TamperedNetwork(nn.Module):
    """The target network with the server's inference structure beside it.

    With `structure.detach_logits` the output is what it was to the last bit, and the network's own gradient is exactly
    zero: the structure has the whole clipping budget, whatever the network, and no local step moves the logits.

    Args:
        network: Maps images in [0, 1], shape (B, 3, H, W), to logits (B, classes).
        structure: The added layer.
        zeros: Whether detached logits leave every parameter of the network a gradient of zeros, or none at all. Opacus
            and DistributedDataParallel wait for a gradient of every parameter; a client that does without saves the
            backward pass through the network, a third to a half of its time.
    """

    def __init__(self, network: nn.Module, structure: InferenceStructure, zeros: bool = True) -> None:
        """Keep both as submodules, so gradients are named `network.*` and `structure.*`."""
        super().__init__()
        self.network = network
        self.structure = structure
        self.zeros = zeros

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the target network plus the structure's contribution."""
        # A silent target network leaves every label equally likely, and every victim with the same gradient weight.
        if self.structure.target_scale == 0:
            output: Tensor = self.structure(images)
        else:
            logits = self.structure.target_scale * self.network(images)
            # Detached out here, or hooks that wait for the gradient of every input, as Opacus's do, wait for ever.
            known = logits.detach()
            if self.structure.detach_logits:
                logits = _with_zero_gradient(logits) if self.zeros else known
            output = logits + self.structure(images, known)
        return output


def _with_zero_gradient(logits: Tensor) -> Tensor:
    """The same values, whose gradient is zero rather than missing.

    A selection, because `logits.detach() + 0 * logits` makes NaN of infinite logits, and a backward pass of its own
    (`torch.autograd.Function`) would need rules for vmap and forward-mode differentiation.
    """
    return torch.where(torch.ones_like(logits, dtype=torch.bool), logits.detach(), logits)


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


def _blocks_of(weight: Tensor, payload: ServerPayload) -> list[Tensor]:
    """A spread weight, shape (K, entries), as one tensor a block; the last one holds the zeros too."""
    blocks, zeros = int(payload.settings["blocks"]), payload.tensors["constants"].numel() - 1
    width = (weight.shape[1] - zeros) // blocks
    return list(torch.split(weight, [width] * (blocks - 1) + [width + zeros], dim=1))


def structure_bytes(payload: ServerPayload) -> int:
    """What the structure adds to one client's upload in one round, in bytes of float32."""
    if not payload.tensors:
        return 0
    tensors = payload.tensors
    inputs = tensors["directions"].shape[1] if "directions" in tensors else tensors["index"].numel()
    inputs += tensors["constants"].numel()
    if "bias_constants" in tensors:
        inputs += tensors["bias_constants"].numel()
    if (blocks := int(payload.settings.get("blocks", 1))) > 1:
        zeros = tensors["constants"].numel() - 1
        inputs = blocks * block_width(inputs - zeros, blocks) + zeros
    return 4 * tensors["lower"].numel() * inputs
