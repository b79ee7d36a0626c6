# SPDX-License-Identifier: Apache-2.0
"""What pictures look like, as a denoiser knows it; the oldest such knowledge: they have few edges."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.ranges import COUNT, check_ranges

# Weight of total variation that suits noise of standard deviation 1, and the size of one step on its dual.
_WEIGHT = 0.7
_DUAL_STEP = 0.125


class Denoiser(Protocol):
    """Whatever removes white Gaussian noise of known strength from pictures."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Remove noise.

        Args:
            x: Noisy pictures, shape (M, 3, H, W), values in [0, 1].
            sigma: Standard deviation of each picture's noise, shape (M,).

        Returns:
            The pictures, same shape.
        """
        ...


class TotalVariation(nn.Module):
    """Removes noise by the least total variation: flat places stay flat, edges stay sharp, texture goes.

    Source: Rudin, Osher & Fatemi (1992) in the vectorial form of Blomgren & Chan (1998); the algorithm is Chambolle's
    (2004).
    """

    def __init__(self, iterations: int = 30) -> None:
        """Set up.

        Args:
            iterations: Steps of the algorithm, at least 1.
        """
        super().__init__()
        check_ranges("--model.denoiser.", iterations=(iterations, COUNT))
        self.iterations = iterations

    def forward(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """The minimiser of ½‖out − x‖² + weight · TV(out) with a weight proportional to sigma.

        Args:
            x: Noisy pictures, shape (M, 3, H, W).
            sigma: Standard deviation of the noise, one number or shape (M,).

        Returns:
            Pictures of the same shape.
        """
        weight = _WEIGHT * torch.as_tensor(sigma).to(x).reshape(-1, 1, 1, 1).clamp(min=1e-6)
        across, down = torch.zeros_like(x), torch.zeros_like(x)
        for _ in range(self.iterations):
            right, below = _gradient(_divergence(across, down) - x / weight)
            size = 1 + _DUAL_STEP * (right.square() + below.square()).sum(dim=1, keepdim=True).sqrt()
            across, down = (across + _DUAL_STEP * right) / size, (down + _DUAL_STEP * below) / size
        return x - weight * _divergence(across, down)


def _gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences to the right and downwards, 0 at the far borders."""
    return F.pad(x.diff(dim=-1), (0, 1)), F.pad(x.diff(dim=-2), (0, 0, 0, 1))


def _divergence(across: Tensor, down: Tensor) -> Tensor:
    """The negative adjoint of `_gradient`, for fields that are 0 at the far borders."""
    return F.pad(across[..., :-1], (1, 0)).neg() + across + F.pad(down[..., :-1, :], (0, 0, 1, 0)).neg() + down
