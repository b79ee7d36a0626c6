# SPDX-License-Identifier: Apache-2.0
"""The user's model, images and labels, checked; the model itself is never changed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_recon.errors import UserError
from lightning_recon.exchange import Task
from lightning_recon.losses import LossName, as_targets
from lightning_recon.networks.batch_norm import BatchNorm
from lightning_recon.networks.construction import copied, logits_of
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.structure import Structure


@contextmanager
def isolated() -> Iterator[None]:
    """Leave inference mode, in whose tensors gradients cannot be taken, and restore the global random state on exit."""
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        yield


def float_copy(model: nn.Module) -> tuple[nn.Module, torch.device]:
    """A copy of a model in float32, whose modes are those of the original, and the device that it is on.

    Raises:
        UserError: It is no module, or has no parameters.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model is {model!r}: give a torch.nn.Module, images to logits")
    first = next(model.parameters(), None)
    if first is None:
        raise UserError("the model has no parameters, so a client has no gradient to send")
    network = copied(model).float()
    for module in network.modules():
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010 - in-place changes break torch.func and second derivatives
    network.register_forward_hook(logits_of)
    return network, first.device


def count_classes(
    network: nn.Module, image_shape: tuple[int, int, int], device: torch.device, loss: LossName = "cross_entropy"
) -> int:
    """The number of logits of a network for one image, or of other outputs, or of channels of outputs for every pixel.

    Raises:
        UserError: The network does not map such images to logits.
    """
    modes = {module: module.training for module in network.modules()}
    size = " x ".join(map(str, image_shape))
    try:
        with torch.no_grad():
            logits = network.eval()(torch.full((1, *image_shape), 0.5, device=device))
    except Exception as error:  # whatever a model that is not ours may raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"the model cannot take images of {size} ({reason}): give images of the size it expects"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    fits = isinstance(logits, Tensor) and (logits.dim() == 2 or logits.shape[2:] == image_shape[1:])
    if not fits or logits.shape[1] < (2 if loss == "cross_entropy" else 1):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"the model returns {found} for one image: it must return logits (1, classes), 2 classes or more; or, for "
            "other losses, (1, outputs), or outputs for every pixel (1, channels, H, W)"
        )
    return int(logits.shape[1])


def normalises_by_batch(network: nn.Module) -> bool:
    """Whether batch normalisation uses the batch's statistics in the network's present mode."""
    return any(isinstance(module, BatchNorm) and module.training for module in network.modules())


def task_of(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    batch_size: int,
    privacy: Privacy,
    loss: LossName = "cross_entropy",
) -> Task:
    """What a server knows about one client's training on the user's model.

    Raises:
        UserError: The network does not map such images to logits, or the mechanism is one of sums or over rounds.
    """
    if privacy.noise_bands > 1 or privacy.adaptive_clip is not None:
        raise UserError(
            "noise_bands and adaptive_clip are modelled for the rounds of `recon fit`: leave them out of this Privacy"
        )
    device = next(network.parameters()).device
    return Task(
        image_shape=image_shape,
        num_classes=count_classes(network, image_shape, device, loss),
        batch_size=batch_size,
        clients=1,
        network="custom",
        granularity=privacy.granularity,
        per_layer=privacy.per_layer,
        max_grad_norm=privacy.max_grad_norm,
        noise_multiplier=privacy.noise_multiplier,
        rounds=privacy.rounds,
        parameter_tensors=len(list(network.parameters())),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        mechanism=privacy.mechanism,
        batch_norm="train" if normalises_by_batch(network) else "eval",
        loss=loss,
    )


def check_images(images: Tensor, what: str = "images") -> None:
    """Refuse what is not a batch of images in [0, 1].

    Raises:
        UserError: What is wrong.
    """
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.numel():
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise UserError(f"{what} is {found}: give a tensor (B, C, H, W), B at least 1")
    if not images.is_floating_point():
        raise UserError(f"{what} holds {images.dtype}: give floating point values in [0, 1], such as images / 255")
    if not 0 <= float(images.min()) <= float(images.max()) <= 1:  # false for NaN too
        raise UserError(
            f"{what} holds values from {float(images.min()):g} to {float(images.max()):g}: give values in [0, 1], and "
            "let the model normalize them"
        )


def check_structure(structure: object) -> None:
    """Refuse what is no structure.

    Raises:
        UserError: What was given, and what to give.
    """
    if isinstance(structure, type) or not isinstance(structure, Structure):
        shown = structure.__name__ if isinstance(structure, type) else repr(structure)
        raise UserError(f"structure is {shown}: give an object, such as lightning_recon.structure.Digital()")


def check_denoiser(denoiser: object) -> None:
    """Refuse what is no denoiser; None is the default one.

    Raises:
        UserError: What was given, and what to give.
    """
    if denoiser is not None and (isinstance(denoiser, type) or not callable(denoiser)):
        shown = denoiser.__name__ if isinstance(denoiser, type) else repr(denoiser)
        raise UserError(f"denoiser is {shown}: give an object, such as lightning_recon.priors.SmallDenoiser()")


def check_privacy(privacy: object) -> None:
    """Refuse what is no `Privacy`.

    Raises:
        UserError: What was given, and what to give.
    """
    if not isinstance(privacy, Privacy):
        raise UserError(f"privacy is {privacy!r}: give a lightning_recon.Privacy")


def check_labels(labels: Tensor, count: int, classes: int) -> None:
    """Refuse what is not one class index for each image.

    Raises:
        UserError: What is wrong.
    """
    if not isinstance(labels, Tensor) or labels.shape != (count,) or labels.dtype != torch.int64:
        found = f"{tuple(labels.shape)}, {labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
        raise UserError(f"labels is {found}: give {count} class indices, a tensor ({count},) of int64")
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(f"labels are {labels.tolist()[:20]}, and the model has the classes 0 to {classes - 1}")


def check_targets(loss: LossName, targets: Tensor, count: int, outputs: int) -> Tensor:
    """The targets of a loss for those of the user, see `losses.as_targets`.

    Raises:
        UserError: There is not one for each image, or they do not fit the loss.
    """
    if loss == "cross_entropy" and not (isinstance(targets, Tensor) and targets.dim() > 1):
        check_labels(targets, count, outputs)
        return targets
    if not isinstance(targets, Tensor) or not targets.dim() or len(targets) != count:
        found = f"{tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
        raise UserError(f"labels is {found}: give a tensor with the targets of {count} images")
    return as_targets(loss, targets, outputs)
