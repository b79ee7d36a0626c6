# SPDX-License-Identifier: Apache-2.0
"""What a client would have sent for given pictures: the map that an honest server's attack inverts.

Pure functions of tensors, which can be differentiated with respect to the pictures and the labels, and mapped over
many guesses at once.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from lightning_recon.attack.inversion.double_backward import LeanConvolutions
from lightning_recon.attack.inversion.matmul_layers import lighten
from lightning_recon.exchange import Task
from lightning_recon.networks.construction import copied

Update = dict[str, Tensor]

_LARGE = 2**15  # numbers of a batch of pictures

# Named here, since `torch.compile` cannot trace inner functions whose annotations subscript a type.
Inputs = tuple[Tensor, ...]
LossAndSeen = tuple[Tensor, dict[str, Tensor]]
UpdateAndSeen = tuple[Update, dict[str, Tensor]]


@dataclass(frozen=True)
class FunctionalModel:
    """The network that the server shipped, taken apart.

    Args:
        network: pictures (B, 3, H, W) in [0, 1] to logits (B, classes), in the mode in which clients differentiate.
        parameters: by name, without gradients.
        running: mean and variance that each batch normalisation layer carries, by the layer's name.
        places: where the network keeps its parameters, shared ones in several places: the module, the name there, the
            parameter, and its name in the network.
    """

    network: nn.Module
    parameters: Mapping[str, Tensor]
    running: Mapping[str, tuple[Tensor, Tensor]]
    places: tuple[tuple[nn.Module, str, nn.Parameter, str], ...]

    def at(self, values: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Logits with other parameters, as by `torch.func.functional_call`, which takes longer to look them up."""
        try:
            for module, attribute, _, name in self.places:
                module._parameters[attribute] = values[name]  # type: ignore[assignment]
            logits: Tensor = self.network(images)
        finally:
            for module, attribute, own, _ in self.places:
                module._parameters[attribute] = own
        return logits


def functionalize(network: nn.Module, batch_statistics: bool) -> FunctionalModel:
    """Copy the network that was shipped, and set the copy to the mode that clients are announced to use.

    Args:
        network: as shipped; it stays as it is.
        batch_statistics: whether clients normalise by the batch's statistics, or by the running ones. Dropout is off
            in the attacker's copy: which units a client dropped is not known.
    """
    own = copied(network).eval().requires_grad_(False)
    running = {}
    for name, layer in own.named_modules():
        if isinstance(layer, _BatchNorm):
            if layer.running_mean is not None and layer.running_var is not None:
                running[name] = (layer.running_mean.clone(), layer.running_var.clone())
            if batch_statistics:
                # Without running statistics a layer uses the batch's, and changes nothing that could not be mapped.
                layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    lighten(own)
    parameters = {name: parameter.detach() for name, parameter in own.named_parameters()}
    names = {parameter: name for name, parameter in own.named_parameters()}
    places = tuple(
        (module, attribute, parameter, names[parameter])
        for module in own.modules()
        for attribute, parameter in module._parameters.items()
        if parameter is not None
    )
    return FunctionalModel(own, parameters, running, places)


