# SPDX-License-Identifier: Apache-2.0
"""A gradient of the user's own model or training step under attack by an honest-but-curious server."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_recon.api.presets import inversion_preset
from lightning_recon.api.result import AttackResult, bounds_of, scored
from lightning_recon.api.user_model import check_images, check_labels, check_privacy, float_copy, isolated, task_of
from lightning_recon.attack.inversion.forward_model import check_modelled
from lightning_recon.attack.inversion.problem import InverseProblem
from lightning_recon.attack.inversion.search import search
from lightning_recon.client.gradients import reproducible_fp32
from lightning_recon.errors import UserError
from lightning_recon.exchange import LocalTraining
from lightning_recon.networks.input_layer import input_channels
from lightning_recon.networks.setup_check import explained_batch_norm
from lightning_recon.priors.image_statistics import public_statistics
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.ranges import COUNT, COUNT_OR_NONE, POSITIVE, SEED, check_ranges

Gradient = Mapping[str, Tensor | None] | Sequence[Tensor | None]

_NETWORK = "network."  # prefix of parameter names in the update of a client


def gradient_of_step(before: nn.Module, after: nn.Module, learning_rate: float) -> dict[str, Tensor]:
    """The gradient of a step of plain SGD, from the model before and after it.

    For several local steps the result is the sum of their gradients, which `invert_gradients` takes with `local_steps`.

    Args:
        before: the model before the step, such as `copy.deepcopy(model)`.
        after: the model after the step.
        learning_rate: of the step, without momentum or weight decay.

    Returns:
        (weights before - weights after) / learning rate, by parameter name.

    Raises:
        UserError: The models have different parameters.

    Example:
        >>> import copy, torch
        >>> import lightning_recon as lr
        >>> model = torch.nn.Linear(2, 2)
        >>> before = copy.deepcopy(model)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> torch.optim.SGD(model.parameters(), lr=0.5).step()
        >>> bool(lr.gradient_of_step(before, model, 0.5)["weight"].allclose(torch.ones(2, 2)))
        True
    """
    check_ranges("", learning_rate=(learning_rate, POSITIVE))
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    if {name: one.shape for name, one in old.items()} != {name: one.shape for name, one in new.items()}:
        raise UserError("the models before and after the step have different parameters: give copies of one model")
    return {name: (one.detach() - new[name].detach().to(one)) / learning_rate for name, one in old.items()}


@isolated()
def invert_gradients(
    model: nn.Module,
    gradient: Gradient,
    image_size: int | tuple[int, int],
    batch_size: int = 1,
    *,
    privacy: Privacy | None = None,
    labels: Tensor | None = None,
    truth: Tensor | None = None,
    preset: str = "likelihood",
    steps: int | None = None,
    local_steps: int = 1,
    local_lr: float = 0.1,
    local_epochs: int = 1,
    seed: int = 0,
) -> AttackResult:
    """Attack a gradient as an honest-but-curious server does: search for images that have this gradient.

    The model is not changed, nor is the global random state. The search runs in float32 where the model is.

    Args:
        model: the network at the weights at which the gradient was computed, images in [0, 1] to logits. Batch
            normalization is used in the mode (train or eval) in which the model is; dropout is off.
        gradient: of the mean cross-entropy of the batch: by parameter name, as `privatized_update` and
            `gradient_of_step` return it, or in the order of `model.parameters()`, as `torch.autograd.grad` does. None
            stands for zeros.
        image_size: height and width of an image, or one number for both. The number of channels is that of the model's
            first convolution, or of `truth`; 3 without either.
        batch_size: number of images in the batch (B).
        privacy: how the gradient was clipped and noised; None: not at all. Under granularity "sample", the gradient is
            the sum of the samples' clipped gradients. One update is attacked, so `rounds` is 1.
        labels: true labels, (B,), int64, if the attack shall use them (an oracle); None: recovered from the gradient.
        truth: true images, (B, C, H, W) in [0, 1], for the scores alone; None: nothing is scored.
        preset: attack by name, as under `configs/attack/`: "likelihood", "inverting_gradients",
            "inverting_gradients_modern", "see_through_gradients", "dlg", "idlg" or "analytic".
        steps: optimiser steps; None: as many as the preset takes.
        local_steps: SGD steps that the client took, each on an equal part of the batch; `gradient` is then their sum,
            see `gradient_of_step`.
        local_lr: learning rate of the local steps.
        local_epochs: local passes over the batch.
        seed: seed of the search.

    Raises:
        UserError: Model, gradient, labels and images do not fit each other, the preset does not fit the task, or the
            training is not modelled: local steps of DP-SGD, or several rounds.

    Example:
        >>> import torch
        >>> import lightning_recon as lr
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
        >>> image = torch.linspace(0.2, 0.8, 8).expand(1, 3, 8, 8)
        >>> loss = torch.nn.functional.cross_entropy(model(image), torch.tensor([3]))
        >>> gradient = torch.autograd.grad(loss, list(model.parameters()))
        >>> result = lr.invert_gradients(model, gradient, image_size=8, truth=image, preset="analytic", steps=1)
        >>> result.labels.tolist(), bool(result.psnr[0] > 40)
        ([3], True)
    """
    height, width = sides_of(image_size)
    check_ranges(
        "",
        height=(height, COUNT),
        width=(width, COUNT),
        batch_size=(batch_size, COUNT),
        steps=(steps, COUNT_OR_NONE),
        local_steps=(local_steps, COUNT),
        local_lr=(local_lr, POSITIVE),
        local_epochs=(local_epochs, COUNT),
        seed=(seed, SEED),
    )
    if batch_size % local_steps:
        raise UserError(f"local_steps is {local_steps}, which does not divide batch_size, {batch_size}")
    protection = Privacy(max_grad_norm=None) if privacy is None else privacy
    check_privacy(protection)
    if protection.rounds > 1:
        raise UserError(
            f"privacy has {protection.rounds} rounds, but one update is attacked, and its epsilon and bounds are those "
            "of one round: give dataclasses.replace(privacy, rounds=1)"
        )
    network, device = float_copy(model)
    if truth is not None:
        check_images(truth, "truth")
    channels = input_channels(network) if truth is None else truth.shape[1]
    task = task_of(network, (channels, height, width), batch_size, protection)
    local = LocalTraining(epochs=local_epochs, learning_rates=(local_lr,))
    task = replace(task, local=local if local_steps == 1 else replace(local, batch_size=batch_size // local_steps))
    check_modelled(task)
    if labels is not None:
        check_labels(labels, batch_size, task.num_classes)
    if truth is not None and truth.shape != (batch_size, channels, height, width):
        raise UserError(f"truth is {tuple(truth.shape)}: give images ({batch_size}, {channels}, {height}, {width})")
    settings, usual_steps = inversion_preset(preset)
    settings = replace(settings, seed=seed, labels=settings.labels if labels is None else "oracle")
    statistics = public_statistics(height, width, False, None, channels)
    with reproducible_fp32(network, device, seed, None), explained_batch_norm():
        update = named_gradient(network, gradient)
        steps = usual_steps if steps is None else steps
        problem = InverseProblem(network, task, statistics, settings, device, steps)
        images, found, evident = search(problem, update, labels, steps)
    return scored(
        images,
        truth,
        protection,
        statistics,
        labels=found,
        evident=evident,
        bounds=bounds_of(protection, batch_size, None),
        update=update,
    )


def sides_of(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image; whole numbers of any type.

    Raises:
        UserError: It is neither one whole number nor two.
    """
    try:
        side = operator.index(image_size)  # type: ignore[arg-type]
        return side, side
    except TypeError:
        pass
    try:
        height, width = map(operator.index, image_size)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"image_size is {image_size!r}: give one whole number of pixels, or height and width"
        ) from error
    return height, width


