# SPDX-License-Identifier: Apache-2.0
"""The attack: what the server does with an update, and nothing that it could not know."""

from lightning_recon.attack.denoiser import SmallDenoiser
from lightning_recon.attack.denoising import Denoiser, TotalVariation
from lightning_recon.attack.inversion import GradientInversion
from lightning_recon.attack.quasi_newton import QuasiNewton
from lightning_recon.attack.reconstruction import ReconstructionAttack
from lightning_recon.attack.server import Reconstruction, Server

__all__ = [
    "Denoiser",
    "GradientInversion",
    "QuasiNewton",
    "Reconstruction",
    "ReconstructionAttack",
    "Server",
    "SmallDenoiser",
    "TotalVariation",
]
