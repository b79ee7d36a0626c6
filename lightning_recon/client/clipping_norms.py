# SPDX-License-Identifier: Apache-2.0
"""The clipping norm of every round, where it follows a quantile of the gradients' norms."""

from collections.abc import Sequence
from typing import Self

from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.errors import UserError
from lightning_recon.exchange import NoiseShare, summed_noise
from lightning_recon.privacy.adaptive_clipping import AdaptiveClip
from lightning_recon.privacy.parameters import Privacy


class ClippingNorms:
    """Clipping norms of all rounds so far, for each update that the server receives and each noise draw."""

    def __init__(self, adaptive: AdaptiveClip, first: float, std: float, noise_source: NoiseSource) -> None:
        """Begin with the first round's.

        Args:
            adaptive: how the next follows.
            first: the clipping norm of the first round.
            std: standard deviation of the noise on the number of unclipped gradients that the server receives.
            noise_source: where this noise comes from.
        """
        self.adaptive, self.first, self.std, self.noise_source = adaptive, first, std, noise_source
        self._norms: dict[tuple[int, int], list[float]] = {}

    @classmethod
    def begin(cls, privacy: Privacy, clients: int, noise_share: NoiseShare, noise_source: NoiseSource) -> Self | None:
        """The clipping norms of a run that begins; None if they do not change.

        Args:
            privacy: of the clients.
            clients: whose updates are summed.
            noise_share: of each of them.
            noise_source: key of the noise.
        """
        adaptive = privacy.adaptive_clip
        if adaptive is None or privacy.max_grad_norm is None:
            return None
        std = summed_noise(adaptive.unclipped_num_std, clients, noise_share)
        return cls(adaptive, privacy.max_grad_norm, std, noise_source)

    def of(self, client: int, draw: int, round: int) -> float:
        """The clipping norm of a round.

        Raises:
            UserError: the round before it has not been answered.
        """
        known = self._norms.setdefault((client, draw), [self.first])
        if round >= len(known):
            raise UserError(
                f"round {round} was asked for before round {len(known) - 1}: its clipping norm follows from that round"
            )
        return known[round]

    def follow(self, client: int, draw: int, round: int, norms: Sequence[float], expected: int) -> None:
        """Set the clipping norm of the next round, unless it is known.

        Args:
            client: index of the client, or of the group of clients.
            draw: index of the noise realization.
            round: the round that was answered.
            norms: norms of its gradients before the clip.
            expected: how many gradients were announced. Random batches may have more or fewer, and a quotient by their
                own number would show it.
        """
        known, clip = self._norms[client, draw], self.of(client, draw, round)
        if round + 1 == len(known):
            noise = self.noise_source.generator("unclipped", client, draw, round).normal(0.0, self.std)
            # A gradient counts 1/2 or -1/2, so that one more or less moves the sum by no more than that.
            centred = sum(0.5 if norm <= clip else -0.5 for norm in norms) + noise
            known.append(self.adaptive.next_clip(clip, centred + expected / 2, expected))
