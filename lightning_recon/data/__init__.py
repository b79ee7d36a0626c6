# SPDX-License-Identifier: Apache-2.0
"""Images of the clients: sources, subject masks, batches, and their hand-over to the client."""

from lightning_recon.data.any_dataset import DatasetClients
from lightning_recon.data.datamodule import ClientDataModule
from lightning_recon.data.masks import GrabCutMasks, NoMasks, SubjectMasks
from lightning_recon.data.sam_masks import SamMasks
from lightning_recon.data.sources import ClientBatch
from lightning_recon.data.truth_file import CapturedPictures, save_truth

__all__ = [
    "CapturedPictures",
    "ClientBatch",
    "ClientDataModule",
    "DatasetClients",
    "GrabCutMasks",
    "NoMasks",
    "SamMasks",
    "SubjectMasks",
    "save_truth",
]
