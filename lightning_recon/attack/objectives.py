# SPDX-License-Identifier: Apache-2.0
"""What refinement minimises: the channel's likelihood with priors, or the seed paper's leaked moments."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_recon.attack.priors import contrast_energy, local_contrast, total_variation
from lightning_recon.structure.guess import Posterior
from lightning_recon.structure.moments import moments
from lightning_recon.structure.transform import inverse_cosine, synthesise

# Weights of the squared deviations of mean, variance and total variation; beyond the limit the guess is kept.
_MOMENT_WEIGHTS = (1e6, 2e4, 1e-6)
_MOMENT_LIMIT = 1000.0


class ChannelLikelihood:
    """Negative log-posterior of pictures behind rows of known noise, in coordinates where it is nearly round.

    A dummy θ stands for the coefficients c = mean + std · θ of the decoded posterior, so θ = 0 is Wiener's estimate
    and one step length suits all frequencies. With the plain spectral prior the objective is ½‖θ‖² + const.
    """

    def __init__(
        self,
        posterior: Posterior,
        mean_image: Tensor,
        colour: Tensor,
        contrast_window: float,
        total_variation: float,
    ) -> None:
        """Prepare the objective of M pictures.

        Args:
            posterior: What the rows told.
            mean_image: Public mean image, shape (3, H, W).
            colour: Public colour axes, shape (3, 3).
            contrast_window: Window of the local contrast in pixels; 0 keeps the plain spectral prior.
            total_variation: Weight of total variation.
        """
        self.mean_image, self.colour = mean_image, colour
        self.contrast_window, self.total_variation = contrast_window, total_variation
        # In units of the prior's standard deviation √λ a coefficient is start + spread · θ.
        self.prior_std = posterior.prior_variance.sqrt()
        self.start = posterior.mean / self.prior_std
        self.spread = (posterior.variance / posterior.prior_variance).clamp(max=1).sqrt()
        self.certainty = 1 - self.spread**2

    def pictures(self, dummies: Tensor) -> Tensor:
        """Pictures of dummies of shape (M, 3, H, W), same shape, not clamped."""
        coefficients = self.prior_std * (self.start + self.spread * dummies)
        return synthesise(coefficients, self.mean_image, self.colour)

    def losses(self, dummies: Tensor) -> Tensor:
        """The objective of each picture, shape (M,), up to a constant; pictures do not influence one another."""
        # ½ (c − data)² / noise with 1 / noise = 1 / variance − 1 / λ: finite where nothing was observed.
        likelihood = (0.5 * self.certainty * dummies**2 - self.spread * self.start * dummies).sum(dim=(1, 2, 3))
        whitened = inverse_cosine(self.start + self.spread * dummies)
        contrast = torch.ones_like(whitened[:, :1])
        if self.contrast_window:
            contrast = local_contrast(whitened.detach(), self.certainty, self.contrast_window)
        losses = likelihood + contrast_energy(whitened, contrast)
        if self.total_variation:
            losses = losses + self.total_variation * total_variation(self.pictures(dummies))
        return losses


@dataclass(frozen=True)
class MomentMatching:
    """Distance between a picture's moments and the leaked ones; a dummy is a change of the initial picture.

    Args:
        initial: Decoded pictures, shape (M, 3, H, W).
        leaked: Their leaked moments, shape (M, 3, 3), see `structure.moments`.

    Source: You et al. (2025), released example: optional refinement.
    """

    initial: Tensor
    leaked: Tensor

    def pictures(self, dummies: Tensor) -> Tensor:
        """Pictures of dummies of shape (M, 3, H, W); where the moments stay too far off, the initial picture."""
        far = self.losses(dummies) > _MOMENT_LIMIT
        return self.initial + torch.where(far[:, None, None, None], 0.0, dummies)

    def losses(self, dummies: Tensor) -> Tensor:
        """The objective of each picture, shape (M,)."""
        weights = torch.tensor(_MOMENT_WEIGHTS, device=dummies.device)[:, None]
        return (weights * (moments(self.initial + dummies) - self.leaked) ** 2).sum(dim=(1, 2))
