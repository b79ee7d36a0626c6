# SPDX-License-Identifier: Apache-2.0
"""`reconstructions.safetensors`: the attacker's images, in the attacker's order, with their labels and files."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_recon.attack import Reconstruction
from lightning_recon.display import window_of
from lightning_recon.errors import UserError
from lightning_recon.files.faults import readable
from lightning_recon.files.image_writer import write_image
from lightning_recon.files.schema import BELIEFS as BELIEFS_SCHEMA
from lightning_recon.files.serialization import read_sealed, validated, write_sealed
from lightning_recon.reconstruction import ReceivedFile

RECONSTRUCTIONS = "reconstructions"
BELIEFS = "beliefs"  # entry of the header: labels, files, and whether the images count as evident


def write_reconstructions(root: Path, found: Sequence[Reconstruction]) -> dict[str, Tensor]:
    """Write the reconstructions of all updates and draws.

    Args:
        root: The run folder.
        found: What to write.

    Returns:
        The images by the name of their update and draw.
    """
    images = {key_of(one): one.images.contiguous() for one in found}
    beliefs: dict[str, Any] = {}
    for one in found:
        labels = None if one.labels is None else one.labels.tolist()
        files = None if one.files is None else [file and asdict(file) for file in one.files]
        beliefs[key_of(one)] = {"evident": one.evident, "labels": labels, "files": files}
    write_sealed(root / f"{RECONSTRUCTIONS}.safetensors", images, BELIEFS, beliefs)
    return images


def finished(root: Path) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """The images that a run left in its folder, and the other fields of `Reconstruction` that it kept, by update.

    Raises:
        UserError: the file is missing, damaged, or not what was written.
    """
    path = root / f"{RECONSTRUCTIONS}.safetensors"
    with readable(path):
        images, beliefs = read_sealed(path, BELIEFS)
        for name, batch in images.items():
            if batch.ndim != 4 or not bool(batch.isfinite().all()):
                raise ValueError(f"{name} holds no images")
        kept: Any = validated(beliefs, BELIEFS_SCHEMA)
    for one in kept.values():
        one["labels"] = None if one["labels"] is None else torch.tensor(one["labels"], dtype=torch.int64)
        if one.get("files") is not None:
            one["files"] = tuple(file and ReceivedFile(**file) for file in one["files"])
    return images, dict(kept)


def refined(root: Path, decoded: Sequence[Reconstruction]) -> list[Reconstruction]:
    """Reconstructions with the final images of a finished run in place of those that its updates are decoded to.

    Args:
        root: The run folder.
        decoded: From the recorded updates of that run, before refinement.

    Raises:
        UserError: the file is missing or damaged, or belongs to another run.
    """
    final, kept = finished(root)
    if fault := _misfit(decoded, final):
        raise UserError(
            f"{root / RECONSTRUCTIONS}.safetensors does not belong to this run ({fault}): run recon fit again"
        )
    return [replace(one, images=final[key_of(one)], **kept.get(key_of(one), {})) for one in decoded]


def export(images: Mapping[str, Tensor], folder: Path, bit_depth: int = 8) -> list[str]:
    """Write every image as PNG, in the attacker's order.

    Args:
        images: Images by the name of their update and draw.
        folder: Where to write.
        bit_depth: Bits of a value.

    Returns:
        The names of the files, in the same order.
    """
    names = []
    for name, batch in images.items():
        window = window_of(batch, bit_depth)
        for number, image in enumerate(batch):
            names.append(f"{name}-{number:03d}.png")
            write_image(folder / names[-1], image, bit_depth, window)
    return names


def key_of(one: Reconstruction) -> str:
    """Name of an update and draw, in the file and of exported images."""
    return f"client{one.client:03d}-draw{one.draw:03d}"


def _misfit(decoded: Sequence[Reconstruction], final: Mapping[str, Tensor]) -> str:
    """Why stored images cannot be those of the updates at hand; empty if they can."""
    for one in decoded:
        if (stored := final.get(key_of(one))) is None:
            return f"it lacks {key_of(one)}"
        if stored.shape != one.images.shape:
            return f"{key_of(one)} has shape {tuple(stored.shape)}, not {tuple(one.images.shape)}"
    return ""
