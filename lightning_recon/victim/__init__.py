# SPDX-License-Identifier: Apache-2.0
"""The client: has the pictures, answers the server with a privatised update and nothing else."""

from lightning_recon.victim.client import VictimClient
from lightning_recon.victim.privacy import Privacy
from lightning_recon.victim.release import Release

__all__ = ["Privacy", "Release", "VictimClient"]
