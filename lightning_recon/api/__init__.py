# SPDX-License-Identifier: Apache-2.0
"""The public Python API: attack a batch or a gradient without a Trainer, files or YAML."""

from lightning_recon.api.honest_server import gradient_of_step, invert_gradients
from lightning_recon.api.malicious_server import privatized_update, reconstruct
from lightning_recon.api.result import AttackResult
from lightning_recon.api.verification import verify
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.verification.claims import Claims

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
