# SPDX-License-Identifier: Apache-2.0
"""Updates captured from other programs: a file format, its validation, and capturing from Opacus and Flower."""

from lightning_recon.capture.client import CapturedClient
from lightning_recon.capture.tensor_check import name_arrays
from lightning_recon.capture.update_file import CapturedUpdate, Declared, load_captured, save_captured

__all__ = ["CapturedClient", "CapturedUpdate", "Declared", "load_captured", "name_arrays", "save_captured"]