def named_gradient(network: nn.Module, gradient: Gradient) -> dict[str, Tensor]:
    """A gradient by the names of the network's parameters, in float32 on their device; None becomes zeros.

    Raises:
        UserError: It does not fit the network.
    """
    parameters = dict(network.named_parameters())
    if isinstance(gradient, Mapping):
        given = {name.removeprefix(_NETWORK) if name not in parameters else name: one for name, one in gradient.items()}
    else:
        if len(gradient) != len(parameters):
            raise UserError(
                f"the gradient has {len(gradient)} tensors, and the model {len(parameters)} parameters: give one for "
                "each of model.parameters(), None for those without a gradient"
            )
        given = dict(zip(parameters, gradient, strict=True))
    if unknown := sorted(given.keys() - parameters.keys()):
        raise UserError(f"the gradient has {unknown[0]}, which is no parameter of the model")
    found = {}
    for name, parameter in parameters.items():
        if name not in given:
            raise UserError(f"the gradient lacks {name}: give a tensor for each of the model's named_parameters()")
        tensor = given[name]
        if tensor is None:
            tensor = torch.zeros_like(parameter)
        if not isinstance(tensor, Tensor) or tensor.shape != parameter.shape:
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise UserError(f"the gradient of {name} is {shape}, and the parameter {tuple(parameter.shape)}")
        if not bool(tensor.isfinite().all()):
            raise UserError(f"the gradient of {name} holds NaN or infinity")
        # A clone, because tensors that were made in inference mode cannot be used in a gradient.
        found[name] = tensor.detach().to(parameter).clone()
    return found
