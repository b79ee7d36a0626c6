# SPDX-License-Identifier: Apache-2.0
"""What pictures look like beyond their spectrum: contrast that differs from place to place, few edges."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Weight of "contrast is everywhere the same", in effective coefficients; and how flat a place may be.
_EVEN_CONTRAST = 4.0
_LEAST_CONTRAST = 0.03


def local_contrast(whitened: Tensor, certainty: Tensor, window: float) -> Tensor:
    """Estimate how much livelier or flatter each place of a picture is than its spectrum says.

    Under the spectral prior the whitened picture is white noise of variance 1; in a photograph its local variance κ(x)
    is high on texture and near 0 on sky, or on the black around a subject that was cut out: no mask is needed.

    Args:
        whitened: Current estimate as a picture whose coefficients were divided by √λ, shape (M, 3, H, W).
        certainty: 1 − posterior variance / prior variance of each coefficient, same shape, in [0, 1].
        window: Standard deviation of the averaging window, in pixels, positive.

    Returns:
        κ, shape (M, 1, H, W), about 1 where nothing is known.

    Source: spatially adaptive Wiener filtering; the Gaussian scale mixture of Portilla et al. (2003).
    """
    energy = whitened.square().sum(dim=1, keepdim=True)
    known = certainty.mean(dim=(-2, -1), keepdim=True).sum(dim=1, keepdim=True)
    count = 4 * math.pi * window**2 * known
    mean = _blurred(energy, window)
    return ((4 * math.pi * window**2 * mean + _EVEN_CONTRAST) / (count + _EVEN_CONTRAST)).clamp(min=_LEAST_CONTRAST)


def contrast_energy(whitened: Tensor, contrast: Tensor) -> Tensor:
    """Negative log-prior, up to a constant, of pictures with a spectrum and a local contrast.

    Args:
        whitened: Pictures whose coefficients were divided by √λ, shape (M, 3, H, W).
        contrast: κ, shape (M, 1, H, W); all 1 gives the plain spectral prior ½ Σ c²/λ.

    Returns:
        One number a picture, shape (M,).
    """
    return 0.5 * (whitened.square() / contrast).sum(dim=(1, 2, 3))


def total_variation(images: Tensor, smoothing: float = 1e-2) -> Tensor:
    """Isotropic total variation over all channels together, shape (M,), of images of shape (M, 3, H, W).

    Source: Rudin, Osher & Fatemi (1992); vectorial form of Blomgren & Chan (1998).
    """
    across = F.pad(images.diff(dim=-1), (0, 1))
    down = F.pad(images.diff(dim=-2), (0, 0, 0, 1))
    return ((across**2 + down**2).sum(dim=1) + smoothing**2).sqrt().sum(dim=(-2, -1))


def _blurred(images: Tensor, width: float) -> Tensor:
    """Gaussian blur of images of shape (M, 1, H, W), mirrored at the borders."""
    reach = min(math.ceil(3 * width), *(n - 1 for n in images.shape[-2:]))
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, device=images.device) ** 2) / (2 * width**2))
    kernel = (kernel / kernel.sum()).to(images)
    padded = F.pad(images, (reach, reach, reach, reach), mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
