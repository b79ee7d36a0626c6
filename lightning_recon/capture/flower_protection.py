# SPDX-License-Identifier: Apache-2.0
"""What of a client's update reaches a Flower server, by the mod or the strategy that protects it.

Read in the source of flwr 1.41 and 1.42. `LocalDpMod` clips and adds noise on the client. The strategies for central
differential privacy add their noise to the aggregate, on the server: under `DifferentialPrivacyClientSide...Clipping`
the server gets clipped updates without noise, under `DifferentialPrivacyServerSide...Clipping` it gets them as the
clients trained them. Their guarantee is against those who see the aggregate alone. `adaptiveclipping_mod` also tells
the server, in the clear, whether the update's norm is below the clipping norm.
"""

import math
from dataclasses import dataclass

from lightning_recon.capture.flower_ldp import declared_privacy
from lightning_recon.capture.update_file import Declared
from lightning_recon.errors import UserError
from lightning_recon.privacy.parameters import Privacy

try:
    from flwr.clientapp.mod import LocalDpMod
    from flwr.serverapp.strategy import (
        DifferentialPrivacyClientSideAdaptiveClipping,
        DifferentialPrivacyClientSideFixedClipping,
        DifferentialPrivacyServerSideAdaptiveClipping,
        DifferentialPrivacyServerSideFixedClipping,
    )
except ImportError as error:
    raise UserError("auditing a Flower app needs flwr: pip install 'lightning_recon[flower]'") from error

ClientClipping = DifferentialPrivacyClientSideFixedClipping | DifferentialPrivacyClientSideAdaptiveClipping
ServerClipping = DifferentialPrivacyServerSideFixedClipping | DifferentialPrivacyServerSideAdaptiveClipping
Protection = LocalDpMod | ClientClipping | ServerClipping | Privacy | None


@dataclass(frozen=True)
class Protected:
    """How an update is protected when it reaches the server.

    Args:
        name: of the mod or the strategy.
        clipping_norm: of the change of all arrays; None: nothing is clipped.
        noise_std: standard deviation of the noise on every number of it.
        declared: the privacy that the app declares of one round.
    """

    name: str
    clipping_norm: float | None
    noise_std: float = 0.0
    declared: Declared | None = None

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise divided by the clipping norm; 0 without one."""
        return 0.0 if self.clipping_norm is None else self.noise_std / self.clipping_norm

    def bound(self, values: int, clients: int, rounding: float = 0.0) -> float:
        """The largest norm of a sum of so many clients' updates that noise allows, on average.

        Args:
            values: numbers of an update.
            clients: clients in the sum.
            rounding: standard deviation of further noise, from rounding.
        """
        if self.clipping_norm is None:
            return math.inf
        noise = math.hypot(self.noise_std * math.sqrt(clients), rounding)
        return clients * self.clipping_norm + noise * math.sqrt(values)


def protected_by(protection: Protection, rounds: int = 1) -> Protected:
    """What protects the updates of an app.

    Args:
        protection: the app's LocalDpMod; its strategy for central differential privacy; a `Privacy` that describes a
            mod of its own; None: nothing.
        rounds: number of updates of each client.

    Raises:
        UserError: the protection cannot be described.
    """
    if protection is None:
        return Protected("no mod", None)
    if isinstance(protection, LocalDpMod):
        mod = protection
        found = declared_privacy(mod.clipping_norm, mod.sensitivity, mod.epsilon, mod.delta)
        declared = Declared(epsilon=mod.epsilon, delta=mod.delta, sensitivity=mod.sensitivity)
        return Protected("LocalDpMod", mod.clipping_norm, found.noise_std, declared)
    if isinstance(protection, Privacy):
        plain = protection.mechanism == "gaussian" and not (protection.per_layer or protection.adaptive_clip)
        if protection.granularity != "update" or not plain or protection.noise_bands > 1:
            raise UserError(
                "a mod changes a client's whole update: describe it by a Privacy of granularity update, with one "
                "constant clipping norm and independent Gaussian noise"
            )
        return Protected("a mod of the app", protection.max_grad_norm, protection.noise_std)
    if isinstance(protection, ClientClipping):
        if isinstance(protection, DifferentialPrivacyClientSideAdaptiveClipping) and rounds > 1:
            raise UserError("its clipping norm adapts from round to round, and one is announced: audit a single round")
        return Protected(type(protection).__name__, float(protection.clipping_norm))
    if isinstance(protection, ServerClipping):
        return Protected(type(protection).__name__, None)
    raise UserError(
        f"{type(protection).__name__} is no protection that FlowerAudit knows: describe what it does to an update by a "
        "lightning_recon.Privacy"
    )
