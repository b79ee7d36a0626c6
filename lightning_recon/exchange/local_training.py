# SPDX-License-Identifier: Apache-2.0
"""What a client does between the model that it receives and the update that it sends, as it is announced."""

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field
from torch.optim import Optimizer

from lightning_recon.files import schema

SGD = "torch.optim.sgd.SGD"
ADAM = "torch.optim.adam.Adam"
ADAMW = "torch.optim.adamw.AdamW"

# Options of PyTorch's optimizers that choose an implementation, not what is computed; and the learning rate.
_NOT_ANNOUNCED = ("lr", "foreach", "fused", "capturable", "differentiable")

Option = schema.Finite | bool | Annotated[list[schema.Finite], Field(max_length=100)]
Update = Literal["gradient", "delta"]


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains locally; the defaults are one step of plain SGD on its whole batch.

    Args:
        epochs: passes over the client's batch.
        batch_size: images in a local mini-batch; None: the client's whole batch.
        drop_last: whether a smaller last mini-batch is left out, as `torch.utils.data.DataLoader` calls it.
        shuffle: whether mini-batches are drawn anew in every epoch. The order is the client's secret.
        accumulate_grad_batches: mini-batches for each optimizer step, as in Lightning: their mean losses are divided by
            this number, and the last step of an epoch may have fewer of them.
        optimizer: class path of the optimizer.
        options: its options by name, without the learning rate and without those that are zero or off: momentum,
            nesterov, betas, eps, weight_decay, ...
        learning_rates: learning rate of each optimizer step in order; the last one holds for all later steps.
        update: what is sent. "delta": the weights before minus the weights after, as Flower and NVFlare send it up to
            the sign; "gradient": the same divided by the first learning rate, so that a step of plain SGD sends the
            gradient.
    """

    # Records are validated against these types when they are read from disk.
    __pydantic_config__: ClassVar[ConfigDict] = schema.STRICT

    epochs: schema.Rounds = 1
    batch_size: schema.Batch | None = None
    drop_last: bool = False
    shuffle: bool = False
    accumulate_grad_batches: schema.Batch = 1
    optimizer: schema.Name = SGD
    options: Annotated[dict[schema.Name, Option], Field(max_length=100)] = field(default_factory=dict)
    learning_rates: Annotated[tuple[schema.NotNegative, ...], Field(min_length=1, max_length=100_000)] = (0.1,)
    update: Update = "gradient"

    def option(self, name: str) -> float:
        """An option of the optimizer that is a number or a truth value; 0 if it has none of this name."""
        value = self.options.get(name, 0.0)
        return 0.0 if isinstance(value, list) else float(value)

    def batches(self, images: int) -> int:
        """Number of mini-batches in an epoch over so many images."""
        if self.batch_size is None:
            return 1
        return images // self.batch_size if self.drop_last else math.ceil(images / self.batch_size)

    def steps_of_epoch(self, images: int) -> int:
        """Number of optimizer steps in an epoch over so many images."""
        return math.ceil(self.batches(images) / self.accumulate_grad_batches)

    def steps(self, images: int) -> int:
        """Number of optimizer steps of a client with so many images."""
        return self.epochs * self.steps_of_epoch(images)

    def first_step(self, images: int) -> slice:
        """The images of the first optimizer step, if they are not shuffled."""
        return slice(min(images, (self.batch_size or images) * self.accumulate_grad_batches))

    def expected_batch_size(self, images: int) -> int:
        """Number by which DP-SGD divides the sum over a mini-batch, as Opacus does: images by mini-batches, rounded."""
        return images // self.batches(images)

    def learning_rate(self, step: int) -> float:
        """Learning rate of the optimizer step of this index, from 0."""
        return self.learning_rates[min(step, len(self.learning_rates) - 1)]

    @property
    def is_plain_sgd(self) -> bool:
        """Whether every step is one of SGD without momentum, weight decay or maximization."""
        return self.optimizer == SGD and not any(map(self.option, ("momentum", "weight_decay", "maximize")))

    @property
    def is_plain_step(self) -> bool:
        """Whether the client sends the gradient of its whole batch: one step of plain SGD."""
        return self.is_plain_sgd and self.epochs == 1 and self.batch_size is None and self.update == "gradient"

    def in_words(self, images: int) -> str:
        """The training of a client with so many images, in a few words."""
        name, steps, epochs = self.optimizer.rpartition(".")[2], self.steps_of_epoch(images), self.epochs
        numbers = {"lr": self.learning_rates[0], **self.options}
        shown = ", ".join(f"{key} {value}" for key, value in numbers.items() if not isinstance(value, list))
        text = f"{steps} step{'s' if steps > 1 else ''} of {name} ({shown})"
        text += f" × {epochs} epochs" if epochs > 1 else ""
        return text + (", scheduled" if len(self.learning_rates) > 1 else "") + (", shuffled" if self.shuffle else "")

    @property
    def divisor(self) -> float:
        """The number by which the difference of the weights is divided before it is sent."""
        return self.learning_rates[0] if self.update == "gradient" else 1.0


def training_by(optimizer: Optimizer) -> LocalTraining:
    """One step of an optimizer, to be announced: its class, its options and its learning rate.

    Options that are neither numbers nor truth values are not announced, nor are those that are zero or off.
    """
    options: dict[str, float | bool | list[float]] = {}
    for name, value in optimizer.defaults.items():
        if name in _NOT_ANNOUNCED or not value:
            continue
        if isinstance(value, bool | float | int):
            options[name] = value
        elif isinstance(value, list | tuple) and all(isinstance(one, float | int) for one in value):
            options[name] = [float(one) for one in value]
    path = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
    return LocalTraining(optimizer=path, options=options, learning_rates=(float(optimizer.defaults["lr"]),))
