# SPDX-License-Identifier: Apache-2.0
"""Names of earlier versions that still work for one release, with the names that replaced them."""

from typing import Final

# Import paths in configs, old to new.
CLASS_PATHS: Final = {
    "lightning_recon.victim.VictimClient": "lightning_recon.client.VictimClient",
    "lightning_recon.victim.Privacy": "lightning_recon.client.Privacy",
    "lightning_recon.victim.Release": "lightning_recon.client.Release",
    "lightning_recon.attack.QuasiNewton": "lightning_recon.attack.BatchedLBFGS",
    "lightning_recon.attack.reconstruction.whole_way": "lightning_recon.attack.malicious_server.whole_way",
}
# Config keys and options by the class that takes them, old to new.
KEYS: Final[dict[str, dict[str, str]]] = {}
# Values of options by class and (new) key, old to new.
VALUES: Final[dict[str, dict[str, dict[str, str]]]] = {}
