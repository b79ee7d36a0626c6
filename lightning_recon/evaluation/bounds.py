# SPDX-License-Identifier: Apache-2.0
"""Bounds and reference values that need no attack: decoding without a prior, unbiased estimates, capacity."""

import math
from typing import Literal

import torch
from scipy.optimize import brentq
from scipy.special import gammainc, gammaincinv
from torch import Tensor

from lightning_recon.evaluation.metrics import psnr_from_mse
from lightning_recon.privacy.gaussian import Gaussian
from lightning_recon.privacy.mechanism import Mechanism

Granularity = Literal["sample", "update"]


def noise_law_psnr(noise_multiplier: float, energies: Tensor, granularity: Granularity, rounds: float) -> float:
    """PSNR of decoding a release without a prior, by the best unbiased linear estimate.

    A released row is the image on unit power plus noise z a coordinate; undoing the scale multiplies the noise by the
    norm of the image, or of the whole batch where one clip is shared. The clipping norm cancels.

    Args:
        noise_multiplier: Standard deviation of the noise divided by the clipping norm, >= 0.
        energies: Squared norm of each victim's image, values in [0, 1]; shape (clients, B).
        granularity: "sample" clips each image's gradient, "update" the batch as a whole.
        rounds: Releases of the same images, which are averaged.

    Returns:
        PSNR in dB of the mean squared error over victims (compare with `psnr_of_mean_mse`), before any clamping of
        pixel values, for private rows of equal gradient weight; at most 100.

    Source: Ziller et al., arXiv 2402.12861, E[MSE] = z^2 |x|^2; with one clip over a batch z^2 sum_j |x_j|^2.
    """
    shared = energies.double() if granularity == "sample" else energies.double().sum(-1)
    return float(psnr_from_mse(noise_multiplier**2 / rounds * shared.mean()))


def noise_law_tail(psnr: float, noise_multiplier: float, energy: float, dimension: int, rounds: float) -> float:
    """Probability, over the noise, that the decoding of `noise_law_psnr` reaches a PSNR.

    Args:
        psnr: PSNR in dB, values in [0, 1] before clamping.
        noise_multiplier: Standard deviation of the noise divided by the clipping norm, >= 0.
        energy: Squared norm of the victim's image; under one clip summed over the batch.
        dimension: Values of an image (N), 3 H W.
        rounds: Releases of the same images, which are averaged.

    Returns:
        P(N/2, N eta / (2 z^2 energy / rounds)) with eta = 10^(-psnr/10) and P the regularised lower gamma function,
        since the squared error is z^2 energy / (N rounds) times a chi-squared number of N degrees of freedom.

    Source: Ziller et al., arXiv 2402.12861, tails of the mean squared error and of PSNR.
    """
    variance = noise_multiplier**2 * energy / rounds
    return 1.0 if variance == 0 else float(gammainc(dimension / 2, dimension * 10 ** (-psnr / 10) / (2 * variance)))


def noise_law_quantile(
    probability: float, noise_multiplier: float, energy: float, dimension: int, rounds: float
) -> float:
    """PSNR that the decoding of `noise_law_psnr` reaches with a given probability: the inverse of `noise_law_tail`.

    Args:
        probability: Probability of a PSNR at least as high, in (0, 1).
        noise_multiplier: Standard deviation of the noise divided by the clipping norm, >= 0.
        energy: Squared norm of the victim's image; under one clip summed over the batch.
        dimension: Values of an image (N), 3 H W.
        rounds: Releases of the same images, which are averaged.

    Returns:
        PSNR in dB; at most 100.

    Source: see `noise_law_tail`.
    """
    variance = noise_multiplier**2 * energy / rounds
    mse = 2 * variance * float(gammaincinv(dimension / 2, probability)) / dimension
    return float(psnr_from_mse(torch.tensor(mse, dtype=torch.float64)))


def noise_law_batch_quantile(
    probability: float,
    noise_multiplier: float,
    energies: Tensor,
    granularity: Granularity,
    dimension: int,
    rounds: float,
) -> float:
    """PSNR that the decoding of `noise_law_psnr` exceeds with a given probability, over victims and noise.

    Args:
        probability: Probability of exceeding it for a victim drawn at random, in (0, 1).
        noise_multiplier: Standard deviation of the noise divided by the clipping norm, >= 0.
        energies: Squared norm of each victim's image, values in [0, 1]; shape (clients, B).
        granularity: "sample" clips each image's gradient, "update" the batch as a whole.
        dimension: Values of an image (N), 3 H W.
        rounds: Releases of the same images, which are averaged.

    Returns:
        PSNR in dB; at most 100.

    Source: the mean over victims of `noise_law_tail`, solved for the PSNR.
    """
    shared = energies.double() if granularity == "sample" else energies.double().sum(-1)
    every = shared.flatten().tolist()
    alone = [noise_law_quantile(probability, noise_multiplier, energy, dimension, rounds) for energy in every]
    if max(alone) - min(alone) < 1e-6:  # one energy, or there is no noise
        return max(alone)

    def excess(psnr: float) -> float:
        tails = [noise_law_tail(psnr, noise_multiplier, energy, dimension, rounds) for energy in every]
        return sum(tails) / len(tails) - probability

    # Black images reach every PSNR; where they are many, or noise is low, so does the quantile.
    highest = min(100.0, max(alone) + 1e-6)
    if highest == 100 and excess(highest) >= 0:
        return highest
    return float(brentq(excess, min(alone) - 1e-6, highest, xtol=1e-6))


