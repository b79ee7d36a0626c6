# SPDX-License-Identifier: Apache-2.0
"""The only place where a data module gives something to a model.

A data module meets three kinds of models:

- An `Attack` gets its own step numbers as training data, and never an image. If its client is simulated, the client
  gets the batches of images.
- A `TrainedTarget` (VictimClient on its own) gets the format of the images, and may choose a sampler for them.
- Any other LightningModule is trained on the images in shuffled batches.
"""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_recon.attack.base import Attack
from lightning_recon.data.sources import ClientBatch, DataProtocol
from lightning_recon.errors import UserError
from lightning_recon.image_format import ImageFormat


@runtime_checkable
class SimulatedClient(Protocol):
    """A client that answers an attack on images which it is given; recorded and captured clients have none."""

    def bind(self, batches: list[ClientBatch], protocol: DataProtocol | None = None) -> None:
        """Give every client its images.

        Args:
            batches: one for each client.
            protocol: what is announced of them; None: the size of the largest batch, and nothing else.
        """
        ...


@runtime_checkable
class TrainedTarget(Protocol):
    """A target network that is fitted itself."""

    def fit_to_images(self, image_format: ImageFormat) -> None:
        """Adapt the network to the images before the first step.

        Args:
            image_format: of the images.
        """
        ...

    def sampler(self, count: int, batch_size: int) -> Iterable[list[int]] | None:
        """Choose how training batches are drawn.

        Args:
            count: number of training images.
            batch_size: their expected number in a step.

        Returns:
            The indices of each step's batch; None for shuffled batches.
        """
        ...


def model_of(trainer: Trainer | None) -> LightningModule | None:
    """The model that a data module serves; None without a trainer."""
    return trainer.lightning_module if trainer is not None else None


def hand_over(
    model: LightningModule | None,
    batches: list[ClientBatch],
    image_format: ImageFormat,
    protocol: DataProtocol | None = None,
) -> None:
    """Give the batches to the client of an attack, or the format of the images to a target network.

    Args:
        model: the trainer's model; None without a trainer.
        batches: one for each client.
        image_format: of the images.
        protocol: what is announced of the images; None: the size of the largest batch, and nothing else.

    Raises:
        UserError: the client or the network cannot take the images.
    """
    if isinstance(model, Attack):
        model.first_client = 0 if protocol is None else protocol.first_client
        if isinstance(model.client, SimulatedClient):
            model.client.bind(batches, protocol)
    elif isinstance(model, TrainedTarget):
        model.fit_to_images(image_format)


def step_loader(model: LightningModule | None) -> DataLoader[int]:
    """The training data of an attack: its own step numbers.

    Args:
        model: the trainer's model.

    Raises:
        UserError: it is not an attack.
    """
    if not isinstance(model, Attack):
        raise UserError("no attack asks for step numbers: pass the data module to Trainer.fit together with an attack")
    return model.step_loader()


def one_step() -> DataLoader[int]:
    """The validation data of an attack: one step without content."""
    return DataLoader(range(1))  # type: ignore[arg-type]
