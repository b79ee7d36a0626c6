# SPDX-License-Identifier: Apache-2.0
"""Options of a client's local training, and the announcement that follows from them."""

import inspect
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_recon.errors import UserError
from lightning_recon.exchange import LocalTraining
from lightning_recon.exchange.local_training import training_by
from lightning_recon.plural import counted
from lightning_recon.ranges import COUNT, check_ranges

FLAG = "--model.client.local."


@dataclass(frozen=True)
class LocalOptions:
    """How a client trains between the model that it receives and the update that it sends.

    The defaults are one step of plain SGD on the client's whole batch (FedSGD).

    Args:
        epochs: passes over the client's batch in a round.
        batch_size: images in a mini-batch; null: the client's whole batch.
        steps: mini-batches of equal size in an epoch, in place of `batch_size`.
        drop_last: leave out a last mini-batch that is smaller than the others.
        shuffle: draw the mini-batches anew in every epoch. The order comes from the secret that the noise comes from.
        accumulate_grad_batches: mini-batches for each optimizer step, as in Lightning.
        optimizer: optimizer of the local steps, whose class is given before its options; null: torch.optim.SGD with a
            learning rate of 0.1.
        scheduler: learning rate scheduler of the local steps, which starts anew in every round; null: none.
        scheduler_interval: when the scheduler is stepped: after every "epoch" or every optimizer "step".
        update: what is clipped and sent: "delta", the weights before minus the weights after; or "gradient", this
            difference divided by the first learning rate. null: "gradient" for one step of plain SGD on the whole
            batch, else "delta", as Flower and NVFlare send it.
    """

    epochs: int = 1
    batch_size: int | None = None
    steps: int | None = None
    drop_last: bool = False
    shuffle: bool = False
    accumulate_grad_batches: int = 1
    optimizer: OptimizerCallable | None = None
    scheduler: LRSchedulerCallable | None = None
    scheduler_interval: Literal["epoch", "step"] = "epoch"
    update: Literal["gradient", "delta"] | None = None

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and two sizes of a mini-batch."""
        check_ranges(
            FLAG,
            epochs=(self.epochs, COUNT),
            batch_size=(self.batch_size, COUNT),
            steps=(self.steps, COUNT),
            accumulate_grad_batches=(self.accumulate_grad_batches, COUNT),
        )
        if self.steps is not None and self.batch_size is not None:
            raise UserError(f"{FLAG}steps and {FLAG}batch_size both set the size of a mini-batch: give one of them")
        if self.drop_last and self.batch_size is None:
            raise UserError(
                f"{FLAG}drop_last needs {FLAG}batch_size: without it no mini-batch is smaller than the others"
            )
        if self.scheduler_interval == "step" and self.scheduler is None:
            raise UserError(
                f"{FLAG}scheduler_interval needs {FLAG}scheduler: without one the learning rate is constant"
            )
        self.announced(None)

    def new_optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """The optimizer of one round."""
        return torch.optim.SGD(parameters, lr=0.1) if self.optimizer is None else self.optimizer(parameters)

    def announced(self, images: int | None) -> LocalTraining:
        """What is announced of the training.

        Args:
            images: number of images of a client; None: not known yet, which leaves the mini-batches and the schedule
                unchecked.

        Raises:
            UserError: the mini-batches do not fit this number, or the optimizer or its schedule cannot be used here.
        """
        optimizer = _probe(self)
        size = self.batch_size
        if images is not None and self.steps is not None:
            if images % self.steps:
                raise UserError(
                    f"{FLAG}steps is {self.steps}, which does not divide a batch of {images}: set --data.batch_size to "
                    f"a multiple, or {FLAG}batch_size"
                )
            size = None if self.steps == 1 else images // self.steps
        local = replace(
            training_by(optimizer),
            epochs=self.epochs,
            batch_size=size,
            drop_last=self.drop_last,
            shuffle=self.shuffle,
            accumulate_grad_batches=self.accumulate_grad_batches,
        )
        if images is None:
            return local
        if size is not None and size > images:
            raise UserError(
                f"{FLAG}batch_size is {size}, but a client has {counted(images, 'image')}: lower it, or give null"
            )
        if self.accumulate_grad_batches > local.batches(images):
            raise UserError(
                f"{FLAG}accumulate_grad_batches is {self.accumulate_grad_batches}, but an epoch over "
                f"{counted(images, 'image')} has "
                f"{counted(local.batches(images), 'mini-batch', 'mini-batches')}: lower it, or {FLAG}batch_size"
            )
        rates = _schedule(self, optimizer, local.steps(images), local.steps_of_epoch(images))
        if not any(rates):
            raise UserError(
                f"the learning rate of every local step is 0, so nothing would be sent: raise {FLAG}optimizer.lr"
            )
        plain = local.is_plain_step and len(rates) == 1
        update = self.update or ("gradient" if plain else "delta")
        if update == "gradient" and not rates[0]:
            raise UserError(f"the first learning rate is 0, by which no update can be divided: set {FLAG}update delta")
        return replace(local, learning_rates=rates, update=update)

    def in_round(self, announced: int, images: int) -> LocalTraining:
        """What a client does in a round whose sampled batch may differ from the announced one.

        Mini-batches keep their announced size, and the last one is smaller or left out, as in a data loader. There may
        be none at all.

        Args:
            announced: number of images that is announced, for which the options were checked.
            images: number of images in this round; may be 0.

        Raises:
            UserError: the schedule cannot be used for so many steps.
        """
        local = self.announced(announced)
        if images == announced or not local.batches(images):
            return local
        rates = _schedule(self, _probe(self), local.steps(images), local.steps_of_epoch(images))
        return replace(local, learning_rates=rates)


def _probe(options: LocalOptions) -> Optimizer:
    """The optimizer of a network with one number, after one step.

    Raises:
        UserError: it cannot be made, has no learning rate, or needs a closure.
    """
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    try:
        optimizer = options.new_optimizer([weight])
        if inspect.signature(optimizer.step).parameters["closure"].default is inspect.Parameter.empty:
            raise UserError(
                f"{FLAG}optimizer is {type(optimizer).__name__}, which evaluates the loss several times in a step: "
                "choose one that needs a gradient alone, such as torch.optim.Adam"
            )
        optimizer.step()
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{FLAG}optimizer cannot be used ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(optimizer.defaults.get("lr"), float | int):
        raise UserError(f"{FLAG}optimizer is {type(optimizer).__name__}, which has no learning rate that is a number")
    return optimizer


def _schedule(options: LocalOptions, optimizer: Optimizer, steps: int, steps_of_epoch: int) -> tuple[float, ...]:
    """The learning rate of each step; equal ones at the end are left out.

    Raises:
        UserError: the scheduler cannot be used, or changes more than the learning rate.
    """
    if options.scheduler is None:
        return (float(optimizer.defaults["lr"]),)
    rates: list[float] = []
    before = _other_options(optimizer)
    try:
        scheduler: Any = options.scheduler(optimizer)
        for step in range(steps):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            if options.scheduler_interval == "step" or (step + 1) % steps_of_epoch == 0:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    if isinstance(scheduler, ReduceLROnPlateau):
                        raise UserError(f"{FLAG}scheduler follows a metric, which a client does not have: give another")
                    scheduler.step()
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{FLAG}scheduler cannot be used ({' '.join(str(error).split())[:200]})") from error
    if _other_options(optimizer) != before:
        raise UserError(
            f"{FLAG}scheduler changes more than the learning rate: switch that off, as cycle_momentum false"
        )
    while len(rates) > 1 and rates[-1] == rates[-2]:
        rates.pop()
    return tuple(rates)


def _other_options(optimizer: Optimizer) -> dict[str, object]:
    skipped = ("params", "lr", "initial_lr", "max_lr", "min_lr")
    return {name: value for name, value in optimizer.param_groups[0].items() if name not in skipped}