def unbiased_psnr(noise_multiplier: float, rounds: float) -> float:
    """Highest PSNR of any unbiased estimate under Gaussian noise, by Renyi differential privacy of order 2.

    Args:
        noise_multiplier: Standard deviation of the noise divided by the clipping norm, >= 0.
        rounds: Releases of the same images, of sampled ones their expected number.

    Returns:
        PSNR in dB of an expected squared error of 1 / (4 (exp(4 T / z^2) - 1)) per pixel value in [0, 1]; at most 100.
        4 T / z^2 is the divergence when one image is replaced, which moves a release by up to 2 clipping norms. One
        round: 75 dB at z = 0.5, 23 dB at z = 1; below 0 dB, where pixels' range says more, above z = 4.2.

    Source: Guo et al., "Bounding Training Data Reconstruction in Private (Deep) Learning" (ICML 2022, arXiv
    2201.12383), Theorem 1, by the bound of Hammersley, Chapman and Robbins.
    """
    if noise_multiplier == 0:
        return float(psnr_from_mse(torch.zeros(())))
    divergence = 4 * rounds / noise_multiplier**2
    log_mse = -math.log(4) - divergence - math.log(-math.expm1(-divergence))
    return float(psnr_from_mse(torch.tensor(log_mse, dtype=torch.float64).exp()))


def channel_nats(
    noise_multiplier: float,
    granularity: Granularity,
    batch_size: float,
    rounds: float,
    mechanism: Mechanism = Gaussian(),  # noqa: B008 - has no state
) -> float | None:
    """Nats that clipped and noised releases carry about one victim at most: a bound for any attack.

    Args:
        noise_multiplier: Scale of the noise divided by the clipping norm, >= 0.
        granularity: "sample" gives each image the clipping norm, "update" shares it among the batch.
        batch_size: Images a client, a mean over clients.
        rounds: Releases of the same images, of sampled ones their expected number.
        mechanism: Distribution of the noise.

    Returns:
        `mechanism.mutual_information`, for Gaussian noise T / (2 z^2). Under one clip it is divided by the batch size:
        then it is the mean over a batch of independent victims, as one may be reconstructed better at the cost of the
        others. Infinite without noise; None where no bound is known.
    """
    nats = mechanism.mutual_information(noise_multiplier, rounds)
    return nats if nats is None else nats / (batch_size if granularity == "update" else 1)


def gaussian_distortion(variances: Tensor, nats: float, multiplicity: Tensor | None = None) -> float:
    """Least expected squared error of a Gaussian source described with so many nats: reverse water-filling.

    Every component keeps at most the common distortion theta; the k strongest share the rate, so
    log theta = (sum of their log variances - 2 nats) / k for the largest k whose variances all exceed theta.

    Args:
        variances: Variance of each independent component, any shape, >= 0.
        nats: Rate for the whole source, >= 0.
        multiplicity: How many components have each variance, same shape, not necessarily integers; None: one each.

    Returns:
        Squared error summed over all components, in the unit of the variances.

    Source: Cover and Thomas, "Elements of Information Theory" (2006), Theorem 10.3.3.
    """
    ordered, order = variances.double().flatten().sort(descending=True)
    number = torch.ones_like(ordered) if multiplicity is None else multiplicity.double().flatten()[order]
    known = (ordered > 0) & (number > 0)
    ordered, number = ordered[known], number[known]
    logs = ordered.log()
    log_theta = ((number * logs).cumsum(0) - 2 * nats) / number.cumsum(0)
    if len(logs) == 0:
        return 0.0
    # Rate that lowers the components before the k-th to its variance, as a sum of differences, in which no rounding
    # exceeds the least rate: the first component is always active.
    spent = torch.cat([logs.new_zeros(1), (number.cumsum(0)[:-1] * (logs[:-1] - logs[1:])).cumsum(0)])
    active = int((spent <= 2 * nats).sum())
    described, left = float(number[:active].sum()), number[active:] @ ordered[active:]
    return float(described * log_theta[active - 1].exp() + left)
