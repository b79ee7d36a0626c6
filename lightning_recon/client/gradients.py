# SPDX-License-Identifier: Apache-2.0
"""Gradients of a loss with respect to a network's parameters, of each sample or of a batch.

These are pure functions: the network, its `.grad` fields and its buffers are not changed. Every named parameter gets a
gradient, even if it is frozen, and zeros if it is unused.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from lightning_recon.errors import UserError
from lightning_recon.losses import Loss
from lightning_recon.networks.batch_norm import BatchNorm
from lightning_recon.networks.differentiability import math_attention
from lightning_recon.privacy.clipping import Clip, tensor_norms


def global_norm(gradients: Iterable[Tensor]) -> float:
    """Euclidean norm of several tensors together, summed in float64.

    Args:
        gradients: tensors of any shapes and device.
    """
    return math.hypot(*tensor_norms({str(index): tensor for index, tensor in enumerate(gradients)}).values())


def mean_gradient(
    model: nn.Module,
    loss: Loss,
    images: Tensor,
    labels: Tensor,
    buffers: Mapping[str, Tensor] | None = None,
    names: Sequence[str] | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradient of the batch's mean loss.

    Args:
        model: network, images to outputs, in the mode (train or eval) in which it is differentiated.
        loss: mean loss of outputs and targets, see `losses`.
        images: (B, channels, height, width), floating point.
        labels: what the loss takes: class indices (B,), int64, or other targets (B, ...).
        buffers: buffers that the forward pass may change; None: a copy of the network's own.
        names: parameters whose gradient is wanted; None: all.

    Returns:
        Contiguous gradients by parameter name, which take as much memory as these parameters; and the loss, a scalar.
    """
    parameters = {name: parameter.detach().requires_grad_() for name, parameter in model.named_parameters()}
    if buffers is None:
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    value = loss(functional_call(model, (parameters, dict(buffers)), (images,)), labels)
    wanted = parameters if names is None else {name: parameters[name] for name in names}
    found = torch.autograd.grad(value, list(wanted.values()), allow_unused=True, materialize_grads=True)
    return {name: gradient.contiguous() for name, gradient in zip(wanted, found, strict=True)}, value.detach()


def per_sample_gradients(model: nn.Module, loss: Loss, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Gradient of every sample's own loss, in one vectorized pass.

    Args:
        model: network, images to outputs, without operations across samples.
        loss: mean loss of outputs and targets, see `losses`.
        images: (B, channels, height, width), floating point.
        labels: what the loss takes: class indices (B,), int64, or other targets (B, ...).

    Returns:
        Gradients (B, *parameter shape) by parameter name, which take B times the memory of the parameters.

    Raises:
        UserError: the network mixes the samples of a batch.
    """
    return _vmapped(model, loss, images, labels)[0]


def clipped_sum(
    model: nn.Module,
    loss: Loss,
    images: Tensor,
    labels: Tensor,
    clip: Clip,
    chunk_size: int,
    zeros: Collection[str] = (),
) -> tuple[dict[str, Tensor], list[dict[str, float]], Tensor]:
    """Sum over the samples of each sample's clipped gradient.

    Args:
        model: network, images to outputs, without operations across samples.
        loss: mean loss of outputs and targets, see `losses`.
        images: (B, channels, height, width), floating point; B may be 0, because a Poisson sample may be empty.
        labels: what the loss takes: class indices (B,), int64, or other targets (B, ...).
        clip: bound on the norm of each sample's gradient.
        chunk_size: samples differentiated at once; takes the memory of chunk_size + 1 copies of the parameters.
        zeros: names of parameters whose gradient is known to be zero; the model need not have them.

    Returns:
        The sum by the names of all other parameters; each sample's norms by the names of all, before clipping; and the
        mean loss, a scalar. Without samples: zeros, no norms, and 0.

    Raises:
        UserError: the network mixes the samples of a batch, or a gradient holds NaN or infinity.

    Source: Abadi et al. 2016 (arXiv 1607.00133), algorithm 1.
    """
    total = {
        name: torch.zeros_like(parameter.detach(), memory_format=torch.contiguous_format)
        for name, parameter in model.named_parameters()
        if name not in zeros
    }
    zero = dict.fromkeys(zeros, 0.0)
    norms: list[dict[str, float]] = []
    losses: list[Tensor] = []
    if not len(images):
        return total, norms, images.new_zeros(())
    for gradient, value in _one_by_one(model, loss, images, labels, chunk_size, list(total)):
        norms.append(zero | tensor_norms(gradient, clip.order))
        losses.append(value)
        factors = clip.factors(norms[-1])
        for name, tensor in gradient.items():
            total[name].add_(tensor, alpha=factors[name])
        del gradient, tensor  # frees the memory before the next gradient
    return total, norms, torch.stack(losses).mean()


def find_batch_coupling_layer(model: nn.Module) -> str | None:
    """Name of the first layer that mixes the samples of a batch in the model's current mode; None without one."""
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm) and (module.training or module.running_mean is None):
            return str(name)
    return None


@contextmanager
def reproducible_fp32(
    network: nn.Module, device: torch.device, seed: int, batch_statistics: bool | None
) -> Iterator[None]:
    """Run in float32 with a fixed seed; restore modes and RNG state on exit.

    Args:
        network: the network, which is put into training mode.
        device: device of the network.
        seed: seed of random numbers in the forward pass (dropout).
        batch_statistics: whether batch normalization uses the batch, or its running statistics; None: the modes of the
            network are left as they are.
    """
    modes = {module: module.training for module in network.modules()}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(math_attention())
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        if device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # the other devices' generators, which cost more, are not drawn
        else:
            torch.manual_seed(seed)
        if batch_statistics is not None:
            network.train()
            for module in network.modules():
                if isinstance(module, BatchNorm):
                    module.train(batch_statistics)
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training


def _one_by_one(
    model: nn.Module, loss: Loss, images: Tensor, labels: Tensor, chunk_size: int, names: Sequence[str]
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    _refuse_mixing(model)
    for chunk, targets in zip(torch.split(images, chunk_size), torch.split(labels, chunk_size), strict=True):
        if len(chunk) == 1:
            yield mean_gradient(model, loss, chunk, targets, names=names)
        else:
            gradients, losses = _vmapped(model, loss, chunk, targets)
            for index in range(len(chunk)):
                yield {name: gradients[name][index] for name in names}, losses[index]
            del gradients


def _vmapped(model: nn.Module, loss: Loss, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    _refuse_mixing(model)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def sample_loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return loss(functional_call(model, (parameters, buffers), (image.unsqueeze(0),)), label.unsqueeze(0))

    each = vmap(grad_and_value(sample_loss), in_dims=(None, 0, 0), randomness="different")
    try:
        gradients, losses = each(parameters, images, labels)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:  # operations that torch.func cannot vectorize
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the network has layers that cannot be differentiated for several images at once ({reason}): set "
            "--model.client.chunk_size 1 to differentiate them one by one"
        ) from error
    return gradients, losses


def _refuse_mixing(model: nn.Module) -> None:
    if name := find_batch_coupling_layer(model):
        raise UserError(
            f"layer {name} is batch normalization, which mixes the samples of a batch, so that no sample has its own "
            "gradient: convert the network with networks.without_batch_norm, or set "
            "--model.client.privacy.granularity update"
        )
