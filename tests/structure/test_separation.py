# SPDX-License-Identifier: Apache-2.0
"""Victims whose rows are known in advance: isolated, colliding, and colliding for good."""

from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Tensor

from lightning_recon.structure.detection.bayes_factors import Rows
from lightning_recon.structure.detection.false_alarms import active_threshold
from lightning_recon.structure.detection.separation import Separation, separate
from lightning_recon.structure.detection.wiener import RowPrior

INPUTS, LEVEL = 400, 0.3
# Every input has the same expected energy, together 1.
PRIOR = RowPrior(torch.full((INPUTS,), 1 / INPUTS), LEVEL, log_contrast_std=0.5, scale=1.0, log_scale_std=0.5)
# Intervals of every direction: open at both ends, edges at 1, 2, ... UNITS - 1.
UNITS = 6


def released(
    places: list[tuple[int, ...]], noise: float, gradient_weights: list[float] | None = None
) -> tuple[Rows, Tensor, Tensor]:
    """Rows of victims that excite the given unit of every direction.

    Returns:
        The rows; each victim's contribution to each of its rows, shape (V, INPUTS); memberships, shape (V, K).
    """
    count = len(places[0])
    basis = torch.linalg.qr(torch.randn(INPUTS, count)).Q.T
    gradient_weights = gradient_weights or [1.0] * len(places)
    inputs, pilot = torch.zeros(count * UNITS, INPUTS), torch.zeros(count * UNITS)
    contributions = torch.zeros(len(places), INPUTS)
    membership = torch.zeros(len(places), count * UNITS)
    for victim, (place, gradient_weight) in enumerate(zip(places, gradient_weights, strict=True)):
        encoded = 0.05 * torch.randn(INPUTS)
        # The direction's unit interval is centred on 0.5 + its place; energies are those of clipped rows, about 1.
        measured = torch.tensor(place) + 0.5 + 0.4 * (torch.rand(count) - 0.5)
        encoded += basis.T @ (0.1 * (measured - UNITS / 2) - basis @ encoded)
        contributions[victim] = gradient_weight * encoded
        for direction, unit in enumerate(place):
            row = direction * UNITS + unit
            inputs[row] += gradient_weight * encoded
            pilot[row] += gradient_weight * LEVEL
            membership[victim, row] = 1
    edges = 0.1 * (torch.arange(1, UNITS) - UNITS / 2)
    infinity = torch.tensor([torch.inf])
    rows = Rows(
        inputs=inputs + noise * torch.randn_like(inputs),
        pilot=pilot + noise * torch.randn_like(pilot),
        noise=noise,
        directions=basis,
        unit_direction=torch.arange(count).repeat_interleave(UNITS),
        lower=torch.cat([-infinity, edges]).repeat(count),
        upper=torch.cat([edges, infinity]).repeat(count),
    )
    return rows, contributions, membership


def search(rows: Rows, victims: int) -> Separation:
    return separate(rows, PRIOR, victims, 0.01)


def order(combined: Tensor, contributions: Tensor) -> list[int]:
    """Which victim each combination resembles."""
    return torch.cdist(combined, contributions).argmin(dim=1).tolist()


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.01])
@pytest.mark.parametrize("gradient_weights", [None, [1.0, -1.0, 0.5, -0.7]])
def test_isolated_victims_are_found_in_their_rows(noise: float, gradient_weights: list[float] | None) -> None:
    rows, contributions, membership = released([(0, 5, 1), (1, 4, 2), (3, 3, 0), (5, 0, 4)], noise, gradient_weights)
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
    "two shared rows of three": [(2, 2, 1), (2, 2, 4), (1, 3, 2)],
    "every victim shares a row": [(0, 0, 5), (0, 1, 4), (1, 1, 3), (1, 2, 2), (2, 2, 1)],
}


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.01])
@pytest.mark.parametrize("case", COLLISIONS)
def test_collisions_are_resolved_by_peeling(case: str, noise: float) -> None:
    places = COLLISIONS[case]
    rows, contributions, membership = released(places, noise, [1.0, 0.8, -1.1, 0.9, -1.0][: len(places)])
    found = search(rows, len(places))
    combined = found.combine @ rows.inputs
    victims = order(combined, contributions)
    assert (sorted(victims), found.unresolved) == (list(range(len(places))), 0)
    torch.testing.assert_close(found.combine, torch.linalg.pinv(membership.T)[victims], rtol=0, atol=1e-5)
    predicted = noise * found.combine.norm(dim=1)
    error = (combined - contributions[victims]).square().mean(dim=1).sqrt()
    assert bool((error < 1.2 * predicted + 1e-6).all())


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.01])
def test_a_cycle_without_an_end_is_reported_and_not_passed_off_as_images(noise: float) -> None:
    # Rows 0 and 1 of both directions hold two victims each, all four of them in a ring; the fifth stands alone.
    rows, contributions, _ = released([(0, 0), (0, 1), (1, 0), (1, 1), (4, 4)], noise)
    found = search(rows, 5)
    assert order(found.combine @ rows.inputs, contributions) == [4]
    assert found.unresolved == 4


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_two_victims_that_share_all_rows_with_opposite_signs_are_reported(noise: float) -> None:
    # Their pilots nearly cancel, so what the row measures belongs into another interval than the row's own.
    rows, contributions, _ = released([(2, 3, 1), (2, 3, 1), (4, 4, 4)], noise, [1.0, -0.95, 1.0])
    found = search(rows, 3)
    assert order(found.combine @ rows.inputs, contributions) == [2]
    assert found.unresolved == 3


