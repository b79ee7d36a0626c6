# SPDX-License-Identifier: Apache-2.0
"""The privacy parameters of a client, in one dataclass."""

import math
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, get_args

from lightning_recon.errors import UserError
from lightning_recon.privacy.adaptive_clipping import AdaptiveClip
from lightning_recon.privacy.clipping import Clip
from lightning_recon.privacy.correlated_noise import noise_coefficients
from lightning_recon.privacy.gaussian import Gaussian
from lightning_recon.privacy.integer_noise import DiscreteGaussian, Skellam
from lightning_recon.privacy.laplace import Laplace
from lightning_recon.privacy.mechanism import ADJACENCIES, Adjacency, Mechanism
from lightning_recon.ranges import CLIP, COUNT, NOT_NEGATIVE, PROBABILITY, check_choices, check_ranges

Granularity = Literal["sample", "update"]

_BUILT_IN: tuple[Mechanism, ...] = (Gaussian(), Laplace(), DiscreteGaussian(), Skellam())
_REQUIRED = ("name", "norm_order", "noise_std", "accountant")  # attributes that a mechanism of one's own must have


@dataclass(frozen=True)
class Privacy:
    """How a client protects its update.

    Parameter names follow Opacus.

    Args:
        max_grad_norm: clipping norm C, above 0, over all parameters: Euclidean for the Gaussian mechanism, L1 for the
            Laplace mechanism; null: nothing is clipped (as a flag write .inf, which means the same).
        noise_multiplier: scale of the noise divided by C (z), at least 0; the only number that sets the noise. For the
            Gaussian mechanism it is the standard deviation divided by C, for the Laplace mechanism b/C.
        granularity: what is clipped: "sample", each image's gradient before the sum (DP-SGD), or "update", the
            gradient of the batch's mean loss once (local DP as federated learning uses it).
        per_layer: clip each of the L parameter tensors on its own, instead of all together: to C/sqrt(L), or to C/L of
            the L1 norm.
        rounds: how many updates each client gives (T), at least 1.
        delta: delta at which epsilon is accounted, between 0 and 1; it does not change the noise.
        adjacency: neighbouring data sets of the accounting: a record is added or removed, or replaced by another.
        mechanism: "gaussian", "laplace", "skellam" or "discrete_gaussian" (whole numbers of steps, which need
            `quantization`), or the class path of a `privacy.mechanism.Mechanism`.
        noise_bands: 1: the noise of every round is independent. More: each round takes back a part of the noise of so
            many rounds less one before it, as in DP-FTRL (banded matrix mechanism); only Gaussian noise. z is then
            that of the independent numbers that the noise is made of, see `privacy.correlated_noise`.
        adaptive_clip: how the clipping norm of each round after the first follows from the rounds before it; null: it
            stays. z then pays for the noise on the number of unclipped gradients too.

    Example:
        >>> import lightning_recon as lr
        >>> lr.Privacy(max_grad_norm=10.0, noise_multiplier=2e-4).noise_std
        0.002
    """

    max_grad_norm: float | None = 1.0
    noise_multiplier: float = 0.0
    granularity: Granularity = "update"
    per_layer: bool = False
    rounds: int = 1
    delta: float = 1e-5
    adjacency: Adjacency = "add_remove"
    mechanism: str = "gaussian"
    noise_bands: int = 1
    adaptive_clip: AdaptiveClip | None = None

    def __post_init__(self) -> None:
        """Refuse what protects nothing or cannot be computed."""
        flag = "--model.client.privacy."
        if self.max_grad_norm == math.inf:
            object.__setattr__(self, "max_grad_norm", None)
        check_ranges(
            flag,
            noise_multiplier=(self.noise_multiplier, NOT_NEGATIVE),
            max_grad_norm=(self.max_grad_norm, CLIP),
            rounds=(self.rounds, COUNT),
            noise_bands=(self.noise_bands, COUNT),
            delta=(self.delta, PROBABILITY),
        )
        check_choices(
            flag,
            granularity=(self.granularity, get_args(Granularity)),
            adjacency=(self.adjacency, ADJACENCIES),
        )
        if not isinstance(self.per_layer, bool):
            raise UserError(f"{flag}per_layer is {self.per_layer!r}: give true or false")
        if self.max_grad_norm is None and self.noise_multiplier > 0:
            raise UserError(
                f"{flag}noise_multiplier is {self.noise_multiplier} but {flag}max_grad_norm sets no bound, and noise "
                "without a clip protects nothing: set max_grad_norm, or noise_multiplier to 0"
            )
        gaussian = isinstance(mechanism_named(self.mechanism, imported=False), Gaussian)
        if self.noise_bands > 1 and not gaussian:
            raise UserError(
                f"{flag}noise_bands is {self.noise_bands}, but noise that is correlated over rounds is Gaussian, not "
                f"{self.mechanism}: set it to 1, or {flag}mechanism gaussian"
            )
        if self.adaptive_clip is not None:
            if self.max_grad_norm is None or not gaussian:
                raise UserError(
                    f"{flag}adaptive_clip follows from a first clipping norm and is accounted for Gaussian noise: give "
                    f"{flag}max_grad_norm and {flag}mechanism gaussian, or leave it out"
                )
            if self.per_layer:
                raise UserError(
                    f"{flag}adaptive_clip follows the norm of a whole gradient, {flag}per_layer bounds that of each "
                    "tensor: leave one of them out"
                )
            self.adaptive_clip.check(self.noise_multiplier)

    @property
    def noise(self) -> Mechanism:
        """The mechanism itself."""
        return mechanism_named(self.mechanism)

    @property
    def clip(self) -> Clip:
        """The bound on the norm of a sample's gradient, or of an update."""
        return Clip(self.max_grad_norm, self.per_layer, self.noise.norm_order)

    @property
    def noise_scale(self) -> float:
        """Scale of the noise on every released number, zC."""
        return self.noise_multiplier * (self.max_grad_norm or 0.0)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on every released number; of correlated noise that of late rounds."""
        return (
            self.noise_scale
            * self.noise.noise_std
            * math.hypot(*noise_coefficients(min(self.noise_bands, self.rounds)))
        )


def mechanism_named(name: str, imported: bool = True) -> Mechanism:
    """Find a mechanism.

    Args:
        name: "gaussian", "laplace", or a class path.
        imported: whether the module of a class path must have been imported before. A record that is read from disk
            names a mechanism, too, and must not make the program import code.

    Raises:
        UserError: no such mechanism, or its module has not been imported.
    """
    if not isinstance(name, str):
        raise UserError(f"the mechanism is {name!r}: give its name or class path, a text")
    for known in _BUILT_IN:
        if name == known.name:
            return known
    module, _, attribute = name.rpartition(".")
    names = ", ".join(known.name for known in _BUILT_IN)
    if not module:
        raise UserError(f"unknown mechanism {name!r}: choose one of {names}, or give a class path")
    if imported and module not in sys.modules:
        raise UserError(
            f"the mechanism {name!r} is none of {names}, and records never import code: name it in the config, as "
            "--model.client.privacy.mechanism, or replay with --trust_config true"
        )
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, TypeError) as error:  # TypeError: of names such as "..x"
        raise UserError(f"the mechanism {name!r} cannot be imported ({error}): check the class path") from error
    if not (isinstance(found, type) and issubclass(found, Mechanism)):
        raise UserError(f"{name} is no lightning_recon.privacy.mechanism.Mechanism: derive the class from it")
    if lacking := [attribute for attribute in _REQUIRED if not hasattr(found, attribute)]:
        raise UserError(
            f"the mechanism {name} defines no {lacking[0]}: see lightning_recon.privacy.mechanism.Mechanism"
        )
    try:
        return found()
    except TypeError as error:
        raise UserError(f"the mechanism {name} cannot be created without arguments ({error})") from error
