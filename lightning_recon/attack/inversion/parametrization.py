# SPDX-License-Identifier: Apache-2.0
"""Parametrizations of the images that gradient inversion optimises."""

import math
from typing import Literal

import torch
from torch import Tensor

from lightning_recon.networks.normalization import IMAGENET
from lightning_recon.priors.image_statistics import PublicStatistics

Basis = Literal["pixels", "spectrum", "balanced"]
Start = Literal["noise", "patches", "mean", "revealed"]

_PATCH = 4
_SPREAD = 0.3  # standard deviation of a start around the mean image, in those of photographs


class Parametrization:
    """Maps the numbers that are optimised (dummies) to images.

    "pixels": pixels standardised by ImageNet's statistics, as in the published attacks. "spectrum": decorrelated cosine
    coefficients in units of their public standard deviation, in which a photograph is standard normal: both a prior and
    a preconditioner, since a step of one size moves every frequency in proportion to its standard deviation.
    "balanced": the same coefficients in units of their posterior standard deviation given the update: that of
    photographs where noise hides a coefficient, equal for all where it does not, as suits second-order methods.
    """

    def __init__(self, basis: Basis, statistics: PublicStatistics, device: torch.device) -> None:
        """Prepare the transform.

        Args:
            basis: one of the above; "balanced" equals "spectrum" until `balance` is called.
            statistics: public statistics of images.
            device: of the dummies.
        """
        self.basis = basis
        self.mean, self.transform = statistics.mean.to(device), statistics.transform.to(device)
        self.std = statistics.variance.sqrt().to(device)
        self.unit = self.std
        published = IMAGENET.of_channels(len(self.mean))
        self.centre = torch.tensor(published.mean, device=device).view(-1, 1, 1)
        self.scale = torch.tensor(published.std, device=device).view(-1, 1, 1)
        self.darkest, self.brightest = -self.centre / self.scale, (1 - self.centre) / self.scale

    def images(self, dummies: Tensor) -> Tensor:
        """Images of dummies; shapes (..., C, H, W)."""
        if self.basis == "pixels":
            return dummies * self.scale + self.centre
        with torch.autocast(dummies.device.type, enabled=False):  # half precision would round every grey level
            return self.transform.synthesise(dummies * self.unit)

    def standardised(self, dummies: Tensor, images: Tensor) -> Tensor:
        """Images in the scale of the published attacks, which dummies of pixels have already."""
        return dummies if self.basis == "pixels" else (images - self.centre) / self.scale

    def balance(self, information: float) -> None:
        """Choose the units of "balanced" coefficients, with the same mean square as those of "spectrum".

        Args:
            information: Fisher information of an update about one coefficient: its inverse variance due to noise.
        """
        unit = (self.std.square().reciprocal() + information).rsqrt()
        self.unit = unit * (self.std.square().mean() / unit.square().mean()).sqrt()

    def whitened(self, dummies: Tensor) -> Tensor:
        """Coefficients in units of their public standard deviation, whatever the units of the dummies."""
        return dummies * (self.unit / self.std)

    def boxed(self, dummies: Tensor) -> Tensor:
        """Dummies clamped so that their images are within [0, 1]; coefficients are not changed."""
        if self.basis != "pixels":
            return dummies
        return dummies.clamp(self.darkest, self.brightest)

    def start(self, start: Start, batch: int, generator: torch.Generator) -> Tensor:
        """Draw the start of a search.

        Args:
            start: "noise", standard normal; "patches", one patch of such noise repeated over the image; any other, the
                public mean image with some noise, so that restarts and the images of a batch differ.
            batch: number of images, B.
            generator: on the CPU.

        Returns:
            Dummies (B, C, H, W) on the CPU.
        """
        shape = (batch, *self.mean.shape)
        if start == "noise":
            return torch.randn(shape, generator=generator)
        if start == "patches":
            patch = torch.randn(batch, len(self.mean), _PATCH, _PATCH, generator=generator)
            height, width = shape[-2:]
            tiles = patch.repeat(1, 1, math.ceil(height / _PATCH), math.ceil(width / _PATCH))
            return tiles[..., :height, :width]
        noise = _SPREAD * torch.randn(shape, generator=generator)
        if self.basis != "pixels":
            return noise * (self.std / self.unit).cpu()
        return ((self.mean - self.centre) / self.scale).cpu() + noise
