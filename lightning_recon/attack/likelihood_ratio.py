# SPDX-License-Identifier: Apache-2.0
"""Likelihood-ratio test: whether images explain more of an update than its noise and the public mean image do."""

from scipy import stats
from torch import Tensor

from lightning_recon.attack.inversion.forward_model import Update

_FALSE_ALARMS = 1e-4  # probability that noise alone passes, at most
_ROUNDING = 1e-5  # share of an update's energy that float32 and other kernels leave unexplained


def explained_energy(update: Update, candidate: Update) -> float:
    """Energy of the projection of an update on the direction of a candidate's update.

    Args:
        update: as received, by parameter name.
        candidate: what the client would have sent for the candidate's images; same names and shapes.

    Returns:
        (update · candidate)² / ‖candidate‖², in the update's unit squared; 0 if the product is negative.
    """
    product = sum(float((_exact(update[name]) * _exact(tensor)).sum()) for name, tensor in candidate.items())
    energy = _energy(candidate)
    return max(product, 0.0) ** 2 / energy if energy > 0 else 0.0


def is_evident(update: Update, candidate: Update, of_mean: Update, std: float, searched: float) -> bool:
    """Whether an update shows the images: they explain more of it than noise and the public mean image do.

    Twice the log-likelihood ratio of images against none is the energy that they explain, divided by the noise's
    variance. A search over n numbers explains no more of pure noise than a chi-square variable of n degrees of freedom,
    since it chooses a direction in n dimensions. The same holds for the energy that it explains beyond the public mean
    image, if the update depends on no image.

    Args:
        update: as received, by parameter name.
        candidate: what the client would have sent for the images that were found.
        of_mean: the same for the public mean image in the place of each of them.
        std: standard deviation of the noise on every number, as announced.
        searched: effective number of parameters (degrees of freedom) of the search: with a prior variance s² of a
            coefficient and the update's information I about it, the sum of I s² / (1 + I s²).

    Source: Wilks 1938, the large-sample distribution of the likelihood ratio; the degrees of freedom of a penalised fit
    are Hastie & Tibshirani 1990, section 3.5.
    """
    numbers = sum(tensor.numel() for tensor in update.values())
    whole = _energy(update)
    # One more for the length, which clipping leaves unknown.
    chance = std**2 * float(stats.chi2.isf(_FALSE_ALARMS, min(searched + 1, numbers)))
    least, explained = max(chance, _ROUNDING * whole), explained_energy(update, candidate)
    return explained > least and explained - explained_energy(update, of_mean) > least


def _energy(update: Update) -> float:
    return sum(float(_exact(tensor).square().sum()) for tensor in update.values())


def _exact(tensor: Tensor) -> Tensor:
    """In float64, on the host: Apple's GPUs have no float64."""
    return tensor.cpu().double()
