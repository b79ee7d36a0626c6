# SPDX-License-Identifier: Apache-2.0
"""Accounting of sampled steps against closed forms, another library's values, and simulated trainings."""

import math
import warnings

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from lightning_recon.errors import UserError
from lightning_recon.privacy import subsampled_accounting as subsampling
from lightning_recon.privacy.gaussian_accounting import gaussian_epsilon, mu_of, noise_multiplier_for
from lightning_recon.privacy.mechanism import Adjacency
from lightning_recon.privacy.subsampled_accounting import training_epsilon, training_noise_multiplier


@pytest.mark.parametrize(("z", "rate"), [(0.6, 0.1), (1.0, 0.01), (0.3, 0.5), (2.0, 0.9)])
def test_one_sampled_step_in_closed_form(z: float, rate: float) -> None:
    # With and without a record that takes part with probability q, delta(epsilon) = q * delta_Gauss(epsilon'), where
    # exp(epsilon) - 1 = q (exp(epsilon') - 1).
    alone = gaussian_epsilon(1 / z, 1e-5 / rate)
    assert alone is not None
    expected = math.log1p(rate * math.expm1(alone))
    found = training_epsilon(z, rate, 1, 1e-5, "add_remove")
    assert found == pytest.approx(expected, rel=0.02, abs=0.011)
    assert found >= expected - 1e-3  # an upper bound


@pytest.mark.parametrize("adjacency", ["add_remove", "replace_one"])
def test_without_sampling_steps_compose_plainly(adjacency: Adjacency) -> None:
    found = training_epsilon(0.7, 1.0, 9, 1e-5, adjacency)
    assert found == gaussian_epsilon(mu_of(0.7, 9, adjacency), 1e-5)


def test_a_training_costs_more_the_longer_the_louder_and_the_more_often_a_picture_is_seen() -> None:
    def cost(z: float = 1.0, rate: float = 0.01, steps: int = 1000) -> float:
        epsilon = training_epsilon(z, rate, steps, 1e-5, "add_remove")
        assert epsilon is not None
        return epsilon

    assert cost(steps=0) == 0 < cost(steps=100) < cost() < cost(steps=4000)
    assert cost(z=2.0) < cost() < cost(z=0.5)
    assert cost(rate=0.001) < cost() < cost(rate=0.1)
    assert training_epsilon(0.0, 0.01, 10, 1e-5, "add_remove") is None


@pytest.mark.parametrize("z", [2e-4, 0.01, 0.1])
def test_a_cost_is_stated_however_low_the_noise(z: float) -> None:
    found, plain = training_epsilon(z, 0.3, 10, 1e-5, "add_remove"), gaussian_epsilon(mu_of(z, 10, "add_remove"), 1e-5)
    assert found is not None
    assert plain is not None
    # A picture is in at least one of ten steps but for a probability of 0.03 > delta.
    assert gaussian_epsilon(1 / z, 1e-5 / 0.97) < found <= plain


@pytest.mark.parametrize("adjacency", ["add_remove", "replace_one"])
def test_numerical_composition_at_nearly_full_sampling_is_the_exact_gaussian(adjacency: Adjacency) -> None:
    exact = gaussian_epsilon(mu_of(2.0, 7, adjacency), 1e-5)
    assert exact is not None
    compose = {
        "add_remove": subsampling._present_or_absent,
        "replace_one": subsampling._one_or_another,
    }[adjacency]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numerical = compose(2.0, 1 - 1e-9, 7, 1e-5, exact)[-1]
    assert exact - 1e-3 <= numerical <= 1.02 * exact


@pytest.mark.parametrize(
    ("z", "rate", "steps", "present", "replaced"),
    [
        # Upper bounds of Google's dp-accounting 0.6, losses discretised to 1e-3.
        (1.0, 0.01, 1000, 1.8289, 2.8440),
        (0.6, 0.01, 1000, 7.4338, 8.7675),
        (2.0, 0.05, 2000, 5.4725, 11.4570),
        (0.6, 4 / 11, 6, 14.8271, 17.3752),
        (0.3, 0.5, 1, 17.9054, 18.5986),
    ],
)
def test_both_adjacencies_as_another_library_has_them(
    z: float, rate: float, steps: int, present: float, replaced: float
) -> None:
    for adjacency, expected in (("add_remove", present), ("replace_one", replaced)):
        found = training_epsilon(z, rate, steps, 1e-5, adjacency)
        assert found is not None
        assert expected - 2e-3 <= found <= 1.02 * expected + 0.011


