# SPDX-License-Identifier: Apache-2.0
"""Privacy loss of a training on samples where the server sees in which rounds a record was."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom

from lightning_recon.privacy.gaussian_accounting import gaussian_delta, gaussian_epsilon, mu_of
from lightning_recon.privacy.mechanism import Adjacency


def visible_sampling_epsilon(
    noise_multiplier: float, sample_rate: float, rounds: int, delta: float, adjacency: Adjacency
) -> float | None:
    """Epsilon of Gaussian releases of random samples, if whoever attacks knows the samples.

    Sampling then amplifies nothing, but a record is seldom in all rounds. The number K of its rounds is binomial, and
    known, so that delta at an epsilon is the mean over K of that of K releases. A record that is removed leaves its
    place in a batch of fixed size empty.

    Args:
        noise_multiplier: Standard deviation of the noise divided by the clipping norm, >= 0.
        sample_rate: Probability with which a record is in a round, in (0, 1].
        rounds: Number of rounds, >= 1.
        delta: Privacy parameter, in (0, 1).
        adjacency: "add_remove" or "replace_one".

    Returns:
        epsilon >= 0; None without noise.
    """
    most = gaussian_epsilon(mu_of(noise_multiplier, rounds, adjacency), delta)
    if most is None or sample_rate == 1:
        return most
    chances = binom.pmf(np.arange(rounds + 1), rounds, sample_rate)
    # Counts left out have, all together, less than a thousandth of delta.
    likely = [int(count) for count in np.flatnonzero(chances > 1e-3 * delta / (rounds + 1)) if count > 0]
    parts = [(float(chances[count]), mu_of(noise_multiplier, count, adjacency)) for count in likely]
    known = [(chance, mu) for chance, mu in parts if mu is not None]
    return mixture_epsilon(known, 0.999 * delta, 2.0 * most + 1.0)


def mixture_epsilon(parts: Sequence[tuple[float, float]], delta: float, most: float) -> float:
    """Epsilon of a Gaussian mechanism that is drawn, and known to whoever attacks.

    Args:
        parts: Probability and mu of each mechanism; with the rest of the probability nothing is released.
        delta: Privacy parameter, in (0, 1).
        most: A number above the epsilon.

    Returns:
        epsilon >= 0, at which delta is the mean of those of the mechanisms.
    """

    def excess(epsilon: float) -> float:
        return sum(chance * gaussian_delta(epsilon, mu) for chance, mu in parts) - delta

    return 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, most, rtol=1e-12))
