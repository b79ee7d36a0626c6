# SPDX-License-Identifier: Apache-2.0
"""The update that a client would have sent for given images: the map that gradient inversion inverts.

Pure functions of tensors, which can be differentiated with respect to images and labels, and mapped (`torch.func.vmap`)
over candidates.
"""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from lightning_recon.attack.inversion.double_backward import LeanConvolutions
from lightning_recon.attack.inversion.functional_model import FunctionalModel, exact_normalisation, inputs_of
from lightning_recon.errors import UserError
from lightning_recon.exchange import LocalTraining, Task
from lightning_recon.exchange.local_training import SGD
from lightning_recon.losses import Loss, cross_entropy, loss_named

Update = dict[str, Tensor]

_LARGE = 2**15  # numbers of a batch of images

# Named here, since `torch.compile` cannot trace inner functions whose annotations subscript a type.
LossAndSeen = tuple[Tensor, dict[str, Tensor]]
UpdateAndSeen = tuple[Update, dict[str, Tensor]]


def mean_gradient_of(
    model: FunctionalModel,
    parameters: Mapping[str, Tensor],
    images: Tensor,
    targets: Tensor,
    watch: tuple[str, ...] = (),
    mapped: bool = True,
    loss_of: Loss = cross_entropy,
) -> tuple[Update, dict[str, Tensor]]:
    """Gradient of a batch's mean loss.

    Args:
        model: the network.
        parameters: to use in place of its own.
        images: (B, C, H, W).
        targets: labels (B,), int64; or probabilities (B, classes); or what else the loss takes.
        watch: layers whose inputs are wanted too.
        mapped: whether a transform of `torch.func` is around the call; without one, plain autograd has less to do.
        loss_of: mean loss of outputs and targets.

    Returns:
        The gradient by parameter name, and the inputs of the watched layers by their names.
    """

    def loss(values: Update) -> LossAndSeen:
        with inputs_of(model.network, list(watch)) as seen:
            # The compiler knows only the library's way.
            logits = functional_call(model.network, values, (images,)) if mapped else model.at(values, images)
        return loss_of(logits, targets), seen  # in full precision under autocast too

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
        # For small images the Python overhead of these convolutions exceeds what they save.
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
    clip = task.clip
    norms = torch.stack([torch.linalg.vector_norm(tensor, clip.order) for tensor in update.values()])
    if task.per_layer:
        bound = clip.layer_bound(task.max_grad_norm, len(update))
        factors = clipping_factors(bound, norms).unbind()
        return {name: tensor * factor for (name, tensor), factor in zip(update.items(), factors, strict=True)}
    factor = clipping_factors(task.max_grad_norm, torch.linalg.vector_norm(norms, clip.order))
    return {name: tensor * factor for name, tensor in update.items()}


def clipping_factors(bound: float, norms: Tensor) -> Tensor:
    """min(1, bound / norm), with a derivative at norm 0, where the quotient has none."""
    return (bound / norms.clamp(min=bound / 2)).clamp(max=1.0)


def local_training(
    model: FunctionalModel,
    images: Tensor,
    targets: Tensor,
    task: Task,
    watch: tuple[str, ...] = (),
    mapped: bool = True,
) -> tuple[Update, dict[str, Tensor]]:
    """The change of the weights by a client's local steps, divided by its learning rate: one step gives the gradient.

    Args:
        model: the network, with the weights that the server shipped.
        images: (B, C, H, W); the mini-batches are taken in this order in every epoch.
        targets: (B,) or (B, classes).
        task: the announced training parameters.
        watch: layers whose inputs in the last step are wanted too.
        mapped: see `mean_gradient_of`.

    Returns:
        (Old minus new weights) / learning rate by parameter name, and the watched inputs.
    """
    local, loss = task.local, loss_named(task.loss)
    if local.is_plain_step:
        return mean_gradient_of(model, model.parameters, images, targets, watch, mapped, loss)
    size, parameters = local.batch_size or len(images), dict(model.parameters)
    seen: dict[str, Tensor] = {}
    velocity: Update | None = None
    parts = list(zip(torch.split(images, size), torch.split(targets, size), strict=True))[: local.batches(len(images))]
    for step, (part, labels) in enumerate(local.epochs * parts):
        gradient, seen = mean_gradient_of(model, parameters, part, labels, watch, mapped, loss)
        parameters, velocity = sgd_step(local, step, parameters, gradient, velocity)
    return {name: (value - parameters[name]) / local.divisor for name, value in model.parameters.items()}, seen


