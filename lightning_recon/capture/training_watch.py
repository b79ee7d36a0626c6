# SPDX-License-Identifier: Apache-2.0
"""Watch a training loop through PyTorch's hooks: images, mini-batches, optimizer and learning rates."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lightning_recon.errors import UserError
from lightning_recon.exchange import LocalTraining, training_by
from lightning_recon.networks.batch_norm import BatchNorm
from lightning_recon.networks.construction import logits_of

Accumulation = Literal["mean", "sum"]  # of gradients: whether each loss is divided by the number of passes, or not


@dataclass
class Watched:
    """What a loop did.

    Args:
        batches: number of images of each mini-batch that went through the model in training mode, in order.
        image_shape: channels, height and width of these images; None before the first.
        num_classes: number of logits of the model; None before the first mini-batch.
        learning_rates: of each optimizer step, in order.
        optimizers: the optimizers that stepped, each once.
        batch_norm: whether batch normalization used the batch ("train") in one of these passes; "eval" without any.
        stale: whether the parameters held gradients when the first backward pass began; None before it.
    """

    batches: list[int] = field(default_factory=list)
    image_shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    learning_rates: list[float] = field(default_factory=list)
    optimizers: list[Optimizer] = field(default_factory=list)
    batch_norm: Literal["train", "eval"] = "eval"
    stale: bool | None = None

    @property
    def passes_per_step(self) -> int:
        """Number of mini-batches whose gradients are accumulated for a step, or for the gradient that is sent."""
        return max(1, -(-len(self.batches) // max(1, len(self.learning_rates))))

    def images(self, epochs: int) -> int:
        """Number of images that the loop went through in each of so many epochs.

        Raises:
            UserError: there are none, or the epochs differ.
        """
        total, count = sum(self.batches), len(self.batches)
        if self.image_shape is None or not total:
            raise UserError(
                "no images (B, C, H, W) went through the model in training mode while it was recorded: call the "
                "recorded model itself inside the block, with gradients"
            )
        if total % epochs or count % epochs or self.batches != self.batches[: count // epochs] * epochs:
            raise UserError(
                f"{total} images went through the model in {count} mini-batches, which are not {epochs} equal epochs: "
                "give record() the number of the loop's epochs"
            )
        return total // epochs

    def local_training(self, epochs: int, shuffle: bool) -> LocalTraining:
        """The loop as it is announced; its update is the change of the weights.

        Args:
            epochs: passes over the client's images.
            shuffle: whether mini-batches are drawn anew in every epoch.

        Raises:
            UserError: what the loop did cannot be announced.
        """
        images, steps = self.images(epochs), len(self.learning_rates)
        if len(self.optimizers) != 1:
            names = " and ".join(type(one).__name__ for one in self.optimizers)
            raise UserError(f"{names} changed the model, but one optimizer can be announced: record a loop of one")
        batches = len(self.batches) // epochs
        rates = self.learning_rates
        found = replace(
            _options_of(self.optimizers[0]),
            epochs=epochs,
            batch_size=None if batches == 1 else self.batches[0],
            shuffle=shuffle and batches > 1,
            accumulate_grad_batches=self.passes_per_step,
            learning_rates=tuple(rates[:1] if len(set(rates)) == 1 else rates),
            update="delta",
        )
        sizes = [found.batch_size or images] * (images // (found.batch_size or images))
        sizes += [images - sum(sizes)] * (sum(sizes) < images)
        if self.batches[:batches] != sizes or found.steps(images) != steps:
            raise UserError(
                f"the loop took {steps} steps of {type(self.optimizers[0]).__name__} on mini-batches of "
                f"{', '.join(map(str, self.batches[:10]))} images, which cannot be announced: mini-batches have to be "
                "of one size but for the last of an epoch, with one forward pass each and equally many for each step"
            )
        return found


@contextmanager
def watching(model: nn.Module, maps: bool = False) -> Iterator[Watched]:
    """Watch the forward passes of a model in training mode, and the steps of optimizers of its parameters.

    Args:
        model: the model that the loop calls, in wrappers or not.
        maps: whether it may return maps, (B, channels, H, W), instead of logits (B, classes).
    """
    watched, own = Watched(), {id(parameter) for parameter in model.parameters()}

    def trains(optimizer: Optimizer) -> bool:
        return any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])

    def passed(module: nn.Module, given: tuple[Any, ...], output: object) -> None:
        images, logits = (given[0] if given else None), logits_of(module, given, output)
        if not module.training or not torch.is_grad_enabled():
            return
        dims = (2, 4) if maps else (2,)
        if (
            not isinstance(images, Tensor)
            or images.dim() != 4
            or not isinstance(logits, Tensor)
            or logits.dim() not in dims
        ):
            raise UserError(
                "the recorded model must map images (B, C, H, W), its first argument, to logits (B, classes), or to "
                "maps (B, channels, H, W) under other losses than the cross-entropy"
            )
        watched.batches.append(len(images))
        shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
        if watched.image_shape not in (None, shape):
            raise UserError(f"images of {watched.image_shape} and of {shape} went through the model: give all one size")
        watched.image_shape, watched.num_classes = shape, int(logits.shape[1])
        if any(isinstance(one, BatchNorm) and one.training for one in module.modules()):
            watched.batch_norm = "train"
        if logits.requires_grad and watched.stale is None:
            logits.register_hook(backward_began)  # type: ignore[no-untyped-call]

    def backward_began(gradient: Tensor) -> None:
        # Not earlier, because many loops call zero_grad() between the forward and the backward pass.
        if watched.stale is None:
            watched.stale = any(one.grad is not None and bool(one.grad.any()) for one in model.parameters())

    def before_step(optimizer: Optimizer, *given: object) -> None:
        if trains(optimizer):
            watched.learning_rates.append(float(optimizer.param_groups[0]["lr"]))

    def after_step(optimizer: Optimizer, *given: object) -> None:
        if trains(optimizer) and not any(one is optimizer for one in watched.optimizers):
            watched.optimizers.append(optimizer)

    hooks = [
        model.register_forward_hook(passed),
        register_optimizer_step_pre_hook(before_step),
        register_optimizer_step_post_hook(after_step),
    ]
    try:
        yield watched
    finally:
        for hook in hooks:
            hook.remove()


def check_accumulation(watched: Watched, accumulation: Accumulation | None) -> None:
    """Refuse accumulated gradients whose scale is not known, or not that of a mean loss.

    Args:
        watched: what the loop did.
        accumulation: what the user says of the losses of passes whose gradients are accumulated, see `record`.

    Raises:
        UserError: several passes lead to one step, or to the gradient that is sent, and their scale is not announced.
    """
    passes = watched.passes_per_step
    if passes == 1:
        return
    divide = f"divide the loss of each pass by {passes}, which is the number of passes"
    if accumulation is None:
        raise UserError(
            f"the gradients of {passes} passes were accumulated, and whether their losses were divided cannot be seen: "
            f'{divide}, and give record() accumulation="mean"'
        )
    if accumulation == "sum":
        raise UserError(
            f'accumulation is "sum", so that a step follows {passes} times the gradient of the mean loss, which cannot '
            f'be announced: {divide}, and give record() accumulation="mean"'
        )
    if not watched.learning_rates and len(set(watched.batches)) > 1:
        raise UserError(
            f"gradients of mini-batches of {', '.join(map(str, watched.batches[:10]))} images were accumulated, whose "
            "mean is not that of all images: give all mini-batches one size"
        )


def _options_of(optimizer: Optimizer) -> LocalTraining:
    """One step of the optimizer; its groups of parameters must have the same options."""
    found, first = training_by(optimizer), optimizer.param_groups[0]
    for group in optimizer.param_groups:
        for name, default in optimizer.defaults.items():
            wanted = first.get(name) if name == "lr" else default
            if group.get(name) != wanted:
                raise UserError(
                    f"{type(optimizer).__name__} has parameters with {name} {group.get(name)!r} and with {wanted!r}, "
                    "but one value can be announced: give all parameters the same options"
                )
    return found
