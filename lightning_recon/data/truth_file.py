# SPDX-License-Identifier: Apache-2.0
"""The images behind a captured update, for scoring alone: an auditor has those of his own client.

A truth file is one safetensors file, `images` (B, 3, H, W) float32 in [0, 1] and `labels` (B,) int64, with the client's
index in its header. The attack never reads it.
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

FORMAT = "truth 1"
ENTRY = "truth"  # of the safetensors header


def save_truth(path: str | Path, images: Tensor, labels: Tensor, client: int = 0) -> None:
    """Write what a captured client trained on.

    Args:
        path: file to write: beside the update, as `truth.safetensors`, or `truth-c000.safetensors` and so on for
            several clients.
        images: (B, 3, H, W), values in [0, 1].
        labels: (B,), class indices.
        client: index of the client, from 0.

    Raises:
        UserError: the images are none, or the file cannot be written.
    """
    path = Path(path)
    if fault := _fault(images, labels):
        raise UserError(f"cannot write {path}: {fault}")
    tensors = {"images": images.to(torch.float32), "labels": labels.to(torch.int64)}
    write_sealed(path.with_name(f"{path.stem}.safetensors"), tensors, ENTRY, {"format": FORMAT, "client": client})


def load_truth(path: Path) -> tuple[int, ClientBatch]:
    """Read a client's index and its images.

    Raises:
        UserError: the file is damaged, or no truth file.
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
            f"{path} is no truth file ({reason_of(error)}): write it by lightning_recon.data.save_truth"
        ) from error
    images, labels = images.to(torch.float32), labels.to(torch.int64)
    names = [f"{path.stem}/{index}" for index in range(len(images))]
    return client, ClientBatch(images, images, torch.ones_like(images[:, :1], dtype=torch.bool), labels, names)


def check_truth(batches: list[ClientBatch], task: Task) -> None:
    """Refuse images that cannot be those behind an update.

    Args:
        batches: each client's images.
        task: what was announced.

    Raises:
        UserError: what does not fit.
    """
    if len(batches) != task.clients:
        raise UserError(
            f"--data holds the pictures of {len(batches)} clients, the update is of {task.clients}: give those of "
            "each, in a truth file of its own"
        )
    for client, batch in enumerate(batches):
        shape = (task.batch_size, *task.image_shape)
        if tuple(batch.images.shape) != shape:
            raise UserError(
                f"the pictures of client {client} have shape {tuple(batch.images.shape)}, the update is about {shape}: "
                "give the truth file that was written with it"
            )
        if int(batch.labels.max()) >= task.num_classes:
            raise UserError(
                f"the pictures of client {client} have the label {int(batch.labels.max())}, and the network has "
                f"{task.num_classes} classes: correct the labels, or num_classes of the capture"
            )


class CapturedPictures(LightningDataModule):
    """The images behind a captured update, read from truth files; they score the attack and do nothing else."""

    client_batches: list[ClientBatch]

    def __init__(self, root: str) -> None:
        """Name the files; nothing is read before `setup`.

        Args:
            root: a truth file, or a folder with truth*.safetensors for each client.
        """
        super().__init__()
        self.root = Path(root)

    def setup(self, stage: str | None = None) -> None:
        """Read the images; a simulated client, to compare with, is given them.

        Args:
            stage: fit, validate, test or predict; all are alike.
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
            raise UserError(f"{self.root} holds the pictures of clients {have}: give one truth file for each, from 0")
        self.client_batches = [batch for _, batch in found]
        model = model_of(self.trainer)
        if model is not None and not isinstance(model, Attack):
            raise UserError("data.CapturedPictures scores attacks and trains no network: give data.ClientDataModule")
        hand_over(model, self.client_batches, self.client_batches[0].images.shape[-1])

    def train_dataloader(self) -> DataLoader[Any]:
        """The attack's own step counter."""
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


def _fault(images: Tensor, labels: Tensor) -> str:
    """What is wrong with images and labels, in one line; empty if nothing."""
    if images.ndim != 4 or images.shape[1] != 3 or not len(images) or not images.is_floating_point():
        return f"images are {str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}, not float (B, 3, H, W)"
    if not (images.min() >= 0 and images.max() <= 1):
        return f"images reach from {float(images.min()):.3g} to {float(images.max()):.3g}, not from 0 to 1"
    if labels.is_floating_point() or labels.dtype == torch.bool:
        return f"labels are {str(labels.dtype).removeprefix('torch.')}, not integers"
    if labels.shape != images.shape[:1]:
        return f"{tuple(labels.shape)} labels for {len(images)} images"
    return f"the label {int(labels.min())} is below 0" if int(labels.min()) < 0 else ""
