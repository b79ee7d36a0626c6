# SPDX-License-Identifier: Apache-2.0
"""Poisson sampling: independent draws with the stated rate, equal on all ranks and for equal steps."""

import math

import pytest
import torch

from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.client.poisson_sampler import PoissonSampler


def sampler(count: int = 50, expected: int = 5, first: int = 0, rank: int = 0, ranks: int = 1) -> PoissonSampler:
    return PoissonSampler(count, expected, NoiseSource(0), lambda: first, rank, ranks)


def test_every_image_is_drawn_with_the_stated_rate_independently() -> None:
    one, steps = sampler(), 4000
    taken = torch.zeros(steps, 50)
    for step in range(steps):
        taken[step, one.drawn(step)] = 1
    assert one.rate == 0.1
    assert (taken.mean(0) - 0.1).abs().max() < 5 * math.sqrt(0.09 / steps)
    sizes = taken.sum(1)
    assert sizes.var() == pytest.approx(50 * 0.09, rel=5 * math.sqrt(2 / steps))  # batches of one size would have none
    together = taken.T @ taken / steps
    assert (together - torch.diag(together.diagonal()) - 0.01 * (1 - torch.eye(50))).abs().max() < 6 * 0.1 / steps**0.5


def test_an_epoch_is_a_pass_in_the_mean_and_steps_go_on() -> None:
    assert len(sampler()) == 10
    first, second, middle = (list(sampler(first=step)) for step in (0, 10, 3))
    assert middle[:7] == first[3:]
    assert middle[7:] == second[:3]
    assert len({tuple(batch) for batch in first + second}) > 15


def test_ranks_share_one_sample() -> None:
    parts = [list(sampler(rank=rank, ranks=3)) for rank in range(3)]
    for whole, *shares in zip(sampler(), *parts, strict=True):
        assert sorted(index for share in shares for index in share) == whole


def test_no_more_than_all_images_are_expected() -> None:
    everything = sampler(count=3, expected=4)
    assert (everything.rate, everything.expected, list(everything)) == (1.0, 3, [[0, 1, 2]])
