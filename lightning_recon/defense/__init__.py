# SPDX-License-Identifier: Apache-2.0
"""What a careful client can find out about a received model before it answers."""

from lightning_recon.defense.inspection import THRESHOLDS, Finding, inspect_model

__all__ = ["THRESHOLDS", "Finding", "inspect_model"]
