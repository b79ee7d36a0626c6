# SPDX-License-Identifier: Apache-2.0
"""Yardsticks against closed forms, limits and a simulated channel."""

import itertools
import math

import pytest
import torch

from lightning_recon.evaluation.bounds import (
    channel_nats,
    gaussian_distortion,
    gaussian_reference_psnr,
    noise_law_psnr,
)


def photographs(size: int) -> torch.Tensor:
    """Power-law spectrum of photographs in three colour channels, shape (3, size, size), float64."""
    index = torch.arange(size, dtype=torch.float64)
    radius = torch.hypot(index[:, None], index)
    radius[0, 0] = 1.0
    variances = torch.tensor([5.3, 2.9, 1.2], dtype=torch.float64).exp()[:, None, None] * radius**-2.6
    variances[:, 0, 0] = torch.tensor([205.0, 31.0, 6.7], dtype=torch.float64)
    return variances


def test_white_source_has_the_textbook_distortion() -> None:
    variances = torch.full((3, 8, 8), 0.04)
    for nats in (0.0, 0.3, 7.0, 500.0):
        expected = 192 * 0.04 * math.exp(-2 * nats / 192)
        assert gaussian_distortion(variances, nats) == pytest.approx(expected, rel=1e-6)


def test_two_components_switch_on_one_after_the_other() -> None:
    variances = torch.tensor([4.0, 1.0], dtype=torch.float64)
    switch = math.log(2)  # half of log(4/1): below it only the stronger component is described
    assert gaussian_distortion(variances, 0.5 * switch) == pytest.approx(1 + 4 * math.exp(-switch))
    assert gaussian_distortion(variances, switch) == pytest.approx(2.0)
    assert gaussian_distortion(variances, 3 * switch) == pytest.approx(2 * 2 * math.exp(-3 * switch))


def test_distortion_by_bisection_on_the_water_level() -> None:
    variances = photographs(16).flatten()
    nats = 12.0
    low, high = 0.0, float(variances.max())
    for _ in range(200):
        level = (low + high) / 2
        rate = 0.5 * (variances / level).clamp(min=1).log().sum()
        low, high = (level, high) if rate > nats else (low, level)
    assert gaussian_distortion(variances, nats) == pytest.approx(float(variances.clamp(max=level).sum()), rel=1e-9)


def test_zero_rate_leaves_the_whole_variance_and_infinite_rate_nothing() -> None:
    variances = torch.tensor([3.0, 2.0, 0.5, 0.0])
    assert gaussian_distortion(variances, 0.0) == pytest.approx(5.5)
    assert gaussian_distortion(variances, math.inf) == 0.0
    assert gaussian_distortion(torch.zeros(3), 1.0) == 0.0


def test_more_rate_never_hurts() -> None:
    variances = photographs(16)
    distortions = [gaussian_distortion(variances, nats) for nats in (0, 0.1, 1, 5, 20, 100, 1000)]
    assert all(later < earlier for earlier, later in itertools.pairwise(distortions))


@pytest.mark.parametrize(("z", "psnr"), [(1.0, 10.70), (0.3, 13.52), (0.1, 17.58), (0.03, 22.64), (0.01, 30.47)])
def test_reference_of_photographs_at_64_pixels(z: float, psnr: float) -> None:
    # Expected values by bisection on the water level in NumPy, outside this package.
    reference = gaussian_reference_psnr(photographs(64), channel_nats(z, "sample", 1, 1), 3 * 64 * 64)
    assert reference == pytest.approx(psnr, abs=0.01)


def test_one_clip_divides_the_rate_and_rounds_multiply_it() -> None:
    assert channel_nats(0.1, "sample", 16, 1) == pytest.approx(50.0)
    assert channel_nats(0.1, "update", 16, 1) == pytest.approx(50.0 / 16)
    assert channel_nats(0.1, "update", 16, 32) == pytest.approx(100.0)
    assert channel_nats(0.0, "sample", 16, 1) == math.inf


def test_exact_reading_is_capped() -> None:
    assert gaussian_reference_psnr(torch.ones(4), math.inf, 4) == 100.0
    assert noise_law_psnr(0.0, torch.ones(1, 2), "sample", 1) == 100.0


@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_noise_law_is_what_a_simulated_channel_does(granularity: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = (
        torch.rand(4, 3, 32, 32, generator=generator, dtype=torch.float64)
        * torch.tensor([1, 0.5, 0.8, 0.2])[:, None, None, None]
    )
    z, rounds = 3e-3, 2
    energies = images.square().sum((1, 2, 3))
    # Equal voices, private rows: the batch is released as one vector of unit length, each image as its own otherwise.
    scale = energies.sqrt() if granularity == "sample" else energies.sum().sqrt().expand(4)
    released = images / scale[:, None, None, None]
    noise = torch.randn(rounds, *images.shape, generator=generator, dtype=torch.float64).mean(0)
    read = (released + z * noise) * scale[:, None, None, None]
    measured = -10 * math.log10(float((read - images).square().mean()))
    law = noise_law_psnr(z, energies[None], granularity, rounds)  # type: ignore[arg-type]
    assert law == pytest.approx(measured, abs=0.1)
