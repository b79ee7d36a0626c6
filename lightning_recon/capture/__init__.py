# SPDX-License-Identifier: Apache-2.0
"""Updates that lightning_recon did not make: a file format, its validator, and how real systems write it."""

from lightning_recon.capture.client import CapturedClient
from lightning_recon.capture.update_file import CapturedUpdate, Declared, load_captured, save_captured
from lightning_recon.capture.validator import name_arrays

__all__ = ["CapturedClient", "CapturedUpdate", "Declared", "load_captured", "name_arrays", "save_captured"]
