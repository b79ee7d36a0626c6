# SPDX-License-Identifier: Apache-2.0
"""Numerical accounting of a training whose every step uses a random sample of the records."""

import math
import warnings
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import ndtr, ndtri

from lightning_recon.errors import UserError
from lightning_recon.opacus_import import import_opacus
from lightning_recon.privacy.composition import PrivacyLoss, composed_epsilon, epsilon_error
from lightning_recon.privacy.gaussian_accounting import gaussian_epsilon, mu_of, noise_multiplier_for
from lightning_recon.privacy.mechanism import Adjacency


def training_epsilon(
    noise_multiplier: float, sample_rate: float, steps: int, delta: float, adjacency: Adjacency
) -> float | None:
    """Epsilon of a training whose every step releases a clipped sum with Gaussian noise.

    Args:
        noise_multiplier: Standard deviation of the noise divided by the clipping norm, >= 0.
        sample_rate: Probability with which a record takes part in a step (Poisson sampling), in (0, 1]; 1 where every
            step is about the same record.
        steps: Steps so far, >= 0.
        delta: Privacy parameter, in (0, 1).
        adjacency: "add_remove": the record may take part, or is not there; "replace_one": another is in its place.

    Returns:
        epsilon >= 0, the least of the known bounds: exact at sample rate 1, else one or two hundredths above the true
        value where numerical composition works; None without noise. Numerical composition follows one pair of
        distributions (adding a record is taken to be no worse than removing one, and replacing one to shift its
        gradient by ±1), which no setting contradicted that was compared, and which is not proved.

    Raises:
        UserError: If delta is outside (0, 1), or the sample rate outside (0, 1].

    Source: Gopi et al. (2021, arXiv 2106.02848), numerical composition of privacy loss random variables, upper end of
    its error; for "replace_one" the pair is (1-q) N(0) + q N(1) and (1-q) N(0) + q N(-1), as in Google's dp-accounting.
    Mironov et al. (2019, arXiv 1908.10530), Renyi accounting of "add_remove", for noise too low for that. The exact
    Gaussian mechanism (`gaussian_epsilon`) of all steps, which holds whatever the sampling.
    """
    if not 0 < sample_rate <= 1:
        raise UserError(f"the sample rate is {sample_rate}: give a probability above 0, up to 1")
    plain = gaussian_epsilon(mu_of(noise_multiplier, max(1, steps), adjacency), delta)
    if plain is None or steps == 0:
        return None if plain is None else 0.0
    if sample_rate == 1:
        return plain
    bounds_of = _present_or_absent if adjacency == "add_remove" else _one_or_another
    with warnings.catch_warnings():  # of orders at the end of their range, and of tails far out: bounds all the same
        warnings.simplefilter("ignore")
        found = bounds_of(noise_multiplier, sample_rate, steps, delta, plain)
    # Renyi accounting falls below 0 where delta is large.
    return max(0.0, min(bound for bound in [plain, *found] if math.isfinite(bound)))


def training_noise_multiplier(
    epsilon: float, sample_rate: float, steps: int, delta: float, adjacency: Adjacency
) -> float:
    """The noise multiplier at which `training_epsilon` keeps to the epsilon asked for.

    Args:
        epsilon: Privacy parameter to reach, > 0.
        sample_rate: Probability with which a record takes part in a step (Poisson sampling), in (0, 1].
        steps: Steps of the training, >= 1.
        delta: Privacy parameter, in (0, 1).
        adjacency: Which neighbours are compared; see `training_epsilon`.

    Returns:
        Standard deviation of the noise divided by the clipping norm: at most a hundredth more than needed.

    Raises:
        UserError: If delta, the sample rate or epsilon is outside its range.

    Source: `training_epsilon`, solved by bisection; `noise_multiplier_for` at sample rate 1.
    """
    enough = noise_multiplier_for(epsilon, delta, steps, adjacency)  # sampling never needs more
    if sample_rate == 1:
        return enough
    if not epsilon > 0:
        raise UserError(f"epsilon is {epsilon}: give a number above 0")

    def keeps(noise_multiplier: float) -> bool:
        reached = training_epsilon(noise_multiplier, sample_rate, steps, delta, adjacency)
        return reached is not None and reached <= epsilon

    too_little = enough / 2
    while keeps(too_little):
        enough, too_little = too_little, too_little / 2
    while enough / too_little > 1.01:
        middle = math.sqrt(enough * too_little)
        enough, too_little = (middle, too_little) if keeps(middle) else (enough, middle)
    return enough


