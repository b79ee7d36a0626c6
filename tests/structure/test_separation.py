# SPDX-License-Identifier: Apache-2.0
"""Victims whose rows are known in advance: isolated, colliding, and colliding for good."""

import pytest
import torch
from scipy import stats
from torch import Tensor

from lightning_recon.structure.separation import Rows, Separation, active_threshold, separate

INPUTS, LEVEL = 400, 0.3
# Intervals of every direction: open at both ends, edges at 1, 2, ... UNITS - 1.
UNITS = 6


def released(
    places: list[tuple[int, ...]], noise: float, voices: list[float] | None = None
) -> tuple[Rows, Tensor, Tensor]:
    """Rows of victims that excite the given unit of every direction.

    Returns:
        The rows; each victim's contribution to each of its rows, shape (V, INPUTS); memberships, shape (V, K).
    """
    count = len(places[0])
    basis = torch.linalg.qr(torch.randn(INPUTS, count)).Q.T
    voices = voices or [1.0] * len(places)
    inputs, pilot = torch.zeros(count * UNITS, INPUTS), torch.zeros(count * UNITS)
    contributions = torch.zeros(len(places), INPUTS)
    membership = torch.zeros(len(places), count * UNITS)
    for victim, (place, voice) in enumerate(zip(places, voices, strict=True)):
        encoded = 0.05 * torch.randn(INPUTS)
        # The direction's unit interval is centred on 0.5 + its place; energies are those of clipped rows, about 1.
        measured = torch.tensor(place) + 0.5 + 0.4 * (torch.rand(count) - 0.5)
        encoded += basis.T @ (0.1 * (measured - UNITS / 2) - basis @ encoded)
        contributions[victim] = voice * encoded
        for direction, unit in enumerate(place):
            row = direction * UNITS + unit
            inputs[row] += voice * encoded
            pilot[row] += voice * LEVEL
            membership[victim, row] = 1
    edges = 0.1 * (torch.arange(1, UNITS) - UNITS / 2)
    infinity = torch.tensor([torch.inf])
    rows = Rows(
        inputs=inputs + noise * torch.randn_like(inputs),
        pilot=pilot + noise * torch.randn_like(pilot),
        pilot_level=LEVEL,
        noise=noise,
        directions=basis,
        unit_direction=torch.arange(count).repeat_interleave(UNITS),
        lower=torch.cat([-infinity, edges]).repeat(count),
        upper=torch.cat([edges, infinity]).repeat(count),
    )
    return rows, contributions, membership


def search(rows: Rows, victims: int) -> Separation:
    return separate(rows, torch.ones(INPUTS), victims, 0.01)


def order(combined: Tensor, contributions: Tensor) -> list[int]:
    """Which victim each combination resembles."""
    return torch.cdist(combined, contributions).argmin(dim=1).tolist()


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.01])
@pytest.mark.parametrize("voices", [None, [1.0, -1.0, 0.5, -0.7]])
def test_isolated_victims_are_found_in_their_rows(noise: float, voices: list[float] | None) -> None:
    rows, contributions, membership = released([(0, 5, 1), (1, 4, 2), (3, 3, 0), (5, 0, 4)], noise, voices)
    found = search(rows, 6)
    combined = found.combine @ rows.inputs
    victims = order(combined, contributions)
    assert (sorted(victims), found.unresolved) == ([0, 1, 2, 3], 0)
    # Each is the mean of its three rows, so the noise is that of one row divided by √3.
    torch.testing.assert_close(found.combine, membership[victims] / 3, rtol=0, atol=1e-6)
    error = (combined - contributions[victims]).square().mean(dim=1).sqrt()
    assert bool((error < 1.2 * noise / 3**0.5 + 1e-6).all())


