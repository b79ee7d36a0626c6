# SPDX-License-Identifier: Apache-2.0
"""A clipping norm that follows a quantile of the gradients' norms over rounds, and what that costs in noise.

Source: Andrew, Thakkar, McMahan and Ramaswamy, "Differentially Private Learning with Adaptive Clipping" (arXiv
1905.03871); Opacus has it as `AdaClipDPOptimizer`, whose names for these parameters are used here.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from lightning_recon.errors import UserError
from lightning_recon.files import schema
from lightning_recon.ranges import FRACTION, POSITIVE, check_ranges


@dataclass(frozen=True)
class AdaptiveClip:
    """How the server chooses the clipping norm of the next round, which it announces.

    In every round it also receives, with noise, how many of the gradients that are clipped were within the clipping
    norm: images under granularity "sample", clients under "update". `max_grad_norm` is that of the first round.

    Args:
        target_unclipped_quantile: share of gradients that should be within the clipping norm.
        clipbound_learning_rate: how fast the logarithm of the clipping norm moves.
        unclipped_num_std: standard deviation of the noise on their number; above half of the noise multiplier.
        min_clipbound: least clipping norm.
        max_clipbound: greatest clipping norm.
    """

    # Records are validated against these types when they are read from disk.
    __pydantic_config__: ClassVar[ConfigDict] = schema.STRICT

    target_unclipped_quantile: schema.Probability = 0.5
    clipbound_learning_rate: schema.Positive = 0.2
    unclipped_num_std: schema.Positive = 1.0
    min_clipbound: schema.Positive = 1e-6
    max_clipbound: schema.Positive = 1e6

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        check_ranges(
            "--model.client.privacy.adaptive_clip.",
            target_unclipped_quantile=(self.target_unclipped_quantile, FRACTION),
            clipbound_learning_rate=(self.clipbound_learning_rate, POSITIVE),
            unclipped_num_std=(self.unclipped_num_std, POSITIVE),
            min_clipbound=(self.min_clipbound, POSITIVE),
            max_clipbound=(self.max_clipbound, POSITIVE),
        )
        if self.min_clipbound >= self.max_clipbound:
            raise UserError(
                f"--model.client.privacy.adaptive_clip.min_clipbound is {self.min_clipbound:g}, which must be below "
                f"max_clipbound, {self.max_clipbound:g}"
            )

    @property
    def noise_limit(self) -> float:
        """Noise multiplier from which on the noise on the number costs more than everything together may."""
        return 2 * self.unclipped_num_std

    def next_clip(self, max_grad_norm: float, unclipped: float, count: int) -> float:
        """Clipping norm of the next round.

        Args:
            max_grad_norm: That of this round.
            unclipped: How many gradients were within it, with noise.
            count: How many there are, as announced.
        """
        step = -self.clipbound_learning_rate * (unclipped / count - self.target_unclipped_quantile)
        log_clip = math.log(max_grad_norm) + step
        return math.exp(min(max(log_clip, math.log(self.min_clipbound)), math.log(self.max_clipbound)))

    def update_multiplier(self, noise_multiplier: float) -> float:
        """Noise multiplier of the update that together with the noisy number costs what `noise_multiplier` alone would.

        Source: theorem 1 of the paper, for a number that one record changes by 1/2 after it was centred.
        """
        if noise_multiplier == 0:
            return 0.0
        return 1 / math.sqrt(noise_multiplier**-2 - self.noise_limit**-2)

    def check(self, noise_multiplier: float) -> None:
        """Refuse noise that would leave nothing for the update.

        Raises:
            UserError: The noise on the number costs more than everything together may.
        """
        if noise_multiplier >= self.noise_limit:
            raise UserError(
                f"--model.client.privacy.noise_multiplier is {noise_multiplier:g}, which must be below twice "
                f"--model.client.privacy.adaptive_clip.unclipped_num_std, {self.unclipped_num_std:g}: raise that"
            )
