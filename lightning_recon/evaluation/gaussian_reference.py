# SPDX-License-Identifier: Apache-2.0
"""The PSNR that the best code reaches on a Gaussian source with the second moments of the images under attack.

Whoever computes it knows the true images, so no attack does. It is a reference value, not a bound: among sources of one
covariance a Gaussian is the hardest to describe, so an attack with a better image prior may exceed it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import t as student
from torch import Tensor

from lightning_recon.evaluation.bounds import Granularity, gaussian_distortion
from lightning_recon.evaluation.metrics import psnr_from_mse
from lightning_recon.evaluation.scoring import Truth
from lightning_recon.priors.dct import cosine

FEWEST_IMAGES = 4  # random triples and pairs of 868 photographs gave references that were 0.7 to 1.1 dB too high
_GROUPS = 16  # of the jackknife
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class GaussianReference:
    """The reference value, with the uncertainty that comes from the number of images.

    Args:
        psnr: PSNR in dB of the mean squared error over images (compare with `psnr_of_mean_mse`); at most 100.
        low: Lower end of the 95 % interval of the value for many images of this kind.
        high: Upper end.
    """

    psnr: float
    low: float
    high: float


def gaussian_reference(truths: Sequence[Truth], nats: float, granularity: Granularity) -> GaussianReference | None:
    """Reverse water-filling over the spectrum of the true photographs, counted on the subjects' pixels alone.

    The spectrum is that of the photographs before the subject was cut out: cutting adds edges that no photograph has,
    which would lower the reference by 1 to 4 dB. A subject that covers a share of the image counts that share of every
    coefficient, by Szegő's theorem on the eigenvalues of a stationary source in a part of its domain.

    Args:
        truths: Each client's batch, all of one image size.
        nats: What the channel carries about what is clipped together, see `Mechanism.mutual_information`.
        granularity: "sample" gives every victim its own channel, "update" shares one among a client's batch.

    Returns:
        The reference, with a jackknife interval over the photographs; None for fewer than `FEWEST_IMAGES` of them.

    Source: Cover and Thomas, "Elements of Information Theory" (2006), Theorem 10.3.3; Grenander and Szegő, "Toeplitz
    Forms and Their Applications" (1958).
    """
    photographs = torch.cat([truth.photographs for truth in truths]) if truths else torch.empty(0, 1, 1, 1)
    if len(photographs) < FEWEST_IMAGES:
        return None
    shares = [truth.masks.double().mean((1, 2, 3)) for truth in truths]
    # What one code describes: an image, or all images of a clipped update together.
    if granularity == "sample":
        shares = list(torch.cat(shares)[:, None])
    sources = Counter(float(one.sum()) for one in shares)
    spectrum = Spectrum.of(photographs)
    variances = [spectrum.variances(), *(spectrum.variances(without=group) for group in range(spectrum.groups))]
    whole, *parts = (_psnr(one, spectrum.count, sources, nats, photographs.numel()) for one in variances)
    deviations = torch.tensor(parts, dtype=torch.float64)
    groups = len(parts)
    variance = (groups - 1) / groups * (deviations - deviations.mean()).square().sum()
    half = float(variance.sqrt()) * float(student.ppf((1 + _CONFIDENCE) / 2, groups - 1))
    return GaussianReference(whole, whole - half, min(100.0, whole + half))


@dataclass(frozen=True)
class Spectrum:
    """Second moments of images: squares and sums of their cosine coefficients on uncorrelated colour axes.

    Args:
        squares: Sum over a group of images of the squared coefficients, averaged over a band; (groups, C, K, K).
        sums: Sum over a group of images of the coefficients, shape (groups, C, H, W).
        images: Number of images of each group, shape (groups,).
        count: Coefficients in each band, shape (K, K).
        rows: Band of each row of coefficients, as one-hot vectors, shape (H, K).
        columns: The same for columns, shape (W, K).
    """

    squares: Tensor
    sums: Tensor
    images: Tensor
    count: Tensor
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, images: Tensor) -> "Spectrum":
        """Measure images of shape (N, C, H, W), in up to 16 groups of about equal size, N at least 2."""
        rows, columns = (_bands(side) for side in images.shape[-2:])
        mean = images.mean(dim=0)
        pixels = (images - mean).transpose(0, 1).flatten(1).double()
        colour = torch.linalg.eigh(pixels @ pixels.T).eigenvectors.T
        count = rows.sum(0)[:, None] * columns.sum(0)
        squares, sums, sizes = [], [], []
        for group in images.tensor_split(min(_GROUPS, len(images))):
            coefficients = cosine(torch.einsum("dc,nchw->ndhw", colour, (group - mean).double()))
            squares.append(rows.T @ coefficients.square().sum(0) @ columns / count)
            sums.append(coefficients.sum(0))
            sizes.append(len(group))
        return cls(torch.stack(squares), torch.stack(sums), torch.tensor(sizes), count, rows, columns)

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.images)

    def variances(self, without: int | None = None) -> Tensor:
        """Variance of the coefficients of each band about their mean over images, shape (C, K, K).

        Args:
            without: A group to leave out, for the jackknife; None: all images.
        """
        kept = [group for group in range(self.groups) if group != without]
        images, sums = self.images[kept].sum(), self.sums[kept].sum(0)
        of_mean = self.rows.T @ sums.square() @ self.columns / self.count / images
        return ((self.squares[kept].sum(0) - of_mean) / (images - 1)).clamp(min=0)


def _bands(side: int) -> Tensor:
    """One-hot band of each frequency, shape (side, K): half octaves of 1, 1.41, 2, ...; frequency 0 has its own."""
    place = (2 * torch.arange(side).double().clamp(min=0.5).log2() + 2).floor().long()
    return torch.nn.functional.one_hot(torch.unique(place, return_inverse=True)[1]).double()


def _psnr(variances: Tensor, count: Tensor, sources: Mapping[float, int], nats: float, values: int) -> float:
    """PSNR of the mean squared error over all images, in dB.

    Args:
        variances: Of each band, shape (C, K, K).
        count: Coefficients of an image in each band, shape (K, K).
        sources: How often a source occurs, by the number of whole images that its pixels make up.
        nats: Rate of each source.
        values: Values of all images together.
    """
    error = sum(
        number * gaussian_distortion(variances, nats, share * count.expand_as(variances))
        for share, number in sources.items()
        if share > 0
    )
    return float(psnr_from_mse(torch.tensor(error / values, dtype=torch.float64)))
