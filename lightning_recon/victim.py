# SPDX-License-Identifier: Apache-2.0
"""Deprecated: `lightning_recon.client` replaced this module."""

import warnings

from lightning_recon.client import Privacy, Release, VictimClient

__all__ = ["Privacy", "Release", "VictimClient"]

warnings.warn(
    "lightning_recon.victim is deprecated and will be removed in the next release: import from lightning_recon.client",
    FutureWarning,
    stacklevel=2,
)
