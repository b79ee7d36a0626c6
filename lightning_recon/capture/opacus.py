# SPDX-License-Identifier: Apache-2.0
"""Capture updates from Opacus: the clipped, noised gradient with which `DPOptimizer` is about to step.

The client trains the server's model, `TamperedNetwork`, wrapped by `PrivacyEngine.make_private` in its default
`grad_sample_mode="hooks"`, or in "ghost". `BatchMemoryManager` may split its batches: a virtual step is no update.
Opacus computes per-sample gradients layer by layer and refuses unknown layers with buffers, in "functorch" mode too.
Importing this module registers the gradient of the structure with Opacus's `register_grad_sampler`. The general refusal
of buffers must be lifted as well, by wrapping the model first: `make_private(module=GradSampleModule(model,
strict=False), ...)`, or for ghost clipping `GradSampleModuleFastGradientClipping(model, strict=False,
max_grad_norm=...)`. Opacus then accepts networks with batch normalization too: convert them with
`opacus.validators.ModuleValidator`.

Opacus's hooks do not support a structure that is spread over several tensors (`spread`, under per-layer clipping), one
that detaches the network's logits (`head_weights: flattened`), and networks that change a layer's output in place, as
torchvision's ResNets do when they add residuals.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from opacus.grad_sample import register_grad_sampler
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lightning_recon.capture.tensor_check import check_trained
from lightning_recon.capture.update_file import CapturedUpdate, Convention, Declared, save_captured
from lightning_recon.errors import UserError
from lightning_recon.exchange import ServerPayload, Task, update_name
from lightning_recon.networks.wrappers import unwrapped
from lightning_recon.structure.layer import InferenceStructure


@register_grad_sampler(InferenceStructure)  # type: ignore[untyped-decorator]
def structure_grad_sample(
    layer: InferenceStructure, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Gradient of every sample with respect to the structure's parameters, in the signature of Opacus.

    Args:
        layer: the structure.
        activations: its inputs: images (B, 3, H, W) and, if given, logits (B, classes).
        backprops: gradient of each sample's loss with respect to the output, (B, classes).

    Returns:
        (B, *parameter shape) by parameter.
    """
    unhooked = _Unhooked(layer)
    parameters = dict(unhooked.named_parameters())

    def weighted_output(values: dict[str, Tensor], inputs: tuple[Tensor, ...], backprop: Tensor) -> Tensor:
        output: Tensor = functional_call(unhooked, values, tuple(value.unsqueeze(0) for value in inputs))
        return (output.squeeze(0) * backprop).sum()

    plain = {name: parameter.detach() for name, parameter in parameters.items()}
    found = vmap(grad(weighted_output), in_dims=(None, 0, 0))(plain, tuple(activations), backprops)
    return {parameters[name]: found[name] for name in parameters}


