# SPDX-License-Identifier: Apache-2.0
"""Seven statistics of a received model that are small for ordinary networks and large for malicious structures.

They use the model's parameters, outputs and gradients, never names, classes or code. None of them proves that a model
is harmless: each docstring says how a server that knows the check can evade it, and what that costs the server.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_recon.defense.probes import energies_of, gradient_of, logits_of, zero_output
from lightning_recon.losses import Loss, cross_entropy

# Shorter rows may be parallel, or linear in the image, by chance.
_MIN_INPUTS = 16
# Absolute cosine above which two rows count as parallel.
_PARALLEL = 0.999
_MAX_ROWS = 4096
# A layer is examined if it takes more than this share of the gradient's energy.
_LARGE = 0.1
# A layer is silent if its removal changes the logits by less than this share of their norm.
_SILENT = 0.25
# Curvature below which a row counts as linear in the image. Structures for 32 x 32 images have up to 2e-6, the rounding
# of float32; an untrained resmlp_12, which is nearly linear, 4e-5; most ordinary layers 1e-2 and more.
_LINEAR = 1e-5
_MIXTURES = (0.0, 0.25, 0.5)
# Relative size of the random perturbation of weights.
_PERTURBATION = 1e-3
# Share of the loss by which a step along the gradient should change it.
_STEP = 1e-6


class Reading(NamedTuple):
    """A statistic, at least 0, and the tensor or layer in which it is greatest; empty if there is none."""

    value: float
    where: str


def repeated_rows(model: nn.Module) -> Reading:
    """Share of a weight's rows that are parallel to another row, in the weight where it is greatest.

    Structures measure the same quantity (brightness, say) with many units, to isolate single images. Missed: a
    structure for a client with a single image, which has a single unit; random rows (trap weights). To evade: add a
    small random vector to each row, which costs a little of the isolation.

    Args:
        model: any network; weights with at least 16 inputs and 2 rows that are not zero are examined.
    """
    best = Reading(0.0, "")
    for name, parameter in model.named_parameters():
        rows = parameter.detach().flatten(1).float()[:_MAX_ROWS] if parameter.dim() > 1 else parameter.new_zeros(0, 0)
        rows = F.normalize(rows[rows.norm(dim=1) > 0], dim=1)
        if len(rows) > 1 and rows.shape[1] >= _MIN_INPUTS:
            alike = (rows @ rows.T).abs().fill_diagonal_(0).amax(dim=1) > _PARALLEL
            best = max(best, Reading(float(alike.float().mean()), name if bool(alike.any()) else ""))
    return best


def constant_inputs(model: nn.Module, images: Tensor) -> Reading:
    """Number of a linear layer's inputs that have the same nonzero value for every image, while others vary: pilots.

    Not counted: layers whose inputs are all constant, as transformers have for their class tokens; and inputs that are
    always zero, which reveal the noise, because ReLU networks without normalization have as many (36 % of the inputs of
    vgg11's second linear layer are zero for every image). Missed: products other than `torch.nn.functional.linear`; a
    pilot mixed with other inputs, as in rows that are spread over tensors. To evade: use a pilot that varies a little,
    or none, and learn the sign otherwise.

    Args:
        model: images to logits.
        images: (B, channels, height, width), float32; as many images of noise are added.
    """
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    with _ConstantInputs() as seen:
        logits_of(model, torch.cat([images, noise]))
    return max((Reading(float(count), "a linear layer") for count in seen.counts if count), default=Reading(0.0, ""))


def energy_share(gradient: Mapping[str, Tensor]) -> Reading:
    """Share of the gradient's energy (squared norm) in one layer, or in tensors of one shape together.

    A structure needs large gradients to take most of the clipping budget, and must span several tensors if each is
    clipped separately. To evade: use smaller gradients, or many layers of many shapes; a structure that takes a share
    s of the energy has 10 log10(1/s) dB more noise, 0.04 dB for 0.99. Some untrained networks reach high shares too:
    0.89 in the first convolution of resnet50, 0.98 in regnetx_002.

    Args:
        gradient: by parameter name.
    """
    energies, groups = energies_of(gradient), defaultdict[object, list[str]](list)
    for name, tensor in gradient.items():
        groups[tensor.shape].append(name)
        groups[name.rpartition(".")[0] or name].append(name)
    largest = max(groups.values(), key=lambda names: sum(energies[name] for name in names))
    share = sum(energies[name] for name in largest) / max(sum(energies.values()), 1e-300)
    return Reading(share, max(largest, key=energies.__getitem__))


def false_gradient(model: nn.Module, images: Tensor, labels: Tensor, loss: Loss = cross_entropy) -> Reading:
    """Share of the gradient's energy that is no derivative of the loss, measured by a step along the gradient.

    A copy of a layer's output that automatic differentiation does not track cancels the output and leaves its gradient.
    Missed: structures that do change the logits. To evade: keep the copied weights in a buffer, so that a step changes
    the loss (`silent_layer` still finds the layer), or leave the copy out and let the logits change a little. Networks
    with straight-through estimators, as in quantization-aware training, raise this alarm although they are harmless.

    Args:
        model: images to logits.
        images: (B, channels, height, width), float32.
        labels: what the loss takes: (B,), int64, or other targets (B, ...).
        loss: mean loss of outputs and targets.
    """
    device = "cpu" if images.device.type == "mps" else images.device  # Apple's GPUs have no float64
    precise, images, labels = deepcopy(model).to(device).double(), images.to(device).double(), labels.to(device)
    gradient = gradient_of(precise, images, labels, loss)
    energy = max(sum(energies_of(gradient).values()), 1e-300)

    def loss_after(step: float) -> float:
        for name, parameter in precise.named_parameters():
            parameter.data.add_(gradient[name], alpha=step)
        return float(loss(logits_of(precise, images), labels))

    step = _STEP * loss_after(0.0) / energy
    ahead = loss_after(step)
    derivative = (ahead - loss_after(-2 * step)) / (2 * step * energy)
    return Reading(min(abs(1 - derivative), 1.0), "the whole gradient")


def silent_layer(model: nn.Module, images: Tensor, gradient: Mapping[str, Tensor]) -> Reading:
    """Greatest share of the gradient's energy in a layer whose removal hardly changes the logits.

    Removal sets its output to zero; "hardly" means by less than a quarter of their norm. Missed: a structure that is
    the whole output (`energy_share` finds it). To evade: give the layer a real function in the network, or put layer
    and copy into two modules.

    Args:
        model: images to logits.
        images: (B, channels, height, width), float32.
        gradient: by parameter name.
    """
    energies, whole, best = energies_of(gradient), logits_of(model, images), Reading(0.0, "")
    for name, module in model.named_modules():
        share = sum(energy for key, energy in energies.items() if key.startswith(f"{name}."))
        share /= max(sum(energies.values()), 1e-300)
        if name and share > max(_LARGE, best.value):
            with zero_output(module) as removed:
                change = (logits_of(model, images) - whole).norm() / whole.norm().clamp(min=1e-12)
            if removed and change < _SILENT:
                best = Reading(share, name)
    return best


def linear_gradient(model: nn.Module, images: Tensor, labels: Tensor, loss: Loss = cross_entropy) -> Reading:
    """Share of the gradient's energy in weights whose largest row is a linear function of the image.

    An image is mixed with its mirror image, by a quarter and by half. The curvature is the distance of the middle row
    from the plane of the other two, relative to the distance between those. Every linear code has this property,
    whatever its gradient norm or gating. So has an ordinary fully connected first layer, which leaks images in the same
    way. Missed: rows that encode the difference to an estimate of another image for each unit (feedback to several
    victims). To evade: encode the image by a function whose curvature exceeds 1e-5.

    Args:
        model: images to logits.
        images: (B, channels, height, width), float32; the first two are used, each on its own.
        labels: what the loss takes: (B,), int64, or other targets (B, ...).
        loss: mean loss of outputs and targets.
    """
    energies: dict[str, float] = defaultdict(float)
    linear: dict[str, list[bool]] = defaultdict(list)
    for image, label in zip(images[:2], labels[:2], strict=True):
        rows = []
        for part in _MIXTURES:
            mixed = (1 - part) * image[None] + part * image[None].flip(-1)
            gradient = gradient_of(model, mixed, label[None], loss)
            rows.append({name: _largest_row(tensor) for name, tensor in gradient.items()})
            for name, energy in energies_of(gradient).items():
                energies[name] += energy
        for name, row in rows[0].items():
            linear[name].append(_curvature(row, rows[1][name], rows[2][name]) < _LINEAR)
    found = {name: energies[name] for name, flags in linear.items() if any(flags)}
    share = sum(found.values()) / max(sum(energies.values()), 1e-300)
    return Reading(share, max(found, key=found.__getitem__, default=""))


def zero_gradient(model: nn.Module, images: Tensor, gradient: Mapping[str, Tensor]) -> Reading:
    """How much the weights with zero gradient change the logits when perturbed, as a share of what all weights do.

    A weight that changes the logits has a gradient, unless the server detached the logits to keep the whole clipping
    budget for its structure. Weights without effect on the logits (dead or unused units, branches that start at zero)
    rightly have zero gradients and do not count. To evade: scale the gradient down instead of removing it, which costs
    the structure next to nothing.

    Args:
        model: images to logits.
        images: (B, channels, height, width), float32.
        gradient: by parameter name.
    """
    sizes = {name: tensor.numel() for name, tensor in gradient.items() if not bool(tensor.any())}
    whole = logits_of(model, images)

    def change(names: Collection[str]) -> float:
        perturbed, generator = deepcopy(model), torch.Generator().manual_seed(0)
        for name, parameter in perturbed.named_parameters():
            random = torch.randn(parameter.shape, generator=generator).to(parameter)
            if name in names:
                parameter.data.mul_(1 + _PERTURBATION * random)
        return float((logits_of(perturbed, images) - whole).norm())

    share = change(sizes) / max(change(gradient), 1e-300) if sizes else 0.0
    return Reading(min(share, 1.0), max(sizes, key=sizes.__getitem__) if share > 0 else "")


class _ConstantInputs(TorchFunctionMode):
    """Counts the constant nonzero inputs of every linear layer that is called within the context."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - torch's signature
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Count the constant inputs of a linear layer, then call it."""
        if func is F.linear:
            inputs = args[0].detach().flatten(0, -2)
            low, high = inputs.amin(dim=0), inputs.amax(dim=0)
            same = low == high
            self.counts.append(0 if bool(same.all()) else int((same & (low != 0)).sum()))
        return func(*args, **(kwargs or {}))


def _largest_row(tensor: Tensor) -> Tensor:
    """The row with the greatest norm, normalized, float64; empty if rows are short or all zero."""
    rows = tensor.flatten(1) if tensor.dim() > 1 else tensor.new_zeros(1, 0)
    row = rows[rows.norm(dim=1).argmax()].cpu().double()
    return row / row.norm() if len(row) >= _MIN_INPUTS and bool(row.any()) else row[:0]


def _curvature(first: Tensor, middle: Tensor, last: Tensor) -> float:
    """Distance of the middle row from the plane of the others, relative to theirs; infinite if theirs is tiny."""
    if not len(first) == len(middle) == len(last) > 0:
        return float("inf")
    plane, _ = torch.linalg.qr(torch.stack([first, last], dim=1))
    distance = min(float((first - last).norm()), float((first + last).norm()))
    return float((middle - plane @ (plane.T @ middle)).norm()) / distance if distance > 1e-4 else float("inf")