@pytest.mark.parametrize(("z", "rate"), [(0.6, 0.1), (1.0, 0.01), (2.0, 0.9)])
def test_one_replaced_step_by_quadrature(z: float, rate: float) -> None:
    epsilon = training_epsilon(z, rate, 1, 1e-5, "replace_one")
    assert epsilon is not None

    def excess(output: float, epsilon: float) -> float:
        one, other = ((1 - rate) * norm.pdf(output, 0, z) + rate * norm.pdf(output, shift, z) for shift in (1, -1))
        return float(max(0.0, one - math.exp(epsilon) * other))

    delta, below = (
        quad(excess, -12 * z, 1 + 12 * z, args=(e,), limit=500)[0] for e in (epsilon, 0.97 * epsilon - 0.02)
    )
    assert delta <= 1e-5 < below


def test_replaced_records_in_simulated_trainings() -> None:
    z, rate, steps, delta = 0.8, 0.2, 10, 0.01
    epsilon = training_epsilon(z, rate, steps, delta, "replace_one")
    assert epsilon is not None
    generator = np.random.default_rng(0)
    output = z * generator.standard_normal((200_000, steps)) + (generator.random((200_000, steps)) < rate)
    one, other = (np.log((1 - rate) + rate * np.exp((sign * output - 0.5) / z**2)).sum(1) for sign in (1, -1))
    # delta(epsilon) = E_P max(0, 1 - exp(epsilon - loss))
    for at, holds in ((epsilon, True), (0.97 * epsilon - 0.02, False)):
        excess = np.maximum(0, 1 - np.exp(at - (one - other)))
        margin = 4 * excess.std() / math.sqrt(len(excess))
        assert (excess.mean() <= delta + margin) if holds else (excess.mean() >= delta - margin)
        assert margin < 0.1 * delta


def test_replacing_costs_more_than_adding_and_sampling_less_than_not() -> None:
    for z, rate, steps in [(0.7, 0.1, 50), (3.0, 0.3, 200), (0.1, 0.3, 10)]:
        one, other = (training_epsilon(z, rate, steps, 1e-5, name) for name in ("add_remove", "replace_one"))
        plain = gaussian_epsilon(mu_of(z, steps, "replace_one"), 1e-5)
        assert one is not None
        assert other is not None
        assert plain is not None
        assert one < other < plain


@pytest.mark.parametrize("adjacency", ["add_remove", "replace_one"])
def test_a_delta_too_small_for_numerical_composition_is_accounted_for(adjacency: Adjacency) -> None:
    tiny, usual = (training_epsilon(1.0, 0.1, 10, delta, adjacency) for delta in (1e-18, 1e-5))
    assert tiny is not None
    assert usual is not None
    assert usual < tiny <= (gaussian_epsilon(mu_of(1.0, 10, adjacency), 1e-18) or 0)


@pytest.mark.parametrize("z", [2e-4, 0.02])
def test_a_replaced_record_is_accounted_for_however_low_the_noise(z: float) -> None:
    found = training_epsilon(z, 0.3, 10, 1e-5, "replace_one")
    assert found is not None
    assert gaussian_epsilon(2 / z, 1e-5 / 0.97) < found <= gaussian_epsilon(mu_of(z, 10, "replace_one"), 1e-5)


@pytest.mark.parametrize("adjacency", [pytest.param("add_remove", marks=pytest.mark.slow), "replace_one"])
def test_the_noise_for_a_training_is_enough_and_hardly_more(adjacency: Adjacency) -> None:
    z = training_noise_multiplier(8.0, 0.05, 30, 1e-5, adjacency)
    reached, less = (training_epsilon(noise, 0.05, 30, 1e-5, adjacency) for noise in (z, 0.98 * z))
    assert reached is not None
    assert less is not None
    assert 7.5 < reached <= 8.0 < less
    assert z < noise_multiplier_for(8.0, 1e-5, 30, adjacency) / 3  # sampling spares noise
    assert training_noise_multiplier(8.0, 1.0, 100, 1e-5, adjacency) == noise_multiplier_for(8.0, 1e-5, 100, adjacency)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5, math.nan])
def test_impossible_rate_is_named(rate: float) -> None:
    with pytest.raises(UserError, match="sample rate is"):
        training_epsilon(1.0, rate, 1, 1e-5, "add_remove")


def test_an_epsilon_that_no_noise_reaches_is_named() -> None:
    with pytest.raises(UserError, match="epsilon is 0"):
        training_noise_multiplier(0.0, 0.1, 1, 1e-5, "add_remove")


def test_no_epsilon_is_negative() -> None:
    # Renyi accounting says -4e-5 here.
    assert training_epsilon(2.0, 0.01, 1, 0.01, "add_remove") == 0.0