def test_pure_noise_shows_no_victim_more_often_than_allowed() -> None:
    alarms, trials = 0, 300
    rows, _, _ = released([(0, 0, 0)], 0.1)
    for _ in range(trials):
        noise = 0.1 * torch.randn(len(rows.inputs), INPUTS + 1)
        empty = Rows(**{**vars(rows), "inputs": noise[:, :-1], "pilot": noise[:, -1]})
        found = separate(empty, PRIOR, 3, 0.05)
        alarms += len(found.combine) > 0 or found.unresolved > 0
    assert alarms <= stats.binom.isf(1e-3, trials, 0.05)
    # Nor is the test blind: half of the allowance is for single rows, and is used up within chance.
    assert alarms >= stats.binom.ppf(1e-3, trials, 0.025)


@pytest.mark.parametrize("count", [1, 3])
def test_empty_rows_show_no_victim_whatever_the_directions(count: int) -> None:
    rows, _, _ = released([(0,) * count], 0.0)
    alarms, trials = 0, 200
    for _ in range(trials):
        noise = 0.2 * torch.randn(len(rows.inputs), INPUTS + 1)
        empty = Rows(**{**vars(rows), "inputs": noise[:, :-1], "pilot": noise[:, -1], "noise": 0.2})
        alarms += len(separate(empty, PRIOR, 8, 0.05).combine) > 0
    assert alarms <= stats.binom.isf(1e-3, trials, 0.05)


def test_rows_below_the_noise_are_found_together() -> None:
    found, single, trials = 0, 0, 20
    noise = 0.12
    for _ in range(trials):
        rows, _, membership = released([(1, 4, 2)], noise)
        outcome = search(rows, 1)
        found += len(outcome.combine) == 1 and bool((outcome.combine[0] > 0).equal(membership[0] > 0))
        energy = rows.inputs.square().sum(dim=1)[membership[0] > 0]
        threshold = active_threshold(torch.ones(INPUTS), 0.01 / len(rows.inputs)) * noise**2
        single += bool((energy > threshold).all())
    assert found >= 0.85 * trials
    assert single <= 0.6 * trials


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.01])
@pytest.mark.parametrize("count", [1, 3])
def test_a_pair_in_all_its_rows_is_reported_by_its_energy(noise: float, count: int) -> None:
    places = [(2, 3, 1), (2, 3, 1), (4, 4, 4), (1, 0, 0)]
    rows, contributions, _ = released([place[:count] for place in places], noise)
    # Clipped alone, no victim has more energy than the clip allows.
    bound = float(contributions.square().sum(dim=1).max()) + LEVEL**2
    found = separate(rows, PRIOR, 4, 0.01, single_energy=bound)
    assert sorted(order(found.combine @ rows.inputs, contributions)) == [2, 3]
    assert found.unresolved == count
    # Where nothing is missing, there is no room for a pair.
    assert len(separate(rows, PRIOR, 3, 0.01, single_energy=bound).combine) == 3


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.01])
def test_a_pair_in_all_its_rows_is_reported_by_its_gradient_weight_under_one_clip(noise: float) -> None:
    places = [(2, 3, 1), (2, 3, 1), (4, 4, 4), (1, 0, 0), (3, 1, 3), (5, 5, 5)]
    rows, contributions, _ = released(places, noise, [1.0, 1.05, -0.97, 1.02, -1.0, 0.95])
    found = search(rows, 6)
    assert sorted(order(found.combine @ rows.inputs, contributions)) == [2, 3, 4, 5]
    assert found.unresolved == 3
    # Where nothing is missing, there is no room for a pair.
    assert len(search(rows, 5).combine) == 5


