# SPDX-License-Identifier: Apache-2.0
"""Updates of other programs: a file format, its validation, and capturing from PyTorch loops and frameworks."""

from lightning_recon.capture.client import CapturedClient
from lightning_recon.capture.recording import record
from lightning_recon.capture.tensor_check import name_arrays
from lightning_recon.capture.update_file import CapturedUpdate, Declared, load_captured, save_captured

__all__ = ["CapturedClient", "CapturedUpdate", "Declared", "load_captured", "name_arrays", "record", "save_captured"]
