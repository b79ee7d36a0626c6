# SPDX-License-Identifier: Apache-2.0
"""Rows that hold the same codeword are grouped, those that share some rows told apart, and noise is nobody."""

import math

import pytest
import torch
from torch import Tensor

from lightning_recon.structure.detection.row_pursuit import evidence_of, grouped_rows

INPUTS = 4000
DIRECTIONS = torch.arange(3).repeat_interleave(4)


def gram(held: Tensor, amplitude: float) -> Tensor:
    """Inner products of rows of random codewords, shape (V, K), in noise of variance 1."""
    codewords = torch.randint(2, (len(held), INPUTS)) * 2.0 - 1
    rows = (amplitude * held.float()).T @ codewords + torch.randn(held.shape[1], INPUTS)
    return (rows @ rows.T).double() / INPUTS


def members(*places: tuple[int, ...], rows: int = 12) -> Tensor:
    held = torch.zeros(len(places), rows, dtype=torch.bool)
    for victim, place in enumerate(places):
        held[victim, list(place)] = True
    return held


def same(found: Tensor, held: Tensor) -> bool:
    return sorted(map(tuple, found.tolist())) == sorted(map(tuple, held.tolist()))


@pytest.mark.parametrize(
    "places",
    [
        [(0, 4, 8), (1, 5, 9)],
        [(0, 4, 8), (0, 5, 9), (1, 5, 10)],  # chains of shared rows
        [(0, 4, 8), (0, 4, 9)],  # two of three rows in common
    ],
)
def test_victims_are_found_though_no_row_shows_one_by_its_energy(places: list[tuple[int, ...]]) -> None:
    held = members(*places)
    found = grouped_rows(gram(held, 0.35), 1.0, INPUTS, DIRECTIONS, most=6)
    assert same(found, held)
    # The energy of a single row is not more than 6 standard deviations above the noise's.
    assert 6 * math.sqrt(2 / INPUTS) > 0.35**2


def test_no_more_than_asked_for() -> None:
    held = members((0, 4, 8), (1, 5, 9), (2, 6, 10))
    assert len(grouped_rows(gram(held, 0.5), 1.0, INPUTS, DIRECTIONS, most=2)) == 2


@pytest.mark.parametrize("directions", [DIRECTIONS, torch.zeros(12, dtype=torch.int64)])
def test_noise_is_nobody(directions: Tensor) -> None:
    assert not len(grouped_rows(gram(members((0, 4, 8)), 0.0), 1.0, INPUTS, directions, most=6))


def test_with_a_single_direction_energy_tells() -> None:
    held = members((2,), (7,))
    alone = torch.zeros(12, dtype=torch.int64)
    assert same(grouped_rows(gram(held, 0.6), 1.0, INPUTS, alone, most=6), held)
    # A noise that is assumed too low looks like victims: who counts them has to know that.
    assert len(grouped_rows(gram(held, 0.6), 0.9, INPUTS, alone, most=20)) == 12


def test_evidence_counts_standard_deviations() -> None:
    nobody = gram(members((0, 4, 8)), 0.0)
    assert abs(evidence_of(members((0, 4, 8))[0], nobody, 1.0, INPUTS)) < 4
    somebody = gram(members((0, 4, 8)), 0.35)
    expected = math.sqrt(3) * 0.35**2 / (1 + 0.35**2) * math.sqrt(INPUTS)
    assert evidence_of(members((0, 4, 8))[0], somebody, 1.0, INPUTS) == pytest.approx(expected, rel=0.25)
    assert evidence_of(members((0,))[0], torch.zeros(12, 12, dtype=torch.float64), 0.0, INPUTS) == 0
