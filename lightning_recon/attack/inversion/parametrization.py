# SPDX-License-Identifier: Apache-2.0
"""The unknowns of an honest server's attack: pictures in the coordinates in which they are searched."""

import math
from typing import Literal

import torch
from torch import Tensor

from lightning_recon.priors.dct import synthesise
from lightning_recon.priors.image_statistics import PublicStatistics

Basis = Literal["pixels", "spectrum", "balanced"]
Start = Literal["noise", "patches", "mean", "revealed"]

_PATCH = 4
_SPREAD = 0.3  # standard deviation of a start around the mean image, in those of photographs
# The scale of standardised pixels in which the published attacks search: the statistics of ImageNet's channels.
_CENTRE, _SCALE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Parametrization:
    """Between pictures and the numbers that are optimised.

    "pixels": standardised pixels, as in the published attacks. "spectrum": decorrelated cosine coefficients in units of
    their public standard deviation, in which a photograph is standard normal: the coordinates are both a prior and a
    preconditioner, since steps of one size move every frequency by what is usual for it. "balanced": the same
    coefficients in units of what is uncertain of them once the update is known: of the photograph's deviation where
    noise hides it, all alike where it does not, which is what a search by curvature wants.
    """

    def __init__(self, basis: Basis, statistics: PublicStatistics, device: torch.device) -> None:
        """Prepare the change of coordinates.

        Args:
            basis: one of the above; "balanced" ones are as the spectrum's before `balance` is called.
            statistics: what the server takes for granted about pictures.
            device: where dummies are.
        """
        self.basis = basis
        self.mean, self.colour = statistics.mean.to(device), statistics.colour.to(device)
        self.std = statistics.variance.sqrt().to(device)
        self.unit = self.std
        self.centre = torch.tensor(_CENTRE, device=device).view(3, 1, 1)
        self.scale = torch.tensor(_SCALE, device=device).view(3, 1, 1)
        self.darkest, self.brightest = -self.centre / self.scale, (1 - self.centre) / self.scale

    def pictures(self, dummies: Tensor) -> Tensor:
        """Pictures of dummies; shapes (..., 3, H, W)."""
        if self.basis == "pixels":
            return dummies * self.scale + self.centre
        with torch.autocast(dummies.device.type, enabled=False):  # half precision would round every grey level
            return synthesise(dummies * self.unit, self.mean, self.colour)

    def standardised(self, dummies: Tensor, pictures: Tensor) -> Tensor:
        """Pictures in the scale of the published attacks, which dummies of pixels are in already."""
        return dummies if self.basis == "pixels" else (pictures - self.centre) / self.scale

    def balance(self, information: float) -> None:
        """Choose the units of "balanced" coordinates, of the same mean square as those of the spectrum.

        Args:
            information: what an update tells of one coefficient: the inverse variance that noise alone would leave.
        """
        unit = (self.std.square().reciprocal() + information).rsqrt()
        self.unit = unit * (self.std.square().mean() / unit.square().mean()).sqrt()

    def whitened(self, dummies: Tensor) -> Tensor:
        """Dummies of coefficients in units of their public standard deviation, whatever the units of the search."""
        return dummies * (self.unit / self.std)

    def boxed(self, dummies: Tensor) -> Tensor:
        """Dummies whose pictures are within [0, 1]; coefficients are left as they are."""
        if self.basis != "pixels":
            return dummies
        return dummies.clamp(self.darkest, self.brightest)

    def start(self, start: Start, batch: int, generator: torch.Generator) -> Tensor:
        """Where the search begins.

        Args:
            start: "noise", standard normal; "patches", one patch of such noise repeated over the picture; any other,
                the public mean image with some noise, which tells restarts and the pictures of a batch apart.
            batch: pictures, B.
            generator: on the CPU.

        Returns:
            Dummies (B, 3, H, W) on the CPU.
        """
        shape = (batch, *self.mean.shape)
        if start == "noise":
            return torch.randn(shape, generator=generator)
        if start == "patches":
            patch = torch.randn(batch, 3, _PATCH, _PATCH, generator=generator)
            height, width = shape[-2:]
            tiles = patch.repeat(1, 1, math.ceil(height / _PATCH), math.ceil(width / _PATCH))
            return tiles[..., :height, :width]
        noise = _SPREAD * torch.randn(shape, generator=generator)
        if self.basis != "pixels":
            return noise * (self.std / self.unit).cpu()
        return ((self.mean - self.centre) / self.scale).cpu() + noise