COLLISIONS = {
    "chain": [(0, 0), (0, 1), (2, 1), (2, 3)],
    "star": [(0, 0), (0, 1), (0, 2), (3, 3)],
    "two shared rows of three": [(0, 0, 0), (0, 0, 1), (2, 3, 4)],
    "every victim shares a row": [(0, 0, 5), (0, 1, 4), (1, 1, 3), (1, 2, 2), (2, 2, 1)],
}


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.01])
@pytest.mark.parametrize("case", COLLISIONS)
def test_collisions_are_resolved_by_peeling(case: str, noise: float) -> None:
    places = COLLISIONS[case]
    rows, contributions, membership = released(places, noise, [1.0, -0.8, 1.1, 0.9, -1.0][: len(places)])
    found = search(rows, len(places))
    combined = found.combine @ rows.inputs
    victims = order(combined, contributions)
    assert (sorted(victims), found.unresolved) == (list(range(len(places))), 0)
    torch.testing.assert_close(found.combine, torch.linalg.pinv(membership.T)[victims], rtol=0, atol=1e-5)
    predicted = noise * found.combine.norm(dim=1)
    error = (combined - contributions[victims]).square().mean(dim=1).sqrt()
    assert bool((error < 1.2 * predicted + 1e-6).all())


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.01])
def test_a_cycle_without_an_end_is_reported_and_not_passed_off_as_pictures(noise: float) -> None:
    # Rows 0 and 1 of both directions hold two victims each, all four of them in a ring; the fifth stands alone.
    rows, contributions, _ = released([(0, 0), (0, 1), (1, 0), (1, 1), (4, 4)], noise)
    found = search(rows, 5)
    assert order(found.combine @ rows.inputs, contributions) == [4]
    assert found.unresolved == 4


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.01])
@pytest.mark.parametrize("voice", [-1.0, -0.5])
def test_two_victims_that_share_all_rows_are_reported(voice: float, noise: float) -> None:
    # Opposite signs: what the row measures belongs into another interval than the row's own.
    rows, contributions, _ = released([(0, 0, 1), (0, 0, 1), (4, 4, 4)], noise, [1.0, voice, 1.0])
    found = search(rows, 3)
    assert order(found.combine @ rows.inputs, contributions) == [2]
    assert found.unresolved == 3


def test_pure_noise_shows_no_victim_more_often_than_allowed() -> None:
    alarms, trials = 0, 300
    for _ in range(trials):
        rows, _, _ = released([(0, 0, 0)], 0.1)
        noise = 0.1 * torch.randn(len(rows.inputs), INPUTS + 1)
        empty = Rows(**{**vars(rows), "inputs": noise[:, :-1], "pilot": noise[:, -1]})
        found = separate(empty, torch.ones(INPUTS), 3, 0.05)
        alarms += len(found.combine) > 0 or found.unresolved > 0
    assert alarms <= stats.binom.isf(1e-3, trials, 0.05)
    # Nor is the test blind: the rows are as often active as announced, within chance.
    assert alarms >= stats.binom.ppf(1e-3, trials, 0.05)


def test_no_more_victims_than_announced() -> None:
    rows, contributions, _ = released([(0, 0), (1, 1), (2, 2)], 0.0)
    found = search(rows, 2)
    assert len(set(order(found.combine @ rows.inputs, contributions))) == 2
    assert found.unresolved == 2


def test_a_single_unit_is_taken_as_it_is() -> None:
    rows, _, _ = released([(0,)], 0.1)
    only = Rows(**{**vars(rows), **{name: getattr(rows, name)[:1] for name in ("inputs", "pilot", "lower", "upper")}})
    found = search(only, 1)
    assert (found.combine.tolist(), found.unresolved) == ([[1.0]], 0)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_with_one_direction_active_rows_are_victims_loudest_first(noise: float) -> None:
    rows, contributions, _ = released([(1,), (3,), (4,)], noise, [0.5, -1.5, 1.0])
    found = search(rows, 5)
    assert order(found.combine @ rows.inputs, contributions) == [1, 2, 0]
    assert len(search(rows, 2).combine) == 2


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
