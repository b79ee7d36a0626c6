# SPDX-License-Identifier: Apache-2.0
"""Reconstruction robustness: how often any attack with a prior can succeed, and the attack that puts it to the test."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import bdtrc, betaincinv, ndtr, ndtri
from torch import Tensor

from lightning_recon.errors import UserError


@dataclass(frozen=True)
class Estimate:
    """A probability found by drawing, with the interval that holds the true one at the stated confidence.

    Args:
        value: Point estimate, in [0, 1].
        lower: Lower end of the interval.
        upper: Upper end: what may be relied upon as a bound.
        confidence: Probability, over the draws, that the interval holds the truth; at least.
    """

    value: float
    lower: float
    upper: float
    confidence: float


def rero_gamma(kappa: float, mu: float | None) -> float | None:
    """Bound on the probability that a reconstruction succeeds whose success by guessing alone has probability kappa.

    Args:
        kappa: Success probability of the best guess from the prior, in (0, 1).
        mu: Sensitivity over noise of all rounds together, with and without the record; None without noise.

    Returns:
        gamma = Phi(Phi^-1(kappa) + mu), in [kappa, 1]; None without noise, where there is no bound.

    Source: Kaissis et al., "Bounding data reconstruction attacks with the hypothesis testing interpretation of
    differential privacy" (arXiv 2307.03928); the notion is from Balle, Cherubin and Hayes (arXiv 2201.04845).
    """
    return None if mu is None else float(ndtr(ndtri(kappa) + mu))


def sampled_rero_gamma(
    kappa: float,
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    samples: int = 100_000,
    confidence: float = 0.99,
    seed: int = 0,
) -> Estimate:
    """The bound of `rero_gamma` for DP-SGD, where a record takes part in a step with some probability only.

    gamma = sup {P(E): Q(E) <= kappa} for the outputs with (P) and without (Q) the record. The best event E holds the
    outputs of highest likelihood ratio P/Q. Its threshold is read off the sorted ratios of draws from Q, its
    probability counted among as many draws from P: both are binomial, hence the exact interval.

    Args:
        kappa: Success probability of the best guess from the prior, in (0, 1).
        noise_multiplier: Standard deviation of the noise divided by the clipping norm, > 0.
        sample_rate: Probability with which a record takes part in a step (Poisson sampling), in (0, 1].
        steps: Steps of the training, >= 1.
        samples: Draws from each of the two; memory is a few arrays of this length, time grows with steps * samples.
        confidence: Probability, over the draws, with which the interval holds the bound, in (0, 1).
        seed: Seed of the draws.

    Returns:
        The estimate of gamma and its interval.

    Raises:
        UserError: If there is no noise, or too few samples for this kappa.

    Source: Hayes, Mahloujifar and Balle, "Bounding Training Data Reconstruction in DP-SGD" (arXiv 2302.07225): the
    pair P, Q and sorted ratios. They average the highest ratios of the draws from Q instead of counting draws from P,
    which estimates the same number without an interval.
    """
    if not noise_multiplier > 0:
        raise UserError("without noise there is no robustness bound: give a noise multiplier above 0")
    if samples * min(kappa, 1 - kappa) < 100:
        raise UserError(
            f"{samples} samples are too few for kappa = {kappa}: give at least {100 / min(kappa, 1 - kappa):.0f}"
        )
    generator = np.random.default_rng(seed)
    ratios = np.concatenate(
        [_log_ratios(record, noise_multiplier, sample_rate, steps, samples, generator) for record in (False, True)]
    )
    # Where there is little noise many ratios are equal, those of all outputs without the record: the best event then
    # holds some of them, at random.
    rank = np.empty(2 * samples)
    rank[np.lexsort((generator.random(2 * samples), ratios))] = np.arange(2 * samples)
    without, present = np.sort(rank[:samples]), np.sort(rank[samples:])
    # The event above the k-th highest draw from Q has a probability Q(E) of Beta(k, samples + 1 - k), which is below
    # kappa as often as Binomial(samples, kappa) reaches k. An event surely larger than allowed gives the upper end, one
    # surely smaller the lower. Threshold and count of each end take a quarter of the risk.
    risk = (1 - confidence) / 4
    below = bdtrc(np.arange(samples), samples, kappa)  # for k = 1, 2, ...
    largest, smallest = int(np.argmax(below <= risk)), int(np.argmax(below < 1 - risk)) - 1

    def count(place: int) -> int:  # of draws from P above the threshold that is k = place + 1
        return int(samples - np.searchsorted(present, without[samples - 1 - place]))

    low, middle, high = count(smallest), count(round(kappa * samples) - 1), count(largest)
    return Estimate(
        value=middle / samples,
        lower=binomial_interval(low, samples, 1 - 2 * risk)[0],
        upper=binomial_interval(high, samples, 1 - 2 * risk)[1],
        confidence=confidence,
    )


def binomial_interval(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """Interval that holds the probability of success at the stated confidence, whatever it is.

    Args:
        successes: How many trials succeeded.
        trials: How many there were, >= 1.
        confidence: Probability of an interval that holds the truth, at least; in (0, 1).

    Returns:
        Lower and upper end, in [0, 1].

    Source: Clopper and Pearson (Biometrika 26, 1934).
    """
    risk = (1 - confidence) / 2
    lower = 0.0 if successes == 0 else float(betaincinv(successes, trials - successes + 1, risk))
    upper = 1.0 if successes == trials else float(betaincinv(successes + 1, trials - successes, 1 - risk))
    return lower, upper


def log_likelihoods(released: Tensor, candidates: Tensor, noise_std: float) -> Tensor:
    """How well each candidate explains each release: the scores of the prior-aware matching attack.

    The attacker knows that one of n candidates was used, what each of them would have sent without noise, and the
    release; it picks the candidate of highest score. Scores of several rounds add up.

    Args:
        released: Noised updates, shape (draws, D).
        candidates: Clipped updates of the candidates, without noise, shape (n, D).
        noise_std: Standard deviation of the noise on each number, > 0, in the updates' unit.

    Returns:
        Log-likelihood but for a constant of each release, float64, shape (draws, n).

    Source: the matched filter of Gaussian noise. The prior-aware attack of Hayes et al. (arXiv 2302.07225) leaves out
    the norms, which makes no difference where the clip binds for all candidates.
    """
    released, candidates = released.double(), candidates.double()
    return (released @ candidates.T - candidates.square().sum(1) / 2) / noise_std**2


def matching_success(candidates: int, mu: float) -> float:
    """How often the matching attack finds the right one of n equally likely candidates whose updates are orthogonal.

    Args:
        candidates: How many candidates there are (n), >= 1.
        mu: Norm of an update over the standard deviation of the noise, all rounds together, >= 0.

    Returns:
        Integral of phi(t - mu) Phi(t)^(n - 1), in [1/n, 1]; at most `rero_gamma` at kappa = 1/n.

    Source: detection of one of n orthogonal signals of equal energy in white noise, e.g. Proakis, "Digital
    Communications", section on orthogonal signalling.
    """

    def density(t: float) -> float:
        return float(math.exp(-((t - mu) ** 2) / 2) / math.sqrt(2 * math.pi) * ndtr(t) ** (candidates - 1))

    return min(1.0, float(quad(density, mu - 12, mu + 12, epsabs=1e-12, limit=200)[0]))


def _log_ratios(
    record: bool, noise_multiplier: float, sample_rate: float, steps: int, samples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    # Log-likelihood ratios of whole trainings, with or without the record, in units of the clipping norm: only the
    # direction of the record's gradient matters.
    total = np.zeros(samples)
    with np.errstate(divide="ignore"):
        absent, taking_part = np.log1p(-sample_rate), np.log(sample_rate)
    for _ in range(steps):
        output = noise_multiplier * generator.standard_normal(samples)
        if record:
            output += generator.random(samples) < sample_rate
        total += np.logaddexp(absent, taking_part + (output - 0.5) / noise_multiplier**2)
    return total
