# SPDX-License-Identifier: Apache-2.0
"""The attack: what the server does with an update, and nothing that it could not know."""

from lightning_recon.attack.base import Attack
from lightning_recon.attack.inversion.batched_lbfgs import BatchedLBFGS
from lightning_recon.attack.inversion.gradient_inversion import GradientInversion
from lightning_recon.attack.malicious_server import ReconstructionAttack
from lightning_recon.priors.denoisers import Denoiser, TotalVariation
from lightning_recon.priors.unet_denoiser import LargeDenoiser, SmallDenoiser
from lightning_recon.reconstruction import Reconstruction

__all__ = [
    "Attack",
    "BatchedLBFGS",
    "Denoiser",
    "GradientInversion",
    "LargeDenoiser",
    "Reconstruction",
    "ReconstructionAttack",
    "SmallDenoiser",
    "TotalVariation",
]
