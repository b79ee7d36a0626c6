# SPDX-License-Identifier: Apache-2.0
"""The client: has the pictures, answers the server with a privatised update and nothing else."""

from lightning_recon.client.client import VictimClient
from lightning_recon.client.update import Release
from lightning_recon.privacy.parameters import Privacy

__all__ = ["Privacy", "Release", "VictimClient"]
