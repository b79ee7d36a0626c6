# SPDX-License-Identifier: Apache-2.0
"""Seven statistics of a received model that are small for ordinary networks and large for malicious structures.

All look at the model from outside: parameters, outputs and gradients, never at names, classes or code. None proves that
a model is harmless; each docstring says what a server that knows the check would do, and what that costs it.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from lightning_recon.client.gradients import mean_gradient, reproducible_fp32
from lightning_recon.privacy.clipping import tensor_norms

# Shorter rows may be alike, or follow the image, by chance.
_LEAST_INPUTS = 16
_PARALLEL = 0.999
_MOST_ROWS = 4096
# A layer is looked at if it takes this share of the gradient's energy, and silent if its removal moves the logits less.
_LARGE, _SILENT = 0.1, 0.25
# Curvature below which a row counts as linear in the image. Structures of 32 x 32 images show up to 2e-6, which is
# float32's rounding; an untrained resmlp_12, which is nearly linear, 4e-5; most ordinary layers 1e-2 and more.
_LINEAR = 1e-5
_MIXTURES = (0.0, 0.25, 0.5)
# Weights are moved at random by this share of their size.
_NUDGE = 1e-3
# A step along the gradient that should change the loss by this share of it.
_STEP = 1e-6


class Reading(NamedTuple):
    """A statistic, at least 0, and the tensor or layer that shows it the most; empty if none does."""

    value: float
    where: str


def awake(model: nn.Module) -> nn.Module:
    """A copy in which weights that are entirely zero are small random numbers.

    Some networks start with a head of zeros (torchvision's vision transformers): until it has moved, the head takes the
    whole gradient and the rest does not count, exactly as with a structure. A server could use this by shipping zero
    weights beside constants of its own, so `inspect_model` warns only of what it finds in the copy.

    Args:
        model: any network; it stays as it is.
    """
    copy, generator = deepcopy(model), torch.Generator().manual_seed(0)
    for parameter in copy.parameters():
        if parameter.dim() > 1 and not bool(parameter.any()):
            random = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
            parameter.data.copy_(random)
    return copy


def gradient_of(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Gradient of the mean cross-entropy by parameter name, as a client would compute it, before clip and noise.

    Args:
        model: images to logits; its mode and buffers stay as they are.
        images: (B, channels, height, width), of the model's precision. Batch normalisation uses the batch if B > 1.
        labels: (B,), int64.
    """
    with reproducible_fp32(model, images.device, 0, len(images) > 1):
        return mean_gradient(model, F.cross_entropy, images, labels)[0]


def repeated_rows(model: nn.Module) -> Reading:
    """Share of a weight's rows that another row is parallel to, in the weight where it is greatest.

    Structures measure the same quantity (brightness, say) with many units, to isolate single images. Not seen: a client
    with a single image is measured by a single unit; random rows (trap weights) that measure at random. To evade:
    add a small random vector to each row, which costs a little of the isolation.

    Args:
        model: any network; weights with at least 16 inputs and 2 rows that are not zero are looked at.
    """
    best = Reading(0.0, "")
    for name, parameter in model.named_parameters():
        rows = parameter.detach().flatten(1).float()[:_MOST_ROWS] if parameter.dim() > 1 else parameter.new_zeros(0, 0)
        rows = F.normalize(rows[rows.norm(dim=1) > 0], dim=1)
        if len(rows) > 1 and rows.shape[1] >= _LEAST_INPUTS:
            alike = (rows @ rows.T).abs().fill_diagonal_(0).amax(dim=1) > _PARALLEL
            best = max(best, Reading(float(alike.float().mean()), name if bool(alike.any()) else ""))
    return best


def constant_inputs(model: nn.Module, images: Tensor) -> Reading:
    """Number of inputs of a linear layer that are the same for every image and not zero, while others vary: pilots.

    Layers whose inputs are all the same are not counted: the class tokens of transformers are such inputs.

    Inputs that are always zero, which reveal the noise, are not counted: ReLU networks without normalisation have as
    many (36 % of the inputs of vgg11's second linear layer are zero for all images, whatever these show). Not seen:
    products other than `torch.nn.functional.linear`; a pilot mixed with other inputs, as in rows that are spread over
    tensors. To evade: use a pilot that varies a little, or none and learn the sign otherwise.

    Args:
        model: images to logits.
        images: (B, channels, height, width), float32; noise images are looked at beside them.
    """
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    with _Inputs() as seen:
        _logits(model, torch.cat([images, noise]))
    return max((Reading(float(count), "a linear layer") for count in seen.constant if count), default=Reading(0.0, ""))


def energy_share(gradient: Mapping[str, Tensor]) -> Reading:
    """Share of the gradient's energy (squared norm) in one layer, or in tensors of one shape together.

    A structure needs large gradients to take most of the clipping budget, and must span several tensors if each is
    clipped separately. To evade: use smaller gradients, or many layers of many shapes; a structure that takes a share
    s of the energy meets 10 log10(1/s) dB more noise, 0.04 dB for 0.99. Some untrained networks come near: 0.89 in
    the first convolution of resnet50, 0.98 in regnetx_002.

    Args:
        gradient: by parameter name.
    """
    energies, groups = _energies(gradient), defaultdict[object, list[str]](list)
    for name, tensor in gradient.items():
        groups[tensor.shape].append(name)
        groups[name.rpartition(".")[0] or name].append(name)
    largest = max(groups.values(), key=lambda names: sum(energies[name] for name in names))
    share = sum(energies[name] for name in largest) / max(sum(energies.values()), 1e-300)
    return Reading(share, max(largest, key=energies.__getitem__))


def false_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Reading:
    """Share of the gradient's energy that is no derivative of the loss: a step along the gradient does not bring it.

    A copy that automatic differentiation does not track cancels a layer's output and leaves its gradient. Not seen:
    structures that do move the logits. To evade: keep the copy in a buffer of its own, so that a step uncovers it
    (`silent_layer` still sees the layer), or do without and let the logits move a little. Straight-through estimators,
    as in networks that train for quantisation, have false gradients honestly.

    Args:
        model: images to logits.
        images: (B, channels, height, width), float32.
        labels: (B,), int64.
    """
    device = "cpu" if images.device.type == "mps" else images.device  # Apple's GPUs have no float64
    precise, pictures, labels = deepcopy(model).to(device).double(), images.to(device).double(), labels.to(device)
    gradient = gradient_of(precise, pictures, labels)
    energy = max(sum(_energies(gradient).values()), 1e-300)

    def loss_after(step: float) -> float:
        for name, parameter in precise.named_parameters():
            parameter.data.add_(gradient[name], alpha=step)
        return float(F.cross_entropy(_logits(precise, pictures), labels))

    step = _STEP * loss_after(0.0) / energy
    ahead = loss_after(step)
    truth = (ahead - loss_after(-2 * step)) / (2 * step * energy)
    return Reading(min(abs(1 - truth), 1.0), "the whole gradient")


def silent_layer(model: nn.Module, images: Tensor, gradient: Mapping[str, Tensor]) -> Reading:
    """Greatest share of the gradient's energy that a layer takes whose removal hardly moves the logits.

    Removed means that its output is zero; hardly, by less than a quarter of their norm. Not seen: a structure that is
    the whole output (its share of the energy shows it). To evade: give the layer a real part in the network, or share
    layer and copy among two modules.

    Args:
        model: images to logits.
        images: (B, channels, height, width), float32.
        gradient: by parameter name.
    """
    energies, whole, best = _energies(gradient), _logits(model, images), Reading(0.0, "")
    for name, module in model.named_modules():
        share = sum(energy for key, energy in energies.items() if key.startswith(f"{name}."))
        share /= max(sum(energies.values()), 1e-300)
        if name and share > max(_LARGE, best.value):
            with _removed(module) as removed:
                moved = (_logits(model, images) - whole).norm() / whole.norm().clamp(min=1e-12)
            if removed and moved < _SILENT:
                best = Reading(share, name)
    return best


def linear_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Reading:
    """Share of the gradient's energy in weights whose largest row is a linear function of the image.

    The row of an image mixed a quarter and half with its mirror image is compared with the plane of the other two:
    the curvature is its distance from there relative to how far the row moved. Any linear code has this property,
    whatever its gradient norm or gating. So has an ordinary fully connected first layer, which leaks images in the same
    way. Not seen: rows that hold the difference to an estimate of another image for each unit (feedback to several
    victims). To evade: encode the image by a function that bends by more than 1e-5.

    Args:
        model: images to logits.
        images: (B, channels, height, width), float32; the first two are used, each alone.
        labels: (B,), int64.
    """
    energies: dict[str, float] = defaultdict(float)
    linear: dict[str, list[bool]] = defaultdict(list)
    for image, label in zip(images[:2], labels[:2], strict=True):
        rows = []
        for part in _MIXTURES:
            gradient = gradient_of(model, (1 - part) * image[None] + part * image[None].flip(-1), label[None])
            rows.append({name: _largest_row(tensor) for name, tensor in gradient.items()})
            for name, energy in _energies(gradient).items():
                energies[name] += energy
        for name, row in rows[0].items():
            linear[name].append(_curvature(row, rows[1][name], rows[2][name]) < _LINEAR)
    found = {name: energies[name] for name, verdicts in linear.items() if any(verdicts)}
    share = sum(found.values()) / max(sum(energies.values()), 1e-300)
    return Reading(share, max(found, key=found.__getitem__, default=""))


def zero_gradient(model: nn.Module, images: Tensor, gradient: Mapping[str, Tensor]) -> Reading:
    """How far the weights whose gradient is exactly zero move the logits, as a share of what all weights do.

    A weight that moves the logits has a gradient, unless the server detached the logits to keep the whole clipping
    budget for its structure. Weights without effect on the logits (dead or unused units, branches that start at zero)
    have zero gradients honestly and do not count. Not seen: a gradient that is scaled down rather than removed. To
    evade: do just that, which costs the structure next to nothing.

    Args:
        model: images to logits.
        images: (B, channels, height, width), float32.
        gradient: by parameter name.
    """
    sizes = {name: tensor.numel() for name, tensor in gradient.items() if not bool(tensor.any())}
    whole = _logits(model, images)

    def moved(names: Collection[str]) -> float:
        nudged, generator = deepcopy(model), torch.Generator().manual_seed(0)
        for name, parameter in nudged.named_parameters():
            random = torch.randn(parameter.shape, generator=generator).to(parameter)
            if name in names:
                parameter.data.mul_(1 + _NUDGE * random)
        return float((_logits(nudged, images) - whole).norm())

    share = moved(sizes) / max(moved(gradient), 1e-300) if sizes else 0.0
    return Reading(min(share, 1.0), max(sizes, key=sizes.__getitem__) if share > 0 else "")


class _Inputs(TorchFunctionMode):
    """Within it, counts the constant inputs of every linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.constant: list[int] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - torch's signature
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Look at the input of a linear layer, then let the call through."""
        if func is F.linear:
            inputs = args[0].detach().flatten(0, -2)
            low, high = inputs.amin(dim=0), inputs.amax(dim=0)
            same = low == high
            self.constant.append(0 if bool(same.all()) else int((same & (low != 0)).sum()))
        return func(*args, **(kwargs or {}))


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """Logits in training mode; its buffers stay as they are."""
    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with reproducible_fp32(model, images.device, 0, len(images) > 1), torch.no_grad():
        logits: Tensor = functional_call(model, state, (images,))
    return logits


def _energies(gradient: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: norm**2 for name, norm in tensor_norms(gradient).items()}


@contextmanager
def _removed(module: nn.Module) -> Iterator[list[bool]]:
    """Within it the module's output is zero; the list that it gives is empty if there was no tensor to remove."""
    removed: list[bool] = []

    def silence(_: nn.Module, __: Any, output: Any) -> Tensor | None:  # noqa: ANN401 - torch's signature
        removed.extend([True] if torch.is_tensor(output) else [])
        return torch.zeros_like(output) if torch.is_tensor(output) else None

    hook = module.register_forward_hook(silence)
    try:
        yield removed
    finally:
        hook.remove()


def _largest_row(tensor: Tensor) -> Tensor:
    """The row of the greatest norm at norm 1, float64; empty if rows are short or all zero."""
    rows = tensor.flatten(1) if tensor.dim() > 1 else tensor.new_zeros(1, 0)
    row = rows[rows.norm(dim=1).argmax()].cpu().double()
    return row / row.norm() if len(row) >= _LEAST_INPUTS and bool(row.any()) else row[:0]


def _curvature(first: Tensor, middle: Tensor, last: Tensor) -> float:
    """Distance of the middle row from the plane of the others, relative to theirs; infinite if they hardly differ."""
    if not len(first) == len(middle) == len(last) > 0:
        return float("inf")
    plane, _ = torch.linalg.qr(torch.stack([first, last], dim=1))
    moved = min(float((first - last).norm()), float((first + last).norm()))
    return float((middle - plane @ (plane.T @ middle)).norm()) / moved if moved > 1e-4 else float("inf")
