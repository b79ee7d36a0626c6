# SPDX-License-Identifier: Apache-2.0
"""Where refinement moves: to what row and denoiser agree on, or to the seed paper's leaked moments."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_recon.priors.dct import analyse, synthesise
from lightning_recon.priors.denoisers import Denoiser
from lightning_recon.structure.base import Posterior
from lightning_recon.structure.coding.leaked_moments import moments

# How far the present pictures may be off, as a share of the variance that decoding left; how this standard deviation,
# and the denoiser's, fall from step to step, so that refinement comes to rest.
_TRUST = 0.5
_DECAY = 0.5
# Denoisers are not made for errors of a grey level or two, nor for those as strong as the pictures: there their opinion
# counts for less.
_GREY_LEVEL, _HARDLY_A_PICTURE = 1.5 / 255, 38 / 255
_CHUNK = 16  # pictures denoised at a time
# Weights of the squared deviations of mean, variance and total variation; beyond the limit the guess is kept.
_MOMENT_WEIGHTS = (1e6, 2e4, 1e-6)
_MOMENT_LIMIT = 1000.0


class PlugAndPlay:
    """Half-quadratic splitting between the channel's likelihood and a denoiser, which knows what pictures look like.

    A dummy θ stands for the coefficients c = mean + std · θ of the decoded posterior: θ = 0 is Wiener's estimate. A
    step takes the present pictures for one more observation of every coefficient, as uncertain as the decoding left it
    times a trust that falls from step to step; moves to the most likely coefficients given it and the row; and
    denoises them.

    Source: Zhang et al. (2021), plug-and-play image restoration with deep denoiser prior; errors coloured like the
    posterior are ours.
    """

    def __init__(self, posterior: Posterior, mean_image: Tensor, colour: Tensor, denoiser: Denoiser) -> None:
        """Prepare the steps of M pictures.

        Args:
            posterior: What the rows told.
            mean_image: Public mean image, shape (3, H, W).
            colour: Public colour axes, shape (3, 3).
            denoiser: What pictures look like.
        """
        self.mean_image, self.colour, self.denoiser, self.decay = mean_image, colour, denoiser, _DECAY
        self.mean, self.std = posterior.mean, posterior.variance.sqrt()
        # Root of the mean squared error that decoding left, in pixel values: the transform is an isometry.
        self.sigma = posterior.variance.mean(dim=(1, 2, 3)).sqrt()
        # The row alone, without the spectral prior: ½ · certainty · θ² − pull · θ, finite where nothing was observed.
        certainty = 1 - (posterior.variance / posterior.prior_variance).clamp(max=1)
        self.certainty, self.pull = certainty, self.std * posterior.mean / posterior.prior_variance

    def pictures(self, dummies: Tensor) -> Tensor:
        """Pictures of dummies of shape (M, 3, H, W), same shape, not clamped."""
        return synthesise(self.mean + self.std * dummies, self.mean_image, self.colour)

    def fitted(self, dummies: Tensor, step: int) -> Tensor:
        """The minimiser of the row's misfit + ½‖θ − dummies‖² / trust, exactly: all coefficients are independent."""
        trust = self.trust(step)
        return (dummies + trust * self.pull) / (1 + trust * self.certainty)

    def trust(self, step: int) -> Tensor:
        """How uncertain the present pictures are, as a share of the decoding's variance, shape (M, 1, 1, 1)."""
        return _TRUST * self.decay ** (2 * step) * self._denoiser_weight(step)

    def _denoiser_weight(self, step: int) -> Tensor:
        """How much the denoiser's opinion counts, in [0, 1], shape (M, 1, 1, 1)."""
        sigma = self.sigma * self.decay**step
        fine = (sigma**2 / (sigma**2 + _GREY_LEVEL**2)) ** 2
        return (fine / (1 + (self.sigma / _HARDLY_A_PICTURE) ** 6))[:, None, None, None]

    @torch.no_grad()
    def stepped(self, dummies: Tensor, step: int) -> Tensor:
        """Where a step moves the dummies: fitted to the rows, then denoised."""
        noisy = self.pictures(self.fitted(dummies, step)).clamp(0, 1)
        sigma = self.sigma * self.decay**step
        chunks = zip(torch.split(noisy, _CHUNK), torch.split(sigma, _CHUNK), strict=True)
        clean = torch.cat([noisy[:0], *(self.denoiser(x, s) for x, s in chunks if len(x))])
        clean = torch.lerp(noisy, clean, self._denoiser_weight(step))
        return (analyse(clean, self.mean_image, self.colour) - self.mean) / self.std

    def losses(self, dummies: Tensor, step: int) -> Tensor:
        """Half the squared way to where the step leads, shape (M,): gradient descent with step 1 goes all of it."""
        return 0.5 * (dummies - self.stepped(dummies, step)).square().sum(dim=(1, 2, 3))


def refinement(objective: PlugAndPlay, steps: int) -> Iterator[Tensor]:
    """The pictures before the first step and after each, as `ReconstructionAttack` makes them by default.

    Args:
        objective: Of M pictures.
        steps: How many steps to take.

    Yields:
        Shape (M, 3, H, W), values in [0, 1]; `steps` + 1 of them.
    """
    dummies = torch.zeros_like(objective.mean)
    yield objective.pictures(dummies).clamp(0, 1)
    for step in range(steps):
        dummies = objective.stepped(dummies, step)
        yield objective.pictures(dummies).clamp(0, 1)


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
        far = self.losses(dummies, 0) > _MOMENT_LIMIT
        return self.initial + torch.where(far[:, None, None, None], 0.0, dummies)

    def losses(self, dummies: Tensor, step: int) -> Tensor:
        """The objective of each picture, shape (M,), the same at every step."""
        weights = torch.tensor(_MOMENT_WEIGHTS, device=dummies.device)[:, None]
        return (weights * (moments(self.initial + dummies) - self.leaked) ** 2).sum(dim=(1, 2))
