# SPDX-License-Identifier: Apache-2.0
"""The careful client: what it can find out about the model that it was shipped, before it answers."""

from lightning_recon.defense.inspection import THRESHOLDS, Finding, inspect_model

__all__ = ["THRESHOLDS", "Finding", "inspect_model"]