class _Unhooked(nn.Module):
    """A layer without its hooks: Opacus's hooks would record the calls in here as further training."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> Tensor:
        output: Tensor = self.layer.forward(*inputs)
        return output


def task_of(optimizer: DPOptimizer, like: Task) -> Task:
    """The announced task, with clipping, noise and batch size replaced by those of the optimizer.

    Args:
        optimizer: from `PrivacyEngine.make_private`.
        like: the announced task.

    Raises:
        UserError: the optimizer clips in a way that a `Task` cannot describe.
    """
    norm = optimizer.max_grad_norm
    layers = isinstance(norm, list | tuple)
    if layers and max(norm) - min(norm) > 1e-6 * max(norm):
        raise UserError(
            "the optimizer clips each tensor to a norm of its own: give all L tensors the same norm, C/sqrt(L)"
        )
    return replace(
        like,
        granularity="sample",
        per_layer=layers,
        max_grad_norm=math.hypot(*norm) if layers else float(norm),
        noise_multiplier=float(optimizer.noise_multiplier),
        batch_size=like.batch_size if optimizer.expected_batch_size is None else int(optimizer.expected_batch_size),
    )


def capture(
    optimizer: DPOptimizer,
    model: nn.Module,
    path: str | Path,
    task: Task,
    payload: ServerPayload,
    client: int = 0,
    round: int = 0,
    draw: int = 0,
    declared: Declared | None = None,
) -> None:
    """Write the noised gradient of one step; call it between `optimizer.pre_step()` and the step itself.

    Args:
        optimizer: from `PrivacyEngine.make_private`.
        model: the model that it trains, wrapped or not, with its gradients.
        path: file to write, see `capture.update_file`.
        task: the announced task; it must agree with the optimizer.
        payload: what the server sent to the client.
        client: index of the client, from 0.
        round: index of the round, from 0.
        draw: index of the noise realization, from 0.
        declared: the privacy that the client's program declares, from `PrivacyEngine.get_epsilon`, for example.

    Raises:
        UserError: there is no gradient, the task does not agree with the optimizer, or parameters are frozen whose
            gradients the attack needs.
    """
    _check_noised(optimizer)
    actual = task_of(optimizer, task)
    for name in ("granularity", "per_layer", "max_grad_norm", "noise_multiplier", "batch_size"):
        announced, done = getattr(task, name), getattr(actual, name)
        number = isinstance(announced, float) and isinstance(done, float)
        if not (math.isclose(announced, done, rel_tol=1e-6) if number else announced == done):
            raise UserError(
                f"{name} is {announced} in the task, but the optimizer has {done}: announce that value, and make the "
                "payload for it"
            )
    check_trained(_frozen(model), payload, task.per_layer)
    convention: Convention = "gradient_mean" if optimizer.loss_reduction == "mean" else "gradient_sum"
    try:
        batches = optimizer.accumulated_iterations
    except ValueError as error:
        raise UserError(
            "the step has no gradients: capture after backward() and pre_step(), before zero_grad()"
        ) from error
    # Opacus divides by both; the file holds the mean over the expected batch size.
    factor = float(batches) if convention == "gradient_mean" else 1.0
    tensors = {name: factor * gradient for name, gradient in _gradients(model).items()}
    source = f"opacus {version('opacus')}"
    save_captured(
        path, CapturedUpdate(task, tensors, convention, payload.digest(), client, round, draw, source, declared)
    )


def _check_noised(optimizer: DPOptimizer) -> None:
    """Refuse gradients that are not those of a step.

    Raises:
        UserError: the gradients were accumulated by a virtual step, or their noise is not the announced one.
    """
    # Opacus marks the sum of clipped gradients once noise was added to it.
    sums = [parameter.summed_grad for parameter in optimizer.params if parameter.summed_grad is not None]
    if sums and not all(getattr(one, "_processed", False) for one in sums):
        raise UserError(
            "this was a virtual step, which only adds to a logical batch: capture in a step hook, as capture_steps "
            "does, or after the last step of the logical batch"
        )
    if hasattr(optimizer, "_adjusted_noise_multiplier"):
        raise UserError(
            "the noise follows an adaptive clipping norm, which is not captured: use a constant max_grad_norm"
        )


def capture_steps(
    optimizer: DPOptimizer,
    model: nn.Module,
    folder: str | Path,
    task: Task,
    payload: ServerPayload,
    client: int = 0,
    declared: Declared | None = None,
) -> None:
    """Write the noised gradient of each of the next `task.rounds` steps.

    Opacus calls the step hook after noise is added and before the step. An existing hook (that of its accountant) is
    called first.

    Args:
        optimizer: from `PrivacyEngine.make_private`.
        model: the model that it trains.
        folder: folder for one file per step; each step is a round.
        task: the announced task.
        payload: what the server sent to the client.
        client: index of the client, from 0.
        declared: the privacy that the client's program declares.
    """
    before: Callable[[DPOptimizer], None] | None = optimizer.step_hook
    steps = iter(range(task.rounds))

    def hook(stepping: DPOptimizer) -> None:
        if before is not None:
            before(stepping)
        if (round := next(steps, None)) is not None:
            path = Path(folder) / f"{update_name(client, 0, round)}.safetensors"
            capture(stepping, model, path, task, payload, client, round, declared=declared)

    optimizer.attach_step_hook(hook)


def capture_change(
    before: Mapping[str, Tensor],
    model: nn.Module,
    path: str | Path,
    task: Task,
    payload: ServerPayload,
    client: int = 0,
    round: int = 0,
    declared: Declared | None = None,
) -> None:
    """Write what a client's local training has changed, after any number of steps of `DPOptimizer`.

    Args:
        before: the server's model as the client received it: its parameters by name.
        model: the same model after the training, wrapped or not.
        path: file to write, see `capture.update_file`.
        task: the announced task; its local training says what the steps were, with `update` "delta".
        payload: what the server sent to the client.
        client: index of the client, from 0.
        round: index of the round, from 0.
        declared: the privacy that the client's program declares.

    Raises:
        UserError: the model has not the same parameters, the task announces another update, or parameters are frozen
            whose gradients the attack needs.
    """
    if task.granularity != "sample" or task.local.update != "delta":
        raise UserError('announce granularity "sample" and local training whose update is "delta"')
    after = {name: parameter.detach() for name, parameter in unwrapped(model).named_parameters()}
    if missing := sorted(after.keys() ^ before.keys()):
        raise UserError(f"{missing[0]} is a parameter only before or only after the training: give copies of one model")
    check_trained(_frozen(model), payload, task.per_layer)
    tensors = {name: after[name] - one.to(after[name]) for name, one in before.items()}
    source = f"opacus {version('opacus')}"
    save_captured(path, CapturedUpdate(task, tensors, "delta", payload.digest(), client, round, 0, source, declared))


def _frozen(model: nn.Module) -> list[str]:
    """Names of the parameters that are not trained."""
    return [name for name, parameter in unwrapped(model).named_parameters() if not parameter.requires_grad]


def _gradients(model: nn.Module) -> Mapping[str, Tensor]:
    """Gradients by parameter name of the server's model; zeros for frozen parameters."""
    found: dict[str, Tensor] = {}
    for name, parameter in unwrapped(model).named_parameters():
        gradient: Any = parameter.grad
        if gradient is None and parameter.requires_grad:
            raise UserError(f"{name} has no gradient: pass the model that the optimizer trains, after its pre_step()")
        found[name] = torch.zeros_like(parameter) if gradient is None else gradient.detach()
    return found
