# SPDX-License-Identifier: Apache-2.0
"""Every image excites one unit per direction, and public images fill the units evenly."""

from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from lightning_recon.priors.dct import analyse
from lightning_recon.priors.image_statistics import PublicStatistics, public_statistics, synthetic_images
from lightning_recon.structure.coding.gating import intervals, measurement_directions

# `intervals` chooses its edges from as many synthetic images; later ones are new to it.
USED = 4096


def excited(images: Tensor, statistics: PublicStatistics, count: int, units: int) -> tuple[Tensor, Tensor]:
    """Which units each image excites, shape (B, K), and each unit's direction, shape (K,)."""
    directions = measurement_directions(statistics, count)
    lower, upper, owner = intervals(statistics, directions, units)
    measured = analyse(images, statistics.mean, statistics.colour).flatten(1) @ directions.flatten(1).T
    values = measured[:, owner]
    return (lower <= values) & (values < upper), owner


@pytest.mark.parametrize("subjects", [False, True])
@pytest.mark.parametrize(("count", "units"), [(1, 7), (2, 64), (3, 50)])
def test_every_image_excites_exactly_one_unit_per_direction(
    photographs: Callable[[int], Tensor], count: int, units: int, subjects: bool
) -> None:
    statistics = public_statistics(32, 32, subjects)
    outliers = torch.stack([torch.full((3, 32, 32), value) for value in (0.0, 1.0, -50.0, 50.0)])
    checkerboard = ((torch.arange(32)[:, None] // 8 + torch.arange(32) // 8) % 2).expand(1, 3, 32, 32).float()
    images = torch.cat([synthetic_images(statistics, 500, 32), photographs(32), outliers, checkerboard])
    hits, owner = excited(images, statistics, count, units)
    for direction in range(count):
        assert bool((hits[:, owner == direction].sum(dim=1) == 1).all())


def test_units_are_shared_among_directions_as_evenly_as_possible() -> None:
    statistics = public_statistics(16, 16, subjects=False)
    _, _, owner = intervals(statistics, measurement_directions(statistics, 3), 11)
    assert owner.bincount().tolist() == [4, 4, 3]


def test_a_single_unit_hears_everyone() -> None:
    statistics = public_statistics(16, 16, subjects=False)
    lower, upper, owner = intervals(statistics, measurement_directions(statistics, 1), 1)
    assert (lower.tolist(), upper.tolist(), owner.tolist()) == ([-torch.inf], [torch.inf], [0])


@pytest.mark.parametrize("subjects", [False, True])
def test_new_images_fill_the_units_evenly(subjects: bool) -> None:
    statistics = public_statistics(32, 32, subjects)
    new = 1024
    hits, owner = excited(synthetic_images(statistics, USED + new, 32)[USED:], statistics, 2, 32)
    for direction in range(2):
        filled = hits[:, owner == direction].sum(dim=0).double()
        statistic = float(((filled - new / 16) ** 2 / (new / 16)).sum())
        # The edges are estimated too, which adds their own scatter to that of the counts.
        assert statistic < stats.chi2.isf(1e-4, 15) * (1 + new / USED)


def test_finer_images_fill_the_same_units(photographs: Callable[[int], Tensor]) -> None:
    used = []
    for size in (32, 64):
        hits, _ = excited(photographs(size), public_statistics(size, size, subjects=False), 3, 48)
        used.append(hits)
    # The low frequencies of an image do not depend on its size: nearly all land in the same units.
    assert float((used[0] == used[1]).float().mean()) > 0.97


def test_directions_hear_only_low_frequencies_of_two_channels_alike() -> None:
    statistics = public_statistics(32, 32, subjects=False)
    directions = measurement_directions(statistics, 200)
    frequency = torch.arange(32)[:, None] + torch.arange(32)
    assert not bool(directions[:, :, frequency >= 6].any())
    assert not bool(directions[:, 2].any())
    contribution = (directions.square() * statistics.variance)[:, :2, frequency < 6].mean(dim=0)
    assert bool(((contribution > 0.6) & (contribution < 1.5)).all())