def test_a_lone_victim_is_seldom_taken_for_a_pair() -> None:
    flagged, trials = 0, 300
    places = [(2, 3), (4, 4), (1, 0), (3, 1), (0, 5)]
    for _ in range(trials):
        rows, contributions, _ = released(places, 0.02)
        largest = float(contributions.square().sum(dim=1).max()) + LEVEL**2
        found = separate(rows, PRIOR, 6, 0.05, single_energy=largest)
        flagged += 5 - len(found.combine)
    # At most the largest of each batch is at its bound.
    assert flagged <= stats.binom.isf(1e-3, trials, 0.05)


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.01])
@pytest.mark.parametrize("gradient_weights", [(1.0, 1.0), (1.0, 0.6), (0.6, 1.0), (1.0, -0.7)])
def test_victims_that_share_two_rows_of_three_are_not_blended(
    noise: float, gradient_weights: tuple[float, float]
) -> None:
    for _ in range(5):
        rows, contributions, membership = released([(2, 2, 2), (2, 2, 3), (4, 0, 5)], noise, [*gradient_weights, 1.0])
        found = search(rows, 3)
        victims = order(found.combine @ rows.inputs, contributions)
        assert (sorted(victims), found.unresolved) == ([0, 1, 2], 0)
        torch.testing.assert_close(found.combine, torch.linalg.pinv(membership.T)[victims], rtol=0, atol=1e-5)


def test_no_more_victims_than_announced() -> None:
    rows, contributions, _ = released([(0, 0), (1, 1), (2, 2)], 0.0)
    found = search(rows, 2)
    assert len(set(order(found.combine @ rows.inputs, contributions))) == 2
    assert found.unresolved == 2


def lone_unit(rows: Rows) -> Rows:
    return Rows(**{**vars(rows), **{name: getattr(rows, name)[:1] for name in ("inputs", "pilot", "lower", "upper")}})


def test_a_single_victim_needs_no_finding_but_must_be_evident() -> None:
    rows, _, _ = released([(0,)], 0.1)
    found = search(lone_unit(rows), 1)
    assert (found.combine.tolist(), found.unresolved, found.evident) == ([[1.0]], 0, True)
    alarms, trials = 0, 500
    for _ in range(trials):
        noise = 0.5 * torch.randn(len(rows.inputs), INPUTS + 1)
        empty = Rows(**{**vars(rows), "inputs": noise[:, :-1], "pilot": noise[:, -1], "noise": 0.5})
        found = separate(lone_unit(empty), PRIOR, 1, 0.05)
        assert (found.combine.tolist(), found.unresolved) == ([[1.0]], 0)
        alarms += found.evident
    assert stats.binom.ppf(1e-3, trials, 0.025) <= alarms <= stats.binom.isf(1e-3, trials, 0.05)


def test_several_victims_collide_in_a_single_unit() -> None:
    rows, _, _ = released([(0,), (0,)], 0.1)
    found = search(lone_unit(rows), 2)
    assert (len(found.combine), found.unresolved) == (0, 1)


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_victims_are_separated_without_a_pilot_too(noise: float) -> None:
    places = COLLISIONS["two shared rows of three"]
    rows, contributions, membership = released(places, noise)
    mute = Rows(**{**vars(rows), "pilot": noise * torch.randn(len(rows.pilot))})
    found = separate(mute, replace(PRIOR, pilot_level=0.0), 3, 0.01)
    victims = order(found.combine @ rows.inputs, contributions)
    assert (sorted(victims), found.unresolved) == ([0, 1, 2], 0)
    torch.testing.assert_close(found.combine, torch.linalg.pinv(membership.T)[victims], rtol=0, atol=1e-5)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_with_one_direction_active_rows_are_victims_strongest_first(noise: float) -> None:
    rows, contributions, _ = released([(1,), (3,), (4,)], noise, [0.5, -1.5, 1.0])
    found = search(rows, 5)
    assert order(found.combine @ rows.inputs, contributions) == [1, 2, 0]
    assert len(search(rows, 2).combine) == 2