def _present_or_absent(z: float, rate: float, steps: int, delta: float, plain: float) -> list[float]:
    # Bounds on the epsilon of (1-q) N(0) + q N(1) against N(0); the other direction was nowhere found to be worse.
    import_opacus()  # takes seconds, and most runs do without
    from opacus.accountants import PRVAccountant, RDPAccountant

    renyi, numerical = RDPAccountant(), PRVAccountant()
    renyi.history = numerical.history = [(z, rate, steps)]
    bounds = [float(renyi.get_epsilon(delta))]
    with suppress(RuntimeError, ValueError):  # where the noise is too low, or delta, for any grid
        bounds.append(float(numerical.get_epsilon(delta, eps_error=epsilon_error(min(plain, *bounds)))))
    return bounds


def _one_or_another(z: float, rate: float, steps: int, delta: float, plain: float) -> list[float]:
    # Bounds on the epsilon of P = (1-q) N(0) + q N(1) against Q = (1-q) N(0) + q N(-1). Opacus composes any privacy
    # loss whose distribution it is given; of this pair it does not know.
    import_opacus()
    from opacus.accountants.analysis import prv

    loss = _ReplacedLoss(z, rate)

    def between(low: float, high: float) -> PrivacyLoss:
        truncated: PrivacyLoss = prv.TruncatedPrivacyRandomVariable(loss, low, high)
        return truncated

    return [composed_epsilon(between, loss.reach(steps, delta / 1000), steps, delta, plain)]


class _ReplacedLoss:
    """Privacy loss of one step when a record is replaced, log P(x)/Q(x) of an output x drawn from P."""

    def __init__(self, z: float, rate: float) -> None:
        self.z, self.rate = z, rate

    def at(self, output: NDArray[np.float64]) -> NDArray[np.float64]:
        """The loss at an output, in clipping norms along the record's gradient; it grows with the output."""
        absent, present = math.log1p(-self.rate), math.log(self.rate)
        over, under = (np.logaddexp(absent, present + (side - 0.5) / self.z**2) for side in (output, -output))
        return np.asarray(over - under)

    def output(self, loss: NDArray[np.float64]) -> NDArray[np.float64]:
        """The output at which the loss has this value: with y = exp(x/z^2) a quadratic equation."""
        size = np.abs(loss)
        absent, faded = 1 - self.rate, np.exp(-size)
        log_half = math.log(self.rate) - 0.5 / self.z**2
        root = np.sqrt((absent * (1 - faded)) ** 2 + 4 * math.exp(2 * log_half) * faded)
        with np.errstate(divide="ignore", invalid="ignore"):  # at a loss of 0, where the output is 0 too
            log_y = size + np.log(absent * (1 - faded) + root) - math.log(2) - log_half
            return np.asarray(np.where(size == 0, 0.0, np.sign(loss) * self.z**2 * log_y))

    def cdf(self, loss: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability of a loss no larger."""
        output = self.output(np.asarray(loss, dtype=np.float64))
        return np.asarray((1 - self.rate) * ndtr(output / self.z) + self.rate * ndtr((output - 1) / self.z))

    def reach(self, steps: int, lost: float) -> float:
        """What the loss of all steps, and of each, stays below but for a probability of `lost`: Chernoff's bound."""
        tail = -float(ndtri(lost / (8 * steps)))
        normal = np.linspace(-tail, tail, 4001)
        density = np.exp(-(normal**2) / 2)
        losses = self.at(np.concatenate([self.z * normal, 1 + self.z * normal]))
        weights = np.log(np.concatenate([(1 - self.rate) * density, self.rate * density]) / density.sum())

        def bound(log_order: float) -> float:
            order = math.exp(log_order)
            return float((steps * np.logaddexp.reduce(weights + order * losses) + math.log(4 / lost)) / order)

        return max(float(losses.max()), float(minimize_scalar(bound, bounds=(-20, 10)).fun)) + 3
