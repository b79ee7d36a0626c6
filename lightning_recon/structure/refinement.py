# SPDX-License-Identifier: Apache-2.0
"""Refinement of decoded images: plug-and-play with a denoiser, or matching of the seed paper's leaked moments."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, Self

import torch
from torch import Tensor

from lightning_recon.priors.dct import Transform
from lightning_recon.priors.denoisers import Denoiser
from lightning_recon.structure.coding.leaked_moments import moments

# Uncertainty of the present images, as a share of the variance that decoding left; and the factor by which this
# standard deviation, and the denoiser's, shrink from step to step, so that refinement converges.
_TRUST = 0.5
_DECAY = 0.5
# Denoisers are not trained for errors of a grey level or two, nor for errors as large as the images themselves: there
# the denoised image gets a smaller weight. A denoiser that was trained for larger errors has a `largest_sigma`.
_GREY_LEVEL, _AS_LARGE_AS_IMAGES = 1.5 / 255, 38 / 255
# Images whose denoised version gets less weight stay as they are.
_NEGLIGIBLE = 1e-6
_CHUNK = 16  # images denoised at a time
_CPU_CHUNK = 2**16  # pixels of the images that a processor denoises at a time: more leave its caches
# Weights of the squared deviations of mean, variance and total variation; above the limit the decoded image is kept.
_MOMENT_WEIGHTS = (1e6, 2e4, 1e-6)
_MOMENT_LIMIT = 1000.0


class Objective(Protocol):
    """The objective of refinement over the dummies θ of M images, shape (M, C, H, W), which start at 0."""

    needs_optimizer: bool  # whether gradient descent with step size 1 is not enough

    def images(self, dummies: Tensor) -> Tensor:
        """Images of dummies, both of shape (M, C, H, W), not clamped."""
        ...

    def losses(self, dummies: Tensor, step: int) -> Tensor:
        """The objective of each image at a step, shape (M,)."""
        ...

    def iterates(self, steps: int) -> Iterator[Tensor]:
        """Images before the first step and after each step that needs no optimiser, in [0, 1]."""
        ...


@dataclass(frozen=True)
class Refinement(ABC):
    """The input of refinement: tensors with one entry for each decoded image."""

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The images of several updates together."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    @abstractmethod
    def objective(self, initial: Tensor, transform: Transform, denoiser: Denoiser) -> Objective:
        """The objective of refining these images.

        Args:
            initial: The decoded images, shape (M, C, H, W).
            transform: Between images and coefficients.
            denoiser: Prior of images.
        """


@dataclass(frozen=True)
class Posterior(Refinement):
    """Gaussian posterior of images, in the coefficients of a `Transform`.

    Args:
        mean: Shape (M, C, H, W).
        variance: Shape (M, C, H, W), positive.
        prior_variance: Shape (M, C, H, W): the variance before the update arrived.
        prior_mean: Shape (M, C, H, W): the mean before the update arrived; 0 where images are as announced.
    """

    mean: Tensor
    variance: Tensor
    prior_variance: Tensor
    prior_mean: Tensor

    def objective(self, initial: Tensor, transform: Transform, denoiser: Denoiser) -> "PlugAndPlay":
        """Plug-and-play from the posterior mean, which the decoded images show."""
        return PlugAndPlay(self, transform, denoiser)


@dataclass(frozen=True)
class LeakedMoments(Refinement):
    """Mean, variance and total variation of each channel, leaked beside the pixels.

    Args:
        values: Shape (M, 3, 3), see `leaked_moments.moments`.
    """

    values: Tensor

    def objective(self, initial: Tensor, transform: Transform, denoiser: Denoiser) -> "MomentMatching":
        """Match the leaked moments from the decoded images; neither transform nor denoiser is used."""
        return MomentMatching(initial, self.values)


def _denoised_at_once(images: Tensor) -> int:
    """How many images of shape (M, 3, H, W) a denoiser gets in one call."""
    return min(_CHUNK, max(1, _CPU_CHUNK // images.shape[-2:].numel())) if images.is_cpu else _CHUNK


class PlugAndPlay:
    """Half-quadratic splitting between the channel's likelihood and a denoiser as the prior of images.

    A dummy θ stands for the coefficients c = mean + std · θ of the decoded posterior: θ = 0 is Wiener's estimate. A
    step takes the present images for one more observation of every coefficient, as uncertain as decoding left it
    times a trust that falls from step to step; moves to the most likely coefficients given it and the row; and
    denoises them.

    Source: Zhang et al. (2021), plug-and-play image restoration with deep denoiser prior; errors coloured like the
    posterior are ours.
    """

    needs_optimizer = False

    def __init__(self, posterior: Posterior, transform: Transform, denoiser: Denoiser) -> None:
        """Prepare the steps of M images.

        Args:
            posterior: What decoding found.
            transform: Between images and coefficients.
            denoiser: Prior of images.
        """
        self.transform, self.denoiser, self.decay = transform, denoiser, _DECAY
        self.largest_sigma = float(getattr(denoiser, "largest_sigma", _AS_LARGE_AS_IMAGES))
        self.mean, self.std = posterior.mean, posterior.variance.sqrt()
        # Root of the mean squared error that decoding left, in pixel values: the transform is an isometry.
        self.sigma = posterior.variance.mean(dim=(1, 2, 3)).sqrt()
        # The row alone, without the spectral prior: ½ · certainty · θ² − pull · θ, finite where nothing was observed.
        certainty = 1 - (posterior.variance / posterior.prior_variance).clamp(max=1)
        moved = posterior.mean - posterior.prior_mean
        self.certainty, self.pull = certainty, self.std * moved / posterior.prior_variance

    def images(self, dummies: Tensor) -> Tensor:
        """Images of dummies of shape (M, C, H, W), same shape, not clamped."""
        return self.transform.synthesise(self.mean + self.std * dummies)

    def fitted(self, dummies: Tensor, step: int) -> Tensor:
        """The minimiser of the row's misfit + ½‖θ − dummies‖² / trust, in closed form: coefficients are independent."""
        trust = self.trust(step)
        return (dummies + trust * self.pull) / (1 + trust * self.certainty)

    def trust(self, step: int) -> Tensor:
        """Uncertainty of the present images, as a share of the decoding's variance, shape (M, 1, 1, 1)."""
        return _TRUST * self.decay ** (2 * step) * self._denoiser_weight(step)

    def _denoiser_weight(self, step: int) -> Tensor:
        """Weight of the denoised image, in [0, 1], shape (M, 1, 1, 1)."""
        sigma = self.sigma * self.decay**step
        fine = (sigma**2 / (sigma**2 + _GREY_LEVEL**2)) ** 2
        return (fine / (1 + (self.sigma / self.largest_sigma) ** 6))[:, None, None, None]

    @torch.no_grad()
    def stepped(self, dummies: Tensor, step: int) -> Tensor:
        """The dummies after a step: fitted to the rows, then denoised."""
        noisy = self.images(self.fitted(dummies, step)).clamp(0, 1)
        sigma = self.sigma * self.decay**step
        at_once = _denoised_at_once(noisy)
        chunks = zip(torch.split(noisy, at_once), torch.split(sigma, at_once), strict=True)
        clean = torch.cat([noisy[:0], *(self.denoiser(x, s) for x, s in chunks if len(x))])
        weight = self._denoiser_weight(step)
        clean = torch.lerp(noisy, clean, weight)
        moved = (self.transform.analyse(clean) - self.mean) / self.std
        # Elsewhere a step would only add the rounding of the transform.
        return torch.where(weight > _NEGLIGIBLE, moved, dummies)

    def losses(self, dummies: Tensor, step: int) -> Tensor:
        """Half the squared distance to where the step leads, shape (M,): gradient descent of step size 1 goes there."""
        return 0.5 * (dummies - self.stepped(dummies, step)).square().sum(dim=(1, 2, 3))

    def iterates(self, steps: int) -> Iterator[Tensor]:
        """Images before the first step and after each, as `ReconstructionAttack` makes them by default.

        Args:
            steps: How many steps to take.

        Yields:
            Shape (M, C, H, W), values in [0, 1]; `steps` + 1 of them.
        """
        dummies = torch.zeros_like(self.mean)
        yield self.images(dummies).clamp(0, 1)
        for step in range(steps):
            dummies = self.stepped(dummies, step)
            yield self.images(dummies).clamp(0, 1)


