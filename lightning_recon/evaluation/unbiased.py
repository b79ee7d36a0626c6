# SPDX-License-Identifier: Apache-2.0
"""What no unbiased reading of a release can beat; reconstructions that use a prior are biased, and may."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_recon.evaluation.fidelity import psnr_from_mse


def unbiased_psnr(noise_multiplier: float, rounds: int) -> float:
    """Highest PSNR of an unbiased reading, whatever the server shipped: from Renyi differential privacy of order 2.

    Args:
        noise_multiplier: Standard deviation of the noise divided by the clipping norm, >= 0.
        rounds: Releases of the same images.

    Returns:
        PSNR in dB of an expected squared error of 1 / (4 (exp(4 T / z^2) - 1)) per pixel value in [0, 1]; at most 100.
        4 T / z^2 is the divergence when one picture is replaced, which moves a release by up to 2 clipping norms. One
        round: 75 dB at z = 0.5, 23 dB at z = 1; below 0 dB, where pixels' range says more, above z = 4.2.

    Source: Guo et al., "Bounding Training Data Reconstruction in Private (Deep) Learning" (ICML 2022, arXiv
    2201.12383), Theorem 1, by the bound of Hammersley, Chapman and Robbins.
    """
    if noise_multiplier == 0:
        return float(psnr_from_mse(torch.zeros(())))
    divergence = 4 * rounds / noise_multiplier**2
    log_mse = -math.log(4) - divergence - math.log(-math.expm1(-divergence))
    return float(psnr_from_mse(torch.tensor(log_mse, dtype=torch.float64).exp()))


def fisher_trace(
    release: Callable[[Tensor], Tensor], image: Tensor, noise_std: float, probes: int, seed: int = 0
) -> float:
    """Trace of the Fisher information that a noised release holds about the values of an image.

    Args:
        release: What is released before the noise as a differentiable function of the image, flat: the clipped
            gradient of one network and structure.
        image: Where the information is asked for, any shape, floating point.
        noise_std: Standard deviation of the noise on each released number, > 0, in the unit of the release.
        probes: Random directions that the trace is averaged over, >= 1.
        seed: Seed of the directions.

    Returns:
        Estimate of |J|^2 / noise_std^2, J the Jacobian of the release: unbiased.

    Source: Hannun, Guo and van der Maaten, "Measuring Data Leakage in Machine-Learning Models with Fisher Information"
    (UAI 2021), for the Gaussian mechanism; Hutchinson (1989) for the trace.
    """
    generator = torch.Generator().manual_seed(seed)
    image = image.detach().requires_grad_()
    released = release(image)
    total = 0.0
    for _ in range(probes):
        signs = torch.randint(0, 2, released.shape, generator=generator) * 2 - 1
        (pulled,) = torch.autograd.grad(released, image, signs.to(released), retain_graph=True)
        total += float(pulled.double().square().sum())
    return total / probes / noise_std**2


def fisher_psnr(trace: float, dimension: int, rounds: int) -> float:
    """Highest PSNR of an unbiased reading of one particular release, at one image.

    Args:
        trace: Trace of the Fisher information of one round, from `fisher_trace`, > 0.
        dimension: Values of an image (N), 3 H W.
        rounds: Releases of the same image under the same network and structure.

    Returns:
        PSNR in dB of an expected squared error of N / (T trace) a value; at most 100. Where the structure sends the
        picture itself this is the noise law: N / (N - 1) z^2 |x|^2. Loose where a release is sensitive to few
        directions, as the gradients of ordinary networks are.

    Source: Guo et al. (arXiv 2201.12383), Theorem 2: the Cramer-Rao bound, and the harmonic below the arithmetic mean
    of the information's eigenvalues.
    """
    return float(psnr_from_mse(torch.tensor(dimension / (rounds * trace), dtype=torch.float64)))
