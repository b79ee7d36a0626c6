# SPDX-License-Identifier: Apache-2.0
"""The malicious server: what it adds to the model, and how it reads the answer."""

from lightning_recon.structure.digital import Digital
from lightning_recon.structure.feedback import Feedback
from lightning_recon.structure.guess import Guess, Structure
from lightning_recon.structure.inference import InferenceStructure, TamperedNetwork
from lightning_recon.structure.robbing_the_fed import RobbingTheFed
from lightning_recon.structure.seed_paper import SeedPaper
from lightning_recon.structure.trap_weights import TrapWeights
from lightning_recon.structure.water_filling import WaterFilling

__all__ = [
    "Digital",
    "Feedback",
    "Guess",
    "InferenceStructure",
    "RobbingTheFed",
    "SeedPaper",
    "Structure",
    "TamperedNetwork",
    "TrapWeights",
    "WaterFilling",
]