def sgd_step(
    local: LocalTraining, step: int, parameters: Update, gradient: Update, velocity: Update | None
) -> tuple[Update, Update | None]:
    """A step of SGD with the announced momentum and weight decay, as `torch.optim.SGD` takes it.

    Args:
        local: the announced training.
        step: index of the step.
        parameters: weights before it.
        gradient: of the loss.
        velocity: the momentum buffer; None before the first step.

    Returns:
        Weights after the step, and the momentum buffer.
    """
    momentum, decay, rate = local.option("momentum"), local.option("weight_decay"), local.learning_rate(step)
    moved = {name: one + decay * parameters[name] for name, one in gradient.items()} if decay else gradient
    if momentum:
        fresh = 1 - local.option("dampening")
        last, now = velocity, moved
        velocity = now if last is None else {name: momentum * last[name] + fresh * one for name, one in now.items()}
        nesterov = bool(local.option("nesterov"))
        moved = {name: now[name] + momentum * one if nesterov else one for name, one in velocity.items()}
    return {name: value - rate * moved[name] for name, value in parameters.items()}, velocity


def check_modelled(task: Task) -> None:
    """Refuse an announced training that `client_update` does not model, rather than search for the wrong images.

    Raises:
        UserError: what is not modelled.
    """
    local, lacking, instead = task.local, "", "train by SGD"
    if task.granularity == "sample" and not local.is_plain_step:
        lacking = "local steps of DP-SGD, whose noise changes the weights of later steps"
        instead = "announce one step of plain SGD"
    elif local.optimizer != SGD or local.option("maximize"):
        lacking = f"local steps of {local.optimizer.rpartition('.')[2]}"
    elif local.accumulate_grad_batches > 1:
        lacking, instead = "accumulated gradients", "give a larger batch_size"
    elif local.shuffle and local.epochs > 1:
        lacking, instead = "mini-batches that are shuffled in every epoch", "set shuffle to false"
    elif task.sampling.method != "all":
        lacking, instead = "batches that are drawn anew in every round", "set sampling to all"
    elif task.client_dropout > 0:
        lacking, instead = "clients that drop out of a sum", "set client_dropout to 0"
    elif task.participation not in (None, 1.0):
        lacking, instead = "clients that do not take part in every round", "set participation to 1"
    elif task.compression is not None and task.compression.method not in ("float16", "bfloat16", "int8", "qsgd"):
        lacking = f"updates compressed by {task.compression.method}"
        instead = "leave the compression out"
    if lacking:
        raise UserError(f"an honest server's attack does not model {lacking}: attack with a structure, or {instead}")


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
        images: every victim of the update, (V, C, H, W), one client's batch after the other's.
        targets: labels (V,), int64; or probabilities (V, classes); or what else the loss takes, (V, ...).
        task: the announced training parameters.
        watch: layers whose inputs are wanted too.
        mapped: see `mean_gradient_of`.

    Returns:
        By parameter name the sum of the samples' clipped gradients, or of the clients' clipped updates; and the
        watched inputs.
    """
    if task.granularity == "sample" and task.max_grad_norm is None:
        loss = loss_named(task.loss)
        update, seen = mean_gradient_of(model, model.parameters, images, targets, watch, mapped, loss)
        return {name: tensor * len(images) for name, tensor in update.items()}, seen

    def of_one(images: Tensor, labels: Tensor, mapped: bool = True) -> UpdateAndSeen:
        update, inputs = local_training(model, images, labels, task, watch, mapped)
        return clipped(update, task), inputs

    if task.sharers == len(images):
        return of_one(images, targets, mapped)
    parts = [one.reshape(-1, task.sharers, *one.shape[1:]) for one in (images, targets)]
    each, seen = vmap(of_one)(parts[0], parts[1])
    return {name: tensor.sum(0) for name, tensor in each.items()}, {name: i.flatten(0, 1) for name, i in seen.items()}