@dataclass(frozen=True)
class MomentMatching:
    """Distance between an image's moments and the leaked ones; a dummy is a change of the decoded image.

    Args:
        initial: Decoded images, shape (M, C, H, W).
        leaked: Their leaked moments, shape (M, 3, 3), see `leaked_moments.moments`.

    Source: You et al. (2025), released example: optional refinement.
    """

    initial: Tensor
    leaked: Tensor
    needs_optimizer = True

    def images(self, dummies: Tensor) -> Tensor:
        """Images of dummies of shape (M, C, H, W); where the moments stay too far off, the decoded image."""
        far = self.losses(dummies, 0) > _MOMENT_LIMIT
        return self.initial + torch.where(far[:, None, None, None], 0.0, dummies)

    def losses(self, dummies: Tensor, step: int) -> Tensor:
        """The objective of each image, shape (M,), the same at every step."""
        # Filled on the device: a tensor made from numbers would be copied there in every step.
        weights = torch.cat([dummies.new_full((1, 1), weight) for weight in _MOMENT_WEIGHTS])
        return (weights * (moments(self.initial + dummies) - self.leaked) ** 2).sum(dim=(1, 2))

    def iterates(self, steps: int) -> Iterator[Tensor]:
        """The decoded images alone: every step needs an optimiser."""
        yield self.initial
