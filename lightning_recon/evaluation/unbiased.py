# SPDX-License-Identifier: Apache-2.0
"""What no unbiased reading of a release can beat; reconstructions that use a prior are biased, and may."""

import math

import torch

from lightning_recon.evaluation.metrics import psnr_from_mse


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