@contextmanager
def inputs_of(network: nn.Module, layers: list[str]) -> Iterator[dict[str, Tensor]]:
    """Within it every forward pass leaves the inputs of these layers in the yielded dictionary."""
    seen: dict[str, Tensor] = {}
    handles: list[RemovableHandle] = []
    for name in layers:

        def keep(module: nn.Module, given: Inputs, name: str = name) -> None:
            seen[name] = given[0]

        handles.append(network.get_submodule(name).register_forward_pre_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def exact_normalisation(network: nn.Module) -> Iterator[None]:
    """Within it batch normalisation takes float32 under autocast too: mapped over guesses, it cannot mix types."""

    def widen(module: nn.Module, given: Inputs) -> Inputs:
        return tuple(tensor.float() for tensor in given)

    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    handles = [layer.register_forward_pre_hook(widen) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mean_gradient_of(
    model: FunctionalModel,
    parameters: Mapping[str, Tensor],
    images: Tensor,
    targets: Tensor,
    watch: tuple[str, ...] = (),
    mapped: bool = True,
) -> tuple[Update, dict[str, Tensor]]:
    """Gradient of a batch's mean cross-entropy.

    Args:
        model: the network.
        parameters: to use in place of its own.
        images: (B, 3, H, W).
        targets: labels (B,), int64; or probabilities (B, classes).
        watch: layers whose inputs are wanted too.
        mapped: whether a transform of `torch.func` is around the call; without one, plain autograd has less to do.

    Returns:
        The gradient by parameter name, and the inputs of the watched layers by their names.
    """

    def loss(values: Update) -> LossAndSeen:
        with inputs_of(model.network, list(watch)) as seen:
            # The compiler knows only the library's way.
            logits = functional_call(model.network, values, (images,)) if mapped else model.at(values, images)
        return F.cross_entropy(logits, targets), seen  # in full precision under autocast too

    if mapped:
        mixed = torch.is_autocast_enabled(images.device.type)
        with exact_normalisation(model.network) if mixed else nullcontext():
            gradient, seen = grad(loss, has_aux=True)(dict(parameters))
        return gradient, seen
    # Views, because autocast keeps a copy of every leaf until the trainer's step ends.
    values = {
        name: value if value.requires_grad else value.detach().requires_grad_().view_as(value)
        for name, value in parameters.items()
    }
    with torch.enable_grad():
        # What they save is less than what Python takes for them where pictures are small.
        with LeanConvolutions() if images.numel() >= _LARGE else nullcontext():
            value, seen = loss(values)
        found = torch.autograd.grad(value, list(values.values()), create_graph=True, materialize_grads=True)
    return dict(zip(values, found, strict=True)), seen


def clipped(update: Update, task: Task) -> Update:
    """The update after the announced clip.

    Source: Abadi et al. 2016 (arXiv 1607.00133), algorithm 1; per layer as in McMahan et al. 2018 (1710.06963).
    """
    if task.max_grad_norm is None:
        return update
    norms = torch.stack([torch.linalg.vector_norm(tensor) for tensor in update.values()])
    if task.per_layer:
        factors = (task.max_grad_norm / math.sqrt(len(update)) / norms).clamp(max=1.0).unbind()
        return {name: tensor * factor for (name, tensor), factor in zip(update.items(), factors, strict=True)}
    factor = (task.max_grad_norm / torch.linalg.vector_norm(norms)).clamp(max=1.0)
    return {name: tensor * factor for name, tensor in update.items()}


def local_training(
    model: FunctionalModel,
    images: Tensor,
    targets: Tensor,
    task: Task,
    watch: tuple[str, ...] = (),
    mapped: bool = True,
) -> tuple[Update, dict[str, Tensor]]:
    """What a client's own steps take from the weights, in units of its learning rate: one step gives the gradient.

    Args:
        model: the network, with the weights that the server shipped.
        images: (B, 3, H, W); step s takes the s-th of `task.local_steps` equal parts of the batch, in
            every one of `task.local_epochs`.
        targets: (B,) or (B, classes).
        task: what was announced.
        watch: layers whose inputs in the last step are wanted too.
        mapped: see `mean_gradient_of`.

    Returns:
        (Old minus new weights) / learning rate by parameter name, and the watched inputs.
    """
    if task.local_steps * task.local_epochs == 1:
        return mean_gradient_of(model, model.parameters, images, targets, watch, mapped)
    size, parameters = len(images) // task.local_steps, dict(model.parameters)
    seen: dict[str, Tensor] = {}
    parts = list(zip(torch.split(images, size), torch.split(targets, size), strict=True))
    for part, labels in task.local_epochs * parts:
        gradient, seen = mean_gradient_of(model, parameters, part, labels, watch, mapped)
        parameters = {name: value - task.local_lr * gradient[name] for name, value in parameters.items()}
    return {name: (value - parameters[name]) / task.local_lr for name, value in model.parameters.items()}, seen


def client_update(
    model: FunctionalModel,
    images: Tensor,
    targets: Tensor,
    task: Task,
    watch: tuple[str, ...] = (),
    mapped: bool = True,
) -> tuple[Update, dict[str, Tensor]]:
    """The update before noise, as clients are announced to make it; a sum over them under secure aggregation.

    Args:
        model: the network that the server shipped.
        images: every victim of the update, (V, 3, H, W), one client's batch after the other's.
        targets: labels (V,), int64; or probabilities (V, classes).
        task: what was announced.
        watch: layers whose inputs are wanted too.
        mapped: see `mean_gradient_of`.

    Returns:
        By parameter name the sum of the samples' clipped gradients, or of the clients' clipped updates; and the
        watched inputs.
    """
    if task.granularity == "sample" and task.max_grad_norm is None:
        update, seen = mean_gradient_of(model, model.parameters, images, targets, watch, mapped)
        return {name: tensor * len(images) for name, tensor in update.items()}, seen

    def of_one(pictures: Tensor, labels: Tensor, mapped: bool = True) -> UpdateAndSeen:
        update, inputs = local_training(model, pictures, labels, task, watch, mapped)
        return clipped(update, task), inputs

    if task.sharers == len(images):
        return of_one(images, targets, mapped)
    parts = [one.reshape(-1, task.sharers, *one.shape[1:]) for one in (images, targets)]
    each, seen = vmap(of_one)(parts[0], parts[1])
    return {name: tensor.sum(0) for name, tensor in each.items()}, {name: i.flatten(0, 1) for name, i in seen.items()}
