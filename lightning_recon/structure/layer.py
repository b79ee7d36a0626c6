# SPDX-License-Identifier: Apache-2.0
"""The layer a malicious server adds to the model: its weight gradient is a copy of the image."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.errors import UserError
from lightning_recon.exchange import ServerPayload
from lightning_recon.priors.dct import CosineTransform, PixelTransform, Transform
from lightning_recon.structure.coding.address_gate import ADDRESSES, AddressGate
from lightning_recon.structure.coding.code_plan import Plan
from lightning_recon.structure.coding.dither import dithered_signs
from lightning_recon.structure.coding.hadamard_spreading import block_width, spread
from lightning_recon.structure.coding.l1_budget import SKETCH_SHARE
from lightning_recon.structure.coding.leaked_moments import moments
from lightning_recon.structure.coding.modulation import DigitalWords
from lightning_recon.structure.coding.own_units import own_units
from lightning_recon.structure.coding.tensor_words import TensorWords
from lightning_recon.structure.coding.trap_weights import trap_weights
from lightning_recon.structure.layer_spec import LAYER, LayerSpec, layer_spec, sign_inputs
from lightning_recon.structure.loss_weights import loss_code
from lightning_recon.structure.server_layer import ServerLayer


class InferenceStructure(ServerLayer):
    """Fully connected units, of which each victim activates one per measurement direction.

    An image x becomes inputs e(x): chosen, scaled coefficients followed by constants (a pilot that reveals scale and
    sign, zeros that reveal the noise). Unit k measures a = weight_k · e(x) and passes gradient only if a lies in its
    interval. All outputs are added to the logits through a code over the classes, so the gradient of the weight of an
    excited unit is δ · e(x) with δ = strength · code · (softmax − one-hot): not zero, unlike for a shift that is equal
    for all classes. The code is the same ±1 for all images, or chosen for each, see `head_weights.py`; of losses other
    than the cross-entropy of one label see `loss_weights.py`.

    With `cancel` every unit is paired with a frozen copy of opposite sign: the output is strength · (W − W detached) ·
    e(x), which is exactly 0 at every value of W and has the gradient that it has without the copy. Which units an image
    activates is then measured with constants, never with the trained weight W, so that local training moves no image
    to another unit, and the gradients of all local steps go into the same rows. Without `cancel`, as in the published
    structures, W itself measures.

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
    measuring: Tensor
    step_gains: Tensor | None
    batches_seen: Tensor
    owners: Tensor
    unit_direction: Tensor
    dithered: Tensor
    dither: Tensor
    unit_gain: Tensor | None
    address_index: Tensor
    address_mean: Tensor
    address_precision: Tensor
    address_evidence: Tensor

    def __init__(self, payload: ServerPayload) -> None:
        """Build the layer from what the server shipped.

        Args:
            payload: Settings as `LayerSpec` describes them; tensors named like the buffers below, `directions`
                (D, inputs), and `unit_direction` (K,), which are left out with trap weights. Optional
                `bias_constants` (P,) gives the units a second weight over constant inputs, called `bias`, as in the
                seed paper. Optional `offset` (K, inputs) is subtracted from the inputs of each unit, so its gradient
                is δ · (e − offset). With `blocks` above 1 the weight consists of that many tensors, `weight.0`,
                `weight.1` …; the inputs that are always zero are in the last one. `digital_amplitudes` belongs to a
                digital code. With `signs` the inputs are signs: of the coefficients `dithered` (L,), int64, plus
                `dither` (L,), then those of the digital code, then constants of 1 and 0.
                Optional `step_gains` (mini-batches,) are factors of the gradient of each image in a
                client's mini-batches in order; the last one holds for all later ones. With the tensors of an
                `AddressGate` the first units are those of known images, and `unit_gain` (K, inputs + 1) scales inputs
                and pilot of each unit.

        Raises:
            UserError: The payload describes no such layer.
        """
        super().__init__(payload)
        tensors = payload.tensors
        self.spec = spec = LayerSpec.of(payload)
        self.target_scale, self.detach_logits = spec.target_scale, spec.detach_logits
        for name in ("mean", "colour", "index", "gain", "constants", "lower", "upper", "code"):
            self.register_buffer(name, tensors[name].clone())
        if not spec.cancel and bool((self.lower == -torch.inf).any()):
            raise UserError(
                "the structure has an interval without a lower end and no cancelling copy, so its output is infinite: "
                "set `cancel`, or make every lower end finite"
            )
        self.tensor_words: TensorWords | None = None
        if spec.digital is not None and spec.digital.tensor:
            self.tensor_words = TensorWords(spec.digital, *self.mean.shape[-2:])
        if spec.signs:
            self.register_buffer("dithered", tensors["dithered"].clone())
            self.register_buffer("dither", tensors["dither"].clone())
            weight = torch.zeros(self.lower.numel(), sign_inputs(payload) - self.constants.numel())
        elif spec.trap is None:
            # On the wire every unit of one direction shares that direction as its weight row.
            weight = tensors["directions"][tensors["unit_direction"]]
        else:
            weight = trap_weights(self.lower.numel(), self.index.numel(), spec.trap)
        weight = self._padded(weight)
        offset = self._padded(tensors["offset"]) if "offset" in tensors else None
        self.register_buffer("offset", offset)
        for name in ADDRESSES:
            self.register_buffer(name, tensors.get(name), persistent=False)
        self.register_buffer("step_gains", tensors.get("step_gains"), persistent=False)
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64), persistent=False)
        if spec.own_units:
            self.register_buffer("owners", torch.full((self.lower.numel(),), torch.nan), persistent=False)
        if spec.cancel:
            self._register_measurement(tensors, weight)
        if spec.zero_weight:
            weight = torch.zeros_like(weight)
        self.weight: nn.Parameter | nn.ParameterList
        if spec.blocks == 1:
            self.weight = nn.Parameter(weight)
        else:
            self.weight = nn.ParameterList(piece.contiguous() for piece in self._blocks_of(weight))
        self.bias: nn.Parameter | None = None
        if "bias_constants" in tensors:
            self.register_buffer("bias_constants", tensors["bias_constants"].clone())
            self.bias = nn.Parameter(torch.zeros(self.lower.numel(), tensors["bias_constants"].numel()))

    @property
    def transform(self) -> Transform:
        """From images to the coefficients of which the layer sends some."""
        return PixelTransform() if self.spec.pixels else CosineTransform(self.mean, self.colour)

    def encode(self, images: Tensor) -> Tensor:
        """Inputs of the layer: the scaled coefficients of each image, its moments if wanted, then the constants.

        Args:
            images: Shape (B, C, H, W), values in [0, 1].

        Returns:
            Shape (B, m + constants), or as many entries as all blocks have.
        """
        sent = self._coefficients(images)
        if self.spec.signs:
            sent = dithered_signs(sent, self.dithered, self.dither)
        extra = [moments(images).flatten(1)] if self.spec.moments else []
        if (plan := self.spec.digital) is not None:
            words = DigitalWords.apply(images, plan) if self.tensor_words is None else self.tensor_words(images)
            extra.append(words if plan.shared else words * self._sketch_level(sent, plan))
        return self._spread(torch.cat([sent, *extra, self.constants.to(sent).expand(len(sent), -1)], dim=1))

    def _coefficients(self, images: Tensor) -> Tensor:
        """Scaled coefficients of each image, or pixels, shape (B, m)."""
        pooled = F.avg_pool2d(images, self.spec.pooling) if self.spec.pooling > 1 else images
        return self.transform.analyse(pooled).flatten(1)[:, self.index] * self.gain

    def _sketch_level(self, sent: Tensor, plan: Plan) -> Tensor:
        """Norm of each image's sketch and pilot, in the norm that the clip bounds, by its expected one; shape (B, 1).

        With it clipping leaves the digital inputs the same share of the norm, whatever the contrast of the image.
        """
        whole = torch.cat([sent, self.constants[:1].to(sent).expand(len(sent), 1)], dim=1)
        ratio, order = self.spec.norm_ratio, 2 if self.spec.norm_ratio is None else 1
        expected = math.sqrt(plan.sketch) if ratio is None else SKETCH_SHARE * ratio
        norm: Tensor = torch.linalg.vector_norm(whole, ord=order, dim=1, keepdim=True)
        return norm / expected

    @property
    def matrix(self) -> Tensor:
        """The weight as one matrix, shape (K, inputs)."""
        return torch.cat(tuple(self.weight), dim=1) if isinstance(self.weight, nn.ParameterList) else self.weight

    def forward(self, images: Tensor, logits: Tensor | None = None) -> Tensor:
        """Contribution to the logits, shape (B, classes); exactly 0 with `cancel`.

        Args:
            images: Shape (B, C, H, W), values in [0, 1].
            logits: The network's own logits, shape (B, classes) or (B, channels, H, W), in which case the contribution
                is one to each pixel; needed for a balanced code.
        """
        inputs, weight = self.encode(images), self.matrix
        bias: Tensor | None = self.bias
        if self.spec.cancel:
            measurable = self._coefficients(images) if self.spec.signs else inputs
            measured = F.linear(measurable, self.measuring)[:, self.unit_direction]
            # Exactly 0 at every weight, with the gradient that the weight itself would have.
            weight, bias = weight - weight.detach(), None if bias is None else bias - bias.detach()
        else:
            measured = F.linear(inputs, weight.detach())
        scaled = weight if self.unit_gain is None else weight * self._of_pilot_and_inputs(self.unit_gain)
        activation = F.linear(inputs, scaled) - self._known(weight)
        if bias is not None:
            activation = activation + bias @ self.bias_constants.to(inputs)
        if not self.spec.cancel:
            activation = activation - self.lower
        excited = (self.lower <= measured) & (measured < self.upper)
        if self.spec.own_units:
            excited = self._own_units(measured, excited)
        if self.unit_gain is not None:
            gate = AddressGate(self.address_index, self.address_mean, self.address_precision, self.address_evidence)
            excited = gate.excited(inputs[:, gate.index], excited)
        output = torch.where(excited, activation, 0.0).sum(dim=1, keepdim=True)
        code = self.code
        if self.spec.balanced and logits is not None:
            code = loss_code(self.spec.loss, logits, self.code if self.spec.fixed_signs else None)
        if self.step_gains is not None:
            output = output * self._step_gain(len(images))
        if logits is not None and logits.ndim > 2:  # maps over pixels
            output, code = output[:, :, None, None], code if code.ndim > 1 else code[:, None, None]
        return self.spec.strength * output * code.to(output)

    def _own_units(self, measured: Tensor, excited: Tensor) -> Tensor:
        """Which units images excite, shape (B, K), where each one has a unit of its own, see `own_units`.

        Args:
            measured: What each unit measures; all of them measure the same direction.
            excited: Whose interval that is in.
        """
        # In evaluation mode nothing is remembered, just as batch normalization then remembers nothing.
        owners = self.owners if self.training else self.owners.clone()
        units = own_units(measured[:, 0].detach(), excited.int().argmax(dim=1), owners)
        return F.one_hot(units, excited.shape[1]).bool()

    def _step_gain(self, images: int) -> Tensor:
        """Factor that gives every image the same weight in the update, whichever mini-batch it is in.

        A loss is a mean over its mini-batch; what the optimizer makes of the gradient is in `step_gains`. Mini-batches
        are counted as batch normalization counts them: by forward passes in training mode. After the last one announced
        the count begins anew, since clients may keep the model for the next round.
        """
        assert self.step_gains is not None
        gain = images * self.step_gains[self.batches_seen % len(self.step_gains)]
        if self.training:
            self.batches_seen += 1
        return gain

    def _register_measurement(self, tensors: Mapping[str, Tensor], weight: Tensor) -> None:
        """Keep what the units measure as constants; not in the state dict, since the payload determines them.

        Args:
            tensors: Of the payload.
            weight: What each unit measures, spread over the blocks, shape (K, inputs).
        """
        if self.spec.signs:
            rows, unit_direction = tensors["directions"].clone(), tensors["unit_direction"].clone()
        elif self.spec.trap is None:
            # One row for each direction, of which there are far fewer than units.
            rows, unit_direction = self._padded(tensors["directions"]), tensors["unit_direction"].clone()
        else:
            rows, unit_direction = weight.clone(), torch.arange(len(weight))
        self.register_buffer("measuring", rows, persistent=False)
        self.register_buffer("unit_direction", unit_direction, persistent=False)

    def _padded(self, rows: Tensor) -> Tensor:
        """Rows over the image inputs as rows over all entries of all blocks."""
        return self._spread(F.pad(rows, (0, self.constants.numel())))

    def _of_pilot_and_inputs(self, rows: Tensor) -> Tensor:
        """Rows over the image inputs and the pilot as rows over all entries."""
        return F.pad(rows, (0, self.constants.numel() - 1))

    def _known(self, weight: Tensor) -> Tensor | float:
        """The contribution of the offsets to the units' products, shape (K,), which is subtracted."""
        return 0.0 if self.offset is None else (weight * self.offset.to(weight)).sum(dim=1)

    def _spread(self, inputs: Tensor) -> Tensor:
        """Distribute inputs over the blocks; zeros at the end, which reveal the noise, stay zeros."""
        if self.spec.blocks == 1:
            return inputs
        used = inputs.shape[-1] - (self.constants.numel() - 1)
        return torch.cat([spread(inputs[..., :used], self.spec.blocks), inputs[..., used:]], dim=-1)

    def _blocks_of(self, weight: Tensor) -> list[Tensor]:
        """A spread weight, shape (K, entries), as one tensor for each block; the last one holds the zeros too."""
        blocks, zeros = self.spec.blocks, self.constants.numel() - 1
        width = (weight.shape[1] - zeros) // blocks
        return list(torch.split(weight, [width] * (blocks - 1) + [width + zeros], dim=1))


