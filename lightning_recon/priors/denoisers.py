# SPDX-License-Identifier: Apache-2.0
"""Denoisers: the interface, and total variation."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recon.priors.base import Prior
from lightning_recon.ranges import COUNT, check_ranges

# Weight of total variation that suits noise of standard deviation 1, and the size of one step on its dual.
_WEIGHT = 0.7
_DUAL_STEP = 0.125
_SMOOTHING = 1e-8


class Denoiser(Protocol):
    """Removes white Gaussian noise of known standard deviation from images.

    An attribute `largest_sigma` may tell the standard deviation of errors at which the refinement gives the denoised
    image half the weight that it gives where errors are smaller. It is 38/255 for denoisers that do not tell.
    """

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Remove noise.

        Args:
            x: Noisy images, shape (M, C, H, W), values in [0, 1].
            sigma: Standard deviation of each image's noise, shape (M,).

        Returns:
            The images, same shape.
        """
        ...


class TotalVariation(Prior):
    """Images have few edges: flat regions stay flat, edges stay sharp, texture is removed.

    Source: Rudin, Osher & Fatemi (1992) in the vectorial form of Blomgren & Chan (1998); the algorithm is Chambolle's
    (2004).
    """

    def __init__(self, iterations: int = 30, strength: float = 1.0) -> None:
        """Set up.

        Args:
            iterations: Steps of the denoiser's algorithm, at least 1.
            strength: Factor of `value` in the objective of gradient inversion, at least 0.
        """
        super().__init__(strength)
        check_ranges("--model.denoiser.", iterations=(iterations, COUNT))
        self.iterations = iterations

    def forward(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """The minimiser of ½‖out − x‖² + weight · TV(out) with a weight proportional to sigma.

        Args:
            x: Noisy images, shape (M, C, H, W).
            sigma: Standard deviation of the noise, one number or shape (M,).

        Returns:
            Images of the same shape.
        """
        weight = _WEIGHT * torch.as_tensor(sigma).to(x).reshape(-1, 1, 1, 1).clamp(min=1e-6)
        across, down = torch.zeros_like(x), torch.zeros_like(x)
        for _ in range(self.iterations):
            right, below = _gradient(_divergence(across, down) - x / weight)
            size = 1 + _DUAL_STEP * (right.square() + below.square()).sum(dim=1, keepdim=True).sqrt()
            across, down = (across + _DUAL_STEP * right) / size, (down + _DUAL_STEP * below) / size
        return x - weight * _divergence(across, down)

    def value(self, images: Tensor) -> Tensor:
        """Total variation, summed over pixels, of all channels together; slightly smoothed at 0."""
        across, down = _gradient(images)
        return (across.square() + down.square()).sum(dim=1).add(_SMOOTHING).sqrt().sum()


def _gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences to the right and downwards, 0 at the far borders."""
    return F.pad(x.diff(dim=-1), (0, 1)), F.pad(x.diff(dim=-2), (0, 0, 0, 1))


def _divergence(across: Tensor, down: Tensor) -> Tensor:
    """The negative adjoint of `_gradient`, for fields that are 0 at the far borders."""
    return F.pad(across[..., :-1], (1, 0)).neg() + across + F.pad(down[..., :-1, :], (0, 0, 1, 0)).neg() + down
