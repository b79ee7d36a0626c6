# SPDX-License-Identifier: Apache-2.0
"""The true images behind a captured update, which an auditor has of a client of their own; only for scoring.

A truth file is a safetensors file with `images` (B, C, H, W) float32 in [0, 1], `labels` (B,) int64 or other targets
(B, ...) float32, and the client's index in the header. The attack never reads it.
"""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_recon.attack.base import Attack
from lightning_recon.data.handover import hand_over, model_of, one_step, step_loader
from lightning_recon.data.sources import ClientBatch
from lightning_recon.errors import UserError
from lightning_recon.exchange import Task
from lightning_recon.files.faults import FAULTS, reason_of
from lightning_recon.files.schema import TRUTH
from lightning_recon.files.serialization import read_sealed, validated, write_sealed
from lightning_recon.image_format import ImageFormat

FORMAT = "truth 1"
ENTRY = "truth"  # key in the safetensors header


def save_truth(path: str | Path, images: Tensor, labels: Tensor, client: int = 0) -> None:
    """Write the images that a captured client trained on.

    Args:
        path: file to write, beside the update: `truth.safetensors`, or `truth-c000.safetensors` and so on for several
            clients.
        images: (B, C, H, W), values in [0, 1].
        labels: (B,), class indices; or other targets, (B, ...), floating point.
        client: index of the client, from 0.

    Raises:
        UserError: images or labels are invalid, or the file cannot be written.
    """
    path = Path(path)
    if fault := _fault(images, labels):
        raise UserError(f"cannot write {path}: {fault}")
    tensors = {"images": images.to(torch.float32), "labels": _stored(labels)}
    write_sealed(path.with_name(f"{path.stem}.safetensors"), tensors, ENTRY, {"format": FORMAT, "client": client})


def load_truth(path: Path) -> tuple[int, ClientBatch]:
    """Read a client's index and its images.

    Raises:
        UserError: the file is damaged, or not a truth file.
    """
    try:
        tensors, header = read_sealed(path, ENTRY)
        if header.pop("format", None) != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        client, images, labels = validated(header, TRUTH)["client"], tensors["images"], tensors["labels"]
        if fault := _fault(images, labels):
            raise ValueError(fault)
    except FAULTS as error:
        raise UserError(
            f"{path} is not a truth file ({reason_of(error)}): write it with lightning_recon.data.save_truth"
        ) from error
    images, labels = images.to(torch.float32), _stored(labels)
    names = [f"{path.stem}/{index}" for index in range(len(images))]
    return client, ClientBatch(images, images, torch.ones_like(images[:, :1], dtype=torch.bool), labels, names)


def check_truth(batches: list[ClientBatch], task: Task) -> None:
    """Refuse images that cannot be those behind an update.

    Args:
        batches: each client's images.
        task: the announced task.

    Raises:
        UserError: number, shape or labels of the images do not fit the task.
    """
    if len(batches) != task.clients:
        raise UserError(
            f"--data holds the images of {len(batches)} clients, but the update is of {task.clients}: give one truth "
            "file for each client"
        )
    for client, batch in enumerate(batches):
        # A client may have more or fewer images than announced.
        if tuple(batch.images.shape[1:]) != task.image_shape:
            raise UserError(
                f"the images of client {client} have shape {tuple(batch.images.shape[1:])}, the update is about "
                f"{task.image_shape}: give the truth file that was written with the update"
            )
        if not batch.labels.is_floating_point() and int(batch.labels.max()) >= task.num_classes:
            raise UserError(
                f"the images of client {client} have the label {int(batch.labels.max())}, but the network has "
                f"{task.num_classes} classes: correct the labels, or num_classes of the capture"
            )


class CapturedPictures(LightningDataModule):
    """The true images behind a captured update, read from truth files; only for scoring the attack."""

    client_batches: list[ClientBatch]

    def __init__(self, root: str) -> None:
        """Choose the files; nothing is read before `setup`.

        Args:
            root: a truth file, or a folder with one truth*.safetensors for each client.
        """
        super().__init__()
        self.root = Path(root)

    def setup(self, stage: str | None = None) -> None:
        """Read the images, and hand them over to a simulated client that the captured update is compared with.

        Args:
            stage: the trainer's stage; it makes no difference.
        """
        paths = sorted(self.root.glob("truth*.safetensors")) if self.root.is_dir() else [self.root]
        if not paths or not paths[0].is_file():
            raise UserError(
                f"there is no truth file in {self.root}: leave out --data to attack without scores, or give the file "
                "that was written with the update"
            )
        found = sorted((load_truth(path) for path in paths), key=lambda pair: pair[0])
        if [client for client, _ in found] != list(range(len(found))):
            have = ", ".join(str(client) for client, _ in found)
            raise UserError(f"{self.root} holds the images of clients {have}: give one truth file for each, from 0")
        self.client_batches = [batch for _, batch in found]
        model = model_of(self.trainer)
        if model is not None and not isinstance(model, Attack):
            raise UserError("data.CapturedPictures only scores attacks: train a network on data.ClientDataModule")
        channels, height, width = self.client_batches[0].images.shape[1:]
        hand_over(model, self.client_batches, ImageFormat(channels, height, width))

    def train_dataloader(self) -> DataLoader[Any]:
        """The attack's own step numbers."""
        return step_loader(model_of(self.trainer))

    def val_dataloader(self) -> DataLoader[Any]:
        """One empty step."""
        return one_step()

    def test_dataloader(self) -> DataLoader[Any]:
        """One empty step."""
        return one_step()

    def predict_dataloader(self) -> DataLoader[Any]:
        """One empty step."""
        return one_step()


def _stored(labels: Tensor) -> Tensor:
    return labels.to(torch.float32 if labels.is_floating_point() else torch.int64)


def _fault(images: Tensor, labels: Tensor) -> str:
    """What is wrong with images and labels, in one line; empty if they are valid."""
    if images.ndim != 4 or not images.numel() or not images.is_floating_point():
        return f"images are {str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}, not float (B, C, H, W)"
    if not (images.min() >= 0 and images.max() <= 1):
        return f"images reach from {float(images.min()):.3g} to {float(images.max()):.3g}, not from 0 to 1"
    if labels.is_floating_point() and labels.ndim > 1:
        return "" if len(labels) == len(images) else f"{tuple(labels.shape)} targets for {len(images)} images"
    if labels.is_floating_point() or labels.dtype == torch.bool:
        return f"labels are {str(labels.dtype).removeprefix('torch.')}, not integers"
    if labels.shape != images.shape[:1]:
        return f"{tuple(labels.shape)} labels for {len(images)} images"
    return f"the label {int(labels.min())} is below 0" if int(labels.min()) < 0 else ""
