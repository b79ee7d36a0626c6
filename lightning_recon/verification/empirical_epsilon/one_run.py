# SPDX-License-Identifier: Apache-2.0
"""Lower bound on epsilon from many canaries in a single release, without a model of the noise.

Assumption: an independent, fair coin decided for each canary whether it is in the data. Scores may depend on each other
in any way.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import binom

from lightning_recon.verification.empirical_epsilon.scores import CanaryScores

_MOST = 1e6  # where every guess is right, no epsilon above this is told apart from infinity


def one_run_epsilon(scores: CanaryScores, delta: float, confidence: float = 0.95) -> float:
    """Lower bound on epsilon from guesses about the canaries with the most extreme scores.

    The k canaries of highest score are guessed to be included, and the k of lowest score to be excluded, for k = 1, 2,
    4, 8 ... up to half of the canaries; the risks of error of these tests add up to 1 - confidence.

    Args:
        scores: of the canaries, each of which was included if its fair coin said so.
        delta: privacy parameter, in [0, 1).
        confidence: probability, over the releases, that epsilon is no less than the bound, in (0, 1).

    Returns:
        The bound, >= 0. Even with perfect guesses about m canaries it is no more than about log(m / -log(1 -
        confidence)).
    """
    return _largest_refuted(lambda epsilon: one_run_p_value(scores, epsilon, delta), confidence)


def one_run_p_value(scores: CanaryScores, epsilon: float, delta: float) -> float:
    """Probability, if the claim holds, of guesses as good as these.

    Args:
        scores: of the canaries.
        epsilon: the claim, >= 0.
        delta: privacy parameter of the claim, in [0, 1).

    Returns:
        P-value of the claim, in [0, 1]: the least of all numbers of guesses, times how many of these there are.
    """
    canaries = len(scores.included) + len(scores.excluded)
    found = [guesses_p_value(canaries, *guesses, epsilon, delta) for guesses in _guesses(scores)]
    return min(1.0, len(found) * min(found))


def guesses_epsilon(canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> float:
    """Lower bound on epsilon from one given number of guesses.

    Args:
        canaries: how many there are (m), guessed or not.
        guesses: about how many of them there was a guess, included or excluded (r).
        correct: how many guesses were right (v).
        delta: privacy parameter, in [0, 1).
        confidence: probability, over the releases, that epsilon is no less than the bound, in (0, 1).

    Returns:
        The bound, >= 0.
    """
    return _largest_refuted(lambda epsilon: guesses_p_value(canaries, guesses, correct, epsilon, delta), confidence)


def guesses_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Bound on the probability of so many correct guesses, if the release is (epsilon, delta) differentially private.

    Args:
        canaries: how many there are (m), guessed or not.
        guesses: about how many of them there was a guess (r).
        correct: how many guesses were right (v).
        epsilon: privacy parameter, >= 0.
        delta: privacy parameter, in [0, 1).

    Returns:
        P-value, in [0, 1].

    Source: Steinke, Nasr and Jagielski, "Privacy Auditing with One (1) Training Run" (arXiv 2305.08846), main theorem:
    at delta 0, correct guesses are at most Binomial(r, 1 / (1 + exp(-epsilon))); delta adds 2 m delta times the
    greatest mean of the i probabilities just below v.
    """
    at_least = binom.sf(np.arange(correct, -1, -1) - 1, guesses, expit(epsilon))  # v, v - 1 ... 0 correct guesses
    below = (at_least[1:] - at_least[0]) / np.arange(1, correct + 1)
    return float(min(1.0, at_least[0] + 2 * canaries * delta * below.max(initial=0.0)))


def _guesses(scores: CanaryScores) -> Iterator[tuple[int, int]]:
    # Numbers of guesses with those that are right. Of equal scores the wrong ones are taken first, so that the order in
    # which canaries are given tells nothing.
    values = np.concatenate([scores.included, scores.excluded])
    included = np.arange(len(values)) < len(scores.included)
    from_top = np.cumsum(included[np.lexsort((included, -values))])
    from_bottom = np.cumsum(~included[np.lexsort((~included, values))])
    count = 1
    while 2 * count <= len(values):
        yield 2 * count, int(from_top[count - 1] + from_bottom[count - 1])
        count *= 2


def _largest_refuted(p_value: Callable[[float], float], confidence: float) -> float:
    def excess(epsilon: float) -> float:
        return p_value(epsilon) - (1 - confidence)

    if excess(0.0) >= 0:
        return 0.0
    upper = 1.0
    while excess(upper) < 0:
        upper *= 2
        if upper > _MOST:
            return math.inf
    return float(brentq(excess, 0.0, upper, xtol=1e-9))
