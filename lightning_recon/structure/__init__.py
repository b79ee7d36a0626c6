# SPDX-License-Identifier: Apache-2.0
"""The malicious server: what it adds to the model, and how it reads the answer."""

from lightning_recon.structure.base import Decoded, Structure
from lightning_recon.structure.curious_abandon_honesty import CuriousAbandonHonesty
from lightning_recon.structure.digital import Digital
from lightning_recon.structure.feedback import Feedback
from lightning_recon.structure.layer import InferenceStructure, build_layer
from lightning_recon.structure.layer_spec import LayerSpec
from lightning_recon.structure.robbing_the_fed import RobbingTheFed
from lightning_recon.structure.seed_paper import SeedPaper
from lightning_recon.structure.server_layer import ServerLayer, TamperedNetwork
from lightning_recon.structure.water_filling import WaterFilling

__all__ = [
    "CuriousAbandonHonesty",
    "Decoded",
    "Digital",
    "Feedback",
    "InferenceStructure",
    "LayerSpec",
    "RobbingTheFed",
    "SeedPaper",
    "ServerLayer",
    "Structure",
    "TamperedNetwork",
    "WaterFilling",
    "build_layer",
]
