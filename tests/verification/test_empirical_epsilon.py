# SPDX-License-Identifier: Apache-2.0
"""Lower bounds on epsilon against published values, known distributions, and each other."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom, kstest

from lightning_recon.errors import UserError
from lightning_recon.privacy.gaussian_accounting import gaussian_epsilon, noise_multiplier_for
from lightning_recon.verification.empirical_epsilon.clopper_pearson import (
    clopper_pearson_epsilon,
    clopper_pearson_p_value,
)
from lightning_recon.verification.empirical_epsilon.gaussian_dp import (
    gaussian_dp_epsilon,
    gaussian_dp_p_value,
    mu_lower_bound,
)
from lightning_recon.verification.empirical_epsilon.lower_bounds import ASSUMPTIONS, lower_bounds
from lightning_recon.verification.empirical_epsilon.one_run import (
    guesses_epsilon,
    guesses_p_value,
    one_run_epsilon,
    one_run_p_value,
)
from lightning_recon.verification.empirical_epsilon.scores import CanaryScores

DELTA = 1e-5
EPSILONS = (clopper_pearson_epsilon, one_run_epsilon, gaussian_dp_epsilon)
P_VALUES = (clopper_pearson_p_value, one_run_p_value, gaussian_dp_p_value)

Bound = Callable[..., float]
PValue = Callable[[CanaryScores, float, float], float]


def drawn(mu: float, canaries: int = 1000, seed: int = 17) -> CanaryScores:
    generator = np.random.default_rng(seed)
    return CanaryScores(generator.normal(mu, 1, canaries // 2), generator.normal(0, 1, canaries // 2))


def mu_for(epsilon: float) -> float:
    return 1 / noise_multiplier_for(epsilon, DELTA, 1, "add_remove")


# --- the one-run bound ---


@pytest.mark.parametrize(
    ("shift", "threshold", "expected"),
    [
        (0.5, 1, 0.180334),
        (0.5, 2, 0.237387),
        (1, 1, 0.965479),
        (1, 2, 1.529332),
        (2, 1, 1.441418),
        (2, 2, 2.490337),
        (4, 1, 1.630045),
        (4, 2, 3.704733),
    ],
)
def test_one_run_agrees_with_jax_privacy_on_the_same_scores(shift: float, threshold: float, expected: float) -> None:
    """Expected: jax_privacy 2.0.0, CanaryScoreAuditor.epsilon_one_run(0.05, 1e-5, Explicit(threshold))."""
    generator = np.random.default_rng(17)
    for value in (0.5, 1, 2, 4):  # the scores that jax_privacy was given were drawn in this order
        scores = CanaryScores(generator.normal(value, 1, 500), generator.normal(0, 1, 500))
        if value == shift:
            break
    correct = int((scores.included >= threshold).sum())
    guesses = correct + int((scores.excluded >= threshold).sum())
    assert guesses_epsilon(1000, guesses, correct, DELTA) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("thresholds", "correct", "wrong", "expected"),
    [(386, 2807, 569, 1.13346), (374, 4499, 167, 2.311945), (140, 8223, 10, 4.395568)],
)
def test_one_run_agrees_with_values_published_by_jax_privacy(
    thresholds: int, correct: int, wrong: int, expected: float
) -> None:
    """Expected: test_epsilon_one_run_close of its tests/auditing_test.py, the best of many thresholds.

    It shares the risk of error among the thresholds; given are their number and the guesses that the best one makes.
    """
    found = guesses_epsilon(20_000, correct + wrong, correct, 1e-6, 1 - 0.05 / thresholds)
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_p_value_of_guesses_without_delta_is_that_of_a_binomial_test() -> None:
    probability = 1 / (1 + math.exp(-1.5))
    assert guesses_p_value(100, 40, 38, 1.5, 0.0) == pytest.approx(binom.sf(37, 40, probability))
    assert guesses_p_value(100, 40, 38, 1.5, 0.01) > guesses_p_value(100, 40, 38, 1.5, 0.0)
    assert guesses_p_value(100, 40, 0, 1.5, 0.01) == 1.0


def test_perfect_guesses_prove_no_more_than_their_number_allows() -> None:
    scores = CanaryScores(np.ones(500), np.zeros(500))
    probability = (0.05 / 9) ** (1 / 512)  # of 2, 4, 8 ... 512 guesses the most, tested at a ninth of the risk
    assert one_run_epsilon(scores, 0.0) == pytest.approx(math.log(probability / (1 - probability)))


def test_the_order_of_canaries_with_equal_scores_tells_nothing() -> None:
    assert one_run_epsilon(CanaryScores(np.zeros(50), np.zeros(50)), 0.0) == 0.0


# --- all three ---


@pytest.mark.parametrize("p_value", P_VALUES)
def test_true_claims_are_refuted_no_more_often_than_the_risk(p_value: PValue) -> None:
    mu, repeats = mu_for(2.0), 200
    refuted = sum(p_value(drawn(mu, 60, seed), 2.0, DELTA) <= 0.05 for seed in range(repeats))
    assert refuted <= binom.ppf(0.999, repeats, 0.05)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_bounds_see_a_large_epsilon_and_not_one_that_is_not_there(epsilon: Bound) -> None:
    assert epsilon(drawn(3.0), DELTA) > 3.5
    assert epsilon(drawn(0.0), DELTA) == 0.0


@pytest.mark.parametrize(("epsilon", "p_value"), list(zip(EPSILONS, P_VALUES, strict=True)))
@pytest.mark.parametrize("confidence", [0.9, 0.999])
def test_a_bound_is_the_claim_whose_p_value_is_the_risk(epsilon: Bound, p_value: PValue, confidence: float) -> None:
    scores = drawn(1.7)
    bound = epsilon(scores, DELTA, confidence)
    assert bound > 0
    assert p_value(scores, bound, DELTA) == pytest.approx(1 - confidence, rel=1e-3)
    assert p_value(scores, bound + 1, DELTA) > p_value(scores, bound, DELTA)


def test_the_scale_and_the_origin_of_scores_do_not_matter() -> None:
    scores = drawn(1.7)
    other = CanaryScores(1e-3 * scores.included - 5, 1e-3 * scores.excluded - 5)
    for bound in EPSILONS:
        assert bound(other, DELTA) == pytest.approx(bound(scores, DELTA))


def test_all_bounds_together_are_each_a_little_lower() -> None:
    scores = drawn(1.7)
    found = lower_bounds(scores, DELTA, claimed=4.0)
    assert [bound.method for bound in found] == list(ASSUMPTIONS)
    for bound, epsilon, p_value in zip(found, EPSILONS, P_VALUES, strict=True):
        assert 0 < bound.epsilon < epsilon(scores, DELTA)
        assert bound.p_value == p_value(scores, 4.0, DELTA)
    (alone,) = lower_bounds(scores, DELTA, methods=["gaussian_dp"])
    assert (alone.epsilon, alone.p_value) == (gaussian_dp_epsilon(scores, DELTA), None)


def test_scores_without_noise_refute_every_claim_only_if_canaries_moved_them() -> None:
    moved, unmoved = CanaryScores(np.ones(50), np.zeros(50)), CanaryScores(np.zeros(50), np.zeros(50))
    assert gaussian_dp_epsilon(moved, DELTA) == math.inf
    assert gaussian_dp_p_value(moved, 1e9, DELTA) == 0.0
    assert [bound(unmoved, DELTA) for bound in EPSILONS] == [0.0, 0.0, 0.0]
    assert all(p_value(unmoved, 1.0, DELTA) > 0.5 for p_value in P_VALUES)


@pytest.mark.parametrize("scores", [([1.0], [0.0, 1.0]), ([0.0, math.nan], [0.0, 1.0]), ([0.0, 1.0], [])])
def test_scores_that_prove_nothing_are_refused(scores: tuple[list[float], list[float]]) -> None:
    with pytest.raises(UserError):
        CanaryScores(np.array(scores[0]), np.array(scores[1]))


# --- the bound of Gaussian DP ---


def test_p_values_of_a_true_claim_are_uniform() -> None:
    mu = mu_for(2.0)
    p_values = [gaussian_dp_p_value(drawn(mu, 20, seed), 2.0, DELTA) for seed in range(300)]
    assert kstest(p_values, "uniform").pvalue > 1e-3


def test_gaussian_dp_comes_close_to_the_true_epsilon_with_many_canaries() -> None:
    for mu in (0.5, 3.0, 1e3, 1e5):  # the last two beyond the reach of the noncentral t distribution
        bound = mu_lower_bound(drawn(mu, 100_000))
        assert 0.96 * mu < bound < mu
        assert gaussian_dp_epsilon(drawn(mu, 100_000), DELTA) == pytest.approx(gaussian_epsilon(bound, DELTA))


def test_directions_without_canaries_sharpen_the_bound() -> None:
    scores = drawn(1.0)
    more = np.random.default_rng(3).normal(0, 1, 20_000)
    with_more = CanaryScores(scores.included, np.concatenate([scores.excluded, more]))
    assert mu_lower_bound(with_more) > mu_lower_bound(scores)


def test_rounds_compose() -> None:
    scores = drawn(1.0)
    four = gaussian_dp_epsilon(scores, DELTA, rounds=4)
    assert four == pytest.approx(gaussian_epsilon(2 * mu_lower_bound(scores), DELTA))
    assert gaussian_dp_p_value(scores, four, DELTA, rounds=4) == pytest.approx(0.05)


# --- the bound of Clopper and Pearson ---


def test_clopper_pearson_by_hand() -> None:
    scores = CanaryScores(np.ones(9), np.zeros(9))
    risk = 0.05 / 2 / 2  # two thresholds (the highest score, both ways round), and two rates
    lowest_tpr = risk ** (1 / 9)
    assert clopper_pearson_epsilon(scores, 0.0) == pytest.approx(math.log(lowest_tpr / (1 - lowest_tpr)))


def test_clopper_pearson_subtracts_delta() -> None:
    scores = drawn(3.0)
    assert clopper_pearson_epsilon(scores, 0.1) < clopper_pearson_epsilon(scores, 0.0)
