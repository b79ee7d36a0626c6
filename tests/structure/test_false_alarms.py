# SPDX-License-Identifier: Apache-2.0
"""False alarms come as often as stated, and what is really there is detected."""

import pytest
import torch
from scipy import stats

from lightning_recon.structure.detection.false_alarms import active_threshold, bounded, typical_weights


@pytest.mark.parametrize("false_alarm", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("count", [1, 30, 500])
def test_the_threshold_is_exact_for_equal_weights(count: int, false_alarm: float) -> None:
    trials = 20_000
    threshold = active_threshold(torch.full((count,), 0.3), false_alarm)
    alarms = int((0.3 * torch.randn(trials, count).square().sum(dim=1) > threshold).sum())
    low, high = stats.binom.ppf(1e-4, trials, false_alarm), stats.binom.isf(1e-4, trials, false_alarm)
    assert low <= alarms <= high


@pytest.mark.parametrize("false_alarm", [0.1, 0.01, 0.001])
def test_the_threshold_is_close_for_wiener_weights(false_alarm: float) -> None:
    trials = 40_000
    power = torch.arange(1, 301) ** -1.5
    weights = power / (power + 0.01)
    alarms = int((torch.randn(trials, 300).square() @ weights > active_threshold(weights, false_alarm)).sum())
    # Satterthwaite's χ² has the right mean and variance; its far tail is a little too light.
    assert stats.binom.ppf(1e-4, trials, 0.7 * false_alarm) <= alarms
    assert alarms <= stats.binom.isf(1e-4, trials, 1.6 * false_alarm)


def test_a_victim_at_its_bound_is_seldom_above_it_and_a_pair_is() -> None:
    trials, count, noise = 20_000, 50, 0.05
    signal = torch.full((count,), (1 / count) ** 0.5)
    for energy, low, high in ((1.0, 0.005, 0.02), (2.0, 0.99, 1.0)):
        detected = energy**0.5 * signal + noise * torch.randn(trials, count)
        found = detected.square().sum(dim=1) - count * noise**2
        above = ~bounded(found, torch.full((trials,), noise**2), float(count), 1.0, 0.01)
        assert low <= float(above.double().mean()) <= high


@pytest.mark.parametrize(
    ("count", "spread", "rate"), [(3, 0.15, 1), (3, 0.8, 10), (6, 0.3, 2), (6, 0.8, 5), (31, 0.3, 2), (31, 0.8, 2)]
)
def test_unequal_gradient_weights_are_seldom_taken_for_pairs(count: int, spread: float, rate: float) -> None:
    trials = 2000
    alarms = sum(
        not typical_weights(spread * torch.randn(count), torch.zeros(count), 0.01).all() for _ in range(trials)
    )
    assert alarms <= stats.binom.isf(1e-4, trials, 0.01 * rate)


@pytest.mark.parametrize(("count", "doubt", "detected"), [(6, 0.0, True), (31, 0.0, True), (6, 0.5, False)])
def test_a_pair_of_equal_gradient_weights_is_detected_unless_noise_hides_it(
    count: int, doubt: float, detected: bool
) -> None:
    for _ in range(50):
        gradient_weights = 0.05 * torch.randn(count)
        gradient_weights[0] += torch.tensor(2.0).log()
        usual = typical_weights(gradient_weights, torch.full((count,), doubt), 0.01)
        assert usual.tolist() == [not detected, *[True] * (count - 1)]
