# SPDX-License-Identifier: Apache-2.0
"""One estimate for each address: images that the server recognises whenever they are in a round's batch."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lightning_recon.structure.refinement import Posterior

# Factors by which the true remaining variance may differ from the computed one, their log-prior, and the decay of
# evidence from look to look.
MISMATCH = torch.logspace(-1, 1, 41)
LOG_PRIOR = -(MISMATCH.log() ** 2) / (2 * 0.5**2)
MEMORY = 0.97
# A coefficient whose variance fell to this share of its prior counts as known.
EXACT = 1e-10
# The announced rate of an image counts as much as this many rounds that were observed.
_PRIOR_ROUNDS = 4.0


@dataclass(frozen=True)
class AddressBook:
    """The server's knowledge of A images of one client, n coefficients each.

    Args:
        mean: Posterior mean, shape (A, n).
        variance: Posterior variance, without the correction by `belief`, shape (A, n).
        prior_variance: The variance before the first look, shape (A, n).
        gain: Encoder gains for the next look, shape (A, n).
        scales: Signed scale of each image's row at unit energy, shape (A,).
        belief: Log-evidence for each factor of `MISMATCH` by which the variance may be mistaken, shape (A, factors).
        rounds_seen: Expected number of rounds, after the first, that each image was in, shape (A,).
        since: Number of rounds after the first one, shape (A,).
        first: Index of the round in which each image was seen first, shape (A,).
    """

    mean: Tensor
    variance: Tensor
    prior_variance: Tensor
    gain: Tensor
    scales: Tensor
    belief: Tensor
    rounds_seen: Tensor
    since: Tensor
    first: Tensor

    @classmethod
    def empty(cls, coefficients: int) -> "AddressBook":
        """No address yet."""
        none = torch.zeros(0)
        whole = torch.zeros(0, coefficients)
        return cls(whole, whole, whole, whole, none, torch.zeros(0, len(MISMATCH)), none, none, none)

    def __len__(self) -> int:
        """Number of addresses, A."""
        return len(self.mean)

    def with_images(self, found: Posterior, gain: Tensor, scales: Tensor, number: int) -> "AddressBook":
        """The book with images that were seen for the first time in the latest round.

        Args:
            found: Their posterior.
            gain: Encoder gains for their next look, shape (new, n).
            scales: The signed scales of their rows.
            number: Index of that round.
        """
        count = len(scales)
        new = AddressBook(
            mean=found.mean.flatten(1),
            variance=found.variance.flatten(1),
            prior_variance=found.prior_variance.flatten(1),
            gain=gain,
            scales=scales,
            belief=LOG_PRIOR.repeat(count, 1),
            rounds_seen=torch.zeros(count),
            since=torch.zeros(count),
            first=torch.full((count,), float(number)),
        )
        return AddressBook(*(torch.cat([getattr(self, one.name), getattr(new, one.name)]) for one in fields(self)))

    def chosen(self, places: Tensor) -> "AddressBook":
        """The addresses of these places, in their order."""
        return AddressBook(*(getattr(self, one.name)[places] for one in fields(self)))

    def presence(self, rate: float) -> Tensor:
        """Probability that each image is in the next batch, shape (A,), from how often it was in the last ones.

        Args:
            rate: What is announced.
        """
        return (self.rounds_seen + _PRIOR_ROUNDS * rate) / (self.since + _PRIOR_ROUNDS)
