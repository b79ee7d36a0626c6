# SPDX-License-Identifier: Apache-2.0
"""Gating by address: an image goes to the unit of the known image that it is, and to no other unit."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Names of the tensors of a payload; all of them, or none.
ADDRESSES = ("address_index", "address_mean", "address_precision", "address_evidence", "unit_gain")
# Standard deviations of an estimate's error are taken to be this many times as large as computed, so that an image is
# rather recognised by a mistaken estimate than taken for a new one.
_CAUTION = 2.0


@dataclass(frozen=True)
class AddressGate:
    """A classifier of images: which of A known images is it, or a new one?

    Each known image is a normal distribution of the coefficients F of those that all images have in common, and a new
    image is the public prior; the likeliest of them decides.

    Args:
        index: Which of the layer's inputs the gate compares, shape (F,).
        mean: Estimates of the known images, shape (A, F).
        precision: Inverse variance of each, shape (A + 1, F); the last row is that of the prior of mean 0.
        evidence: What is added to each logarithm of a likelihood ratio, shape (A,).
    """

    index: Tensor
    mean: Tensor
    precision: Tensor
    evidence: Tensor

    @classmethod
    def design(cls, index: Tensor, mean: Tensor, variance: Tensor, prior: Tensor) -> "AddressGate":
        """The gate of known images.

        Args:
            index: Which inputs the gate compares, shape (F,).
            mean: Estimates of the coefficients, shape (A, F).
            variance: Variances of their errors, shape (A, F).
            prior: Variance of the coefficients of any image, shape (F,).
        """
        cautious = (_CAUTION**2 * variance).minimum(prior)
        evidence = 0.5 * (prior / cautious).log().sum(dim=1)
        return cls(index, mean, 1 / torch.cat([cautious, prior[None]]), evidence)

    def tensors(self) -> dict[str, Tensor]:
        """What a payload holds of it."""
        return dict(zip(ADDRESSES[:4], (self.index, self.mean, self.precision, self.evidence), strict=True))

    def log_ratios(self, coefficients: Tensor) -> Tensor:
        """Logarithms of the likelihood ratios of every known image to a new one.

        Args:
            coefficients: Shape (B, F).

        Returns:
            Shape (B, A).
        """
        known, prior = self.precision[:-1], self.precision[-1]
        distance = ((coefficients[:, None] - self.mean).square() * known).sum(dim=2)
        return self.evidence + 0.5 * ((coefficients.square() * prior).sum(dim=1, keepdim=True) - distance)

    def excited(self, coefficients: Tensor, otherwise: Tensor) -> Tensor:
        """Which units images excite: that of their address alone, else those that an unknown image excites.

        Args:
            coefficients: Shape (B, F).
            otherwise: Which units they would excite as new images, shape (B, K), bool; the first A are those of the
                addresses.

        Returns:
            Shape (B, K), bool.
        """
        count = len(self.mean)
        if not count:
            return otherwise
        ratios = self.log_ratios(coefficients)
        likeliest = torch.arange(count, device=ratios.device) == ratios.argmax(dim=1, keepdim=True)
        here = likeliest & (ratios > 0)
        return torch.cat([here, otherwise[:, count:] & ~here.any(dim=1, keepdim=True)], dim=1)
