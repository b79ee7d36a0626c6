# SPDX-License-Identifier: Apache-2.0
"""The simulated client: holds images, and answers the server with privatized updates only."""

from lightning_recon.client.client import VictimClient
from lightning_recon.client.local_options import LocalOptions
from lightning_recon.client.update import Release
from lightning_recon.privacy.parameters import Privacy

__all__ = ["LocalOptions", "Privacy", "Release", "VictimClient"]
