# SPDX-License-Identifier: Apache-2.0
"""Photographs become clients' batches: sources, subjects, and who holds what."""

from lightning_recon.data.captured import CapturedPictures, save_truth
from lightning_recon.data.datamodule import ClientDataModule
from lightning_recon.data.images import ClientBatch
from lightning_recon.data.masks import GrabCutMasks, NoMasks, SamMasks, SubjectMasks

__all__ = [
    "CapturedPictures",
    "ClientBatch",
    "ClientDataModule",
    "GrabCutMasks",
    "NoMasks",
    "SamMasks",
    "SubjectMasks",
    "save_truth",
]
