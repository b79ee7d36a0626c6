# SPDX-License-Identifier: Apache-2.0
"""What is claimed of a client's privacy, and what follows from it for the numbers that the client releases."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_recon.errors import UserError
from lightning_recon.exchange import NoiseShare
from lightning_recon.privacy.mechanism import Mechanism
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.ranges import COUNT, NOT_NEGATIVE, POSITIVE, check_choices, check_ranges

LossReduction = Literal["mean", "sum"]
Released = Literal["gradients", "state_dict"]


@dataclass(frozen=True)
class Claims:
    """What is claimed of a client.

    Args:
        privacy: clip, noise, rounds, delta and mechanism.
        batch_size: samples in a step: the expected batch size by which Opacus divides.
        loss_reduction: under granularity "sample", whether the client releases the "sum" of clipped gradients plus
            noise, or the "mean": the same divided by `batch_size`, as Opacus names it. Without meaning under "update".
        released: "gradients", or "state_dict": the weights after the step or the local training.
        learning_rate: of the single step of plain SGD behind a state dict under granularity "sample". Under "update"
            the change of the weights is clipped itself, and the rate only sets how large a gradient reaches the clip.
        aggregated: clients whose updates are added up, and whose number the noise may be divided by.
        noise_share: "local": the client adds all the noise of scale zC itself; "distributed": zC / sqrt(aggregated).
        epsilon: claimed epsilon of all rounds together; null: what the noise multiplier accounts to.

    Example:
        >>> import lightning_recon as lr
        >>> privacy = lr.Privacy(max_grad_norm=2.0, noise_multiplier=0.5, granularity="sample")
        >>> claims = lr.Claims(privacy, batch_size=32, loss_reduction="mean")
        >>> claims.noise_std, claims.update_factor
        (1.0, 32.0)
    """

    privacy: Privacy
    batch_size: int = 32
    loss_reduction: LossReduction = "mean"
    released: Released = "gradients"
    learning_rate: float = 1.0
    aggregated: int = 1
    noise_share: NoiseShare = "local"
    epsilon: float | None = None

    def __post_init__(self) -> None:
        """Refuse claims that no release can contradict, and what is not modelled."""
        flag = "--verify.claims."
        check_ranges(
            flag,
            batch_size=(self.batch_size, COUNT),
            learning_rate=(self.learning_rate, POSITIVE),
            aggregated=(self.aggregated, COUNT),
            epsilon=(self.epsilon, NOT_NEGATIVE),
        )
        check_choices(
            flag,
            loss_reduction=(self.loss_reduction, get_args(LossReduction)),
            released=(self.released, get_args(Released)),
            noise_share=(self.noise_share, get_args(NoiseShare)),
        )
        if self.privacy.max_grad_norm is None or self.privacy.noise_multiplier == 0:
            raise UserError(
                f"{flag}privacy claims no clip or no noise, so there is no privacy to verify: set max_grad_norm and "
                "noise_multiplier to what the client is said to do"
            )
        if self.privacy.noise_bands > 1 or self.privacy.adaptive_clip is not None:
            raise UserError(
                f"{flag}privacy has noise that is correlated over rounds or a clipping norm that adapts, and recon "
                "verify checks one clip with independent noise: set noise_bands to 1 and adaptive_clip to null"
            )

    @property
    def mechanism(self) -> Mechanism:
        """The mechanism of the noise."""
        return self.privacy.noise

    @property
    def max_grad_norm(self) -> float:
        """Clipping norm C: how far one sample, or one update, moves the release at most."""
        assert self.privacy.max_grad_norm is not None
        return self.privacy.max_grad_norm

    @property
    def own_noise_multiplier(self) -> float:
        """Scale of the noise that the client adds itself, divided by the clipping norm."""
        distributed = self.noise_share == "distributed"
        return self.privacy.noise_multiplier / (math.sqrt(self.aggregated) if distributed else 1.0)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise that the client adds itself, in the unit of `update_factor`."""
        return self.own_noise_multiplier * self.max_grad_norm * self.mechanism.noise_std

    @property
    def update_factor(self) -> float:
        """What a release, or a change of weights, is multiplied by to be the clipped sum or update plus its noise."""
        per_sample = self.privacy.granularity == "sample"
        factor = float(self.batch_size) if per_sample and self.loss_reduction == "mean" else 1.0
        if self.released == "state_dict":
            factor /= -self.learning_rate if per_sample else -1.0
        return factor

    def epsilon_of(self, noise_multiplier: float, rounds: int) -> float | None:
        """Epsilon that a noise multiplier of the sum accounts to; None without noise."""
        privacy = self.privacy
        return self.mechanism.epsilon(noise_multiplier, rounds, privacy.delta, privacy.adjacency)