def build_layer(payload: ServerPayload) -> ServerLayer:
    """Build the layer that a payload describes.

    A payload read from disk executes nothing new: the class that it names must be defined already, as it is once the
    user has named the structure that ships it. No module is imported.

    Raises:
        UserError: The settings describe no layer, or name a class that is not defined.
    """
    if LAYER not in payload.settings:
        return InferenceStructure(payload)
    path, known = str(payload.settings[LAYER]), ServerLayer.defined()
    if path not in known:
        raise UserError(
            f"the payload ships the layer {path!r}, which is not defined here: name the structure that ships it "
            "(--model.structure), or import its module first"
        )
    return known[path](payload)


def structure_bytes(payload: ServerPayload) -> int:
    """Bytes of float32 that the structure adds to one client's upload in one round."""
    if not payload.settings and not payload.tensors:
        return 0
    spec, tensors = layer_spec(payload), payload.tensors
    if spec is None:
        return 4 * sum(parameter.numel() for parameter in build_layer(payload).parameters())
    if spec.signs:
        return 4 * tensors["lower"].numel() * sign_inputs(payload)
    inputs = tensors["directions"].shape[1] if spec.trap is None else tensors["index"].numel()
    inputs += tensors["constants"].numel()
    if "bias_constants" in tensors:
        inputs += tensors["bias_constants"].numel()
    if spec.blocks > 1:
        zeros = tensors["constants"].numel() - 1
        inputs = spec.blocks * block_width(inputs - zeros, spec.blocks) + zeros
    return 4 * tensors["lower"].numel() * inputs
