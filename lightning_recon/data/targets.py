# SPDX-License-Identifier: Apache-2.0
"""What a network is to learn about an image: its class, the mask of its subject, or numbers from a CSV file."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.plural import counted
from lightning_recon.printable import printable


@dataclass(frozen=True)
class Targets:
    """Where the targets of images come from.

    Args:
        kind: "labels": the class index of the source. "masks": the mask of the subject, so that images stay whole.
            "values": numbers from a file.
        values: the numbers by the name of an image, all of the same length.
        origin: name of the file, for messages.
    """

    kind: Literal["labels", "masks", "values"]
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    origin: str = ""

    @property
    def whole_images(self) -> bool:
        """Whether clients train on whole photographs, because the subject is what they are to find."""
        return self.kind == "masks"

    def of(self, names: Sequence[str], labels: Tensor, masks: Tensor) -> Tensor:
        """The targets of images.

        Args:
            names: of the images, see `ImageSource`.
            labels: (B,), int64.
            masks: (B, 1, H, W), bool: true on the subject.

        Returns:
            (B,) int64, (B, 1, H, W) float32 or (B, numbers) float32.

        Raises:
            UserError: the file holds no numbers for an image.
        """
        if self.kind == "labels":
            return labels
        if self.kind == "masks":
            return masks.float()
        if lacking := [name for name in names if name not in self.values]:
            raise UserError(
                f"{self.origin} has no line for {lacking[0]}: give each image a line with its path below --data.root "
                "and its numbers"
            )
        width = len(next(iter(self.values.values())))
        return torch.tensor([self.values[name] for name in names], dtype=torch.float32).view(len(names), width)


def open_targets(targets: str, root: Path | None) -> Targets:
    """The targets that `--data.targets` names.

    Args:
        targets: "labels", "masks", or a CSV file: its path, also below the data root. Each line has the path of an
            image below the root, or its index in a data set of torchvision, and then one number or more; a first line
            without numbers is a header.
        root: folder of the data.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    if targets == "labels":
        return Targets("labels")
    if targets == "masks":
        return Targets("masks")
    paths = [Path(targets).expanduser()] + ([] if root is None else [root / targets])
    path = next((one for one in paths if one.is_file()), None)
    if path is None:
        raise UserError(
            f"--data.targets is {targets!r}, which is no file: give labels, masks, or the path of a CSV file"
        )
    return Targets("values", _read(path), printable(str(path)))


def _read(path: Path) -> dict[str, tuple[float, ...]]:
    """The numbers of a file by the first field of their line."""
    values: dict[str, tuple[float, ...]] = {}
    width = 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, (name, *fields) in enumerate((line for line in csv.reader(file) if line), start=1):
                found = _numbers(fields)
                if found is None and number == 1:
                    continue
                width = width or len(fields)
                if found is None or len(found) != width:
                    raise ValueError(
                        f"line {number} has no {counted(width or 1, 'number')} after the name of the image"
                    )
                if printable(name) in values:
                    raise ValueError(f"line {number} names {printable(name)} again")
                values[printable(name)] = found
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} holds no targets ({error}): each line is the path of an image, and numbers") from error
    if not values:
        raise UserError(f"{path} holds no targets: each line is the path of an image, and numbers")
    return values


def _numbers(fields: list[str]) -> tuple[float, ...] | None:
    """Finite numbers; None if there are none, or something else is among them."""
    try:
        found = tuple(float(one) for one in fields)
    except ValueError:
        return None
    return found if found and all(math.isfinite(one) for one in found) else None
