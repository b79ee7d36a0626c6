# SPDX-License-Identifier: Apache-2.0
"""Targets made up at random for a folder of photographs: several labels an image, or values to regress."""

import csv
from pathlib import Path

import torch

from lightning_recon.data.sources import open_folder

LABELS, VALUES = 14, 3
_SHARE = 0.2  # of the labels that are true


def synthetic_targets(root: Path, kind: str, path: Path) -> Path:
    """Write a CSV file for `--data.targets`, unless it is there.

    Args:
        root: Folder of photographs.
        kind: "labels": 14 of them, each true with probability 0.2. "values": 3 of unit variance.
        path: Of the file.
    """
    if path.exists():
        return path
    names, generator = list(open_folder(root).names), torch.Generator().manual_seed(0)
    if kind == "labels":
        targets = (torch.rand(len(names), LABELS, generator=generator) < _SHARE).float()
    else:
        targets = torch.randn(len(names), VALUES, generator=generator)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([name, *one] for name, one in zip(names, targets.tolist(), strict=True))
    return path
