# SPDX-License-Identifier: Apache-2.0
"""Measure what a federated-learning server can reconstruct of clients' images despite clipping and noise."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_recon.api import (
        AttackResult,
        Claims,
        Privacy,
        gradient_of_step,
        invert_gradients,
        privatized_update,
        reconstruct,
        verify,
    )

__version__ = "0.1.0"
__all__ = [
    "AttackResult",
    "Claims",
    "Privacy",
    "gradient_of_step",
    "invert_gradients",
    "privatized_update",
    "reconstruct",
    "verify",
]


def __getattr__(name: str) -> object:
    """Import the public API on first use: the command line starts without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightning_recon import api

    return getattr(api, name)
