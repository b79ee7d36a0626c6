# SPDX-License-Identifier: Apache-2.0
"""Whether pictures explain more of an update than its noise and the public mean image do: a likelihood-ratio test."""

from scipy import stats

from lightning_recon.attack.inversion.forward_model import Update

_FALSE_ALARMS = 1e-4  # probability that noise alone passes, at most
_ROUNDING = 1e-5  # share of an update's energy that float32 and other kernels leave unexplained


def explained_energy(update: Update, guess: Update) -> float:
    """Energy of the part of an update that points the way of a guess's update, whatever the length of either.

    Args:
        update: as received, by parameter name.
        guess: what the client would have sent for the pictures that are guessed; same names and shapes.

    Returns:
        (update · guess)² / ‖guess‖², in the update's unit squared; 0 where they point apart.
    """
    product = sum(float((update[name].double() * tensor.double()).sum()) for name, tensor in guess.items())
    energy = sum(float(tensor.double().square().sum()) for tensor in guess.values())
    return max(product, 0.0) ** 2 / energy if energy > 0 else 0.0


def is_evident(update: Update, guess: Update, of_mean: Update, std: float, searched: float) -> bool:
    """Whether an update shows the pictures: they explain more of it than noise, and the mean image, can account for.

    Twice the log of the likelihood ratio of pictures against none is the energy that they explain, divided by the
    noise's variance. A search over n numbers explains no more of pure noise than a chi-square variable of n degrees of
    freedom, since it chooses a direction in as many dimensions. The same holds for what it explains beyond the public
    mean image of an update that depends on no picture.

    Args:
        update: as received, by parameter name.
        guess: what the client would have sent for the pictures that were found.
        of_mean: the same for the public mean image in the place of each of them.
        std: standard deviation of the noise on every number, as announced.
        searched: how many numbers the search chose freely, degrees of freedom: with a prior, in which a coefficient
            has variance s² and the update's information about it is I, the sum of I s² / (1 + I s²).

    Source: Wilks 1938, the large-sample distribution of the likelihood ratio; the degrees of freedom of a penalised fit
    are Hastie & Tibshirani 1990, section 3.5.
    """
    numbers = sum(tensor.numel() for tensor in update.values())
    whole = sum(float(tensor.double().square().sum()) for tensor in update.values())
    # One more, the length, which clipping leaves open.
    chance = std**2 * float(stats.chi2.isf(_FALSE_ALARMS, min(searched + 1, numbers)))
    least, explained = max(chance, _ROUNDING * whole), explained_energy(update, guess)
    return explained > least and explained - explained_energy(update, of_mean) > least
