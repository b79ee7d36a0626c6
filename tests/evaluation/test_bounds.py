# SPDX-License-Identifier: Apache-2.0
"""Bounds against closed forms, limits and a simulated channel."""

import itertools
import math

import pytest
import torch

from lightning_recon.evaluation.bounds import (
    channel_nats,
    gaussian_distortion,
    noise_law_batch_quantile,
    noise_law_psnr,
    noise_law_quantile,
    noise_law_tail,
    unbiased_psnr,
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
def test_distortion_of_the_spectrum_of_photographs_at_64_pixels(z: float, psnr: float) -> None:
    # Expected values by bisection on the water level in NumPy, outside this package.
    nats = channel_nats(z, "sample", 1, 1)
    assert nats is not None
    error = gaussian_distortion(photographs(64), nats) / (3 * 64 * 64)
    assert -10 * math.log10(error) == pytest.approx(psnr, abs=0.01)


def test_components_of_one_variance_may_be_counted() -> None:
    listed = torch.tensor([4.0, 4.0, 1.0, 1.0, 1.0, 0.5])
    counted = gaussian_distortion(torch.tensor([1.0, 4.0, 0.5]), 1.3, torch.tensor([3.0, 2.0, 1.0]))
    assert counted == pytest.approx(gaussian_distortion(listed, 1.3))


def test_one_clip_divides_the_rate_and_rounds_multiply_it() -> None:
    assert channel_nats(0.1, "sample", 16, 1) == pytest.approx(50.0)
    assert channel_nats(0.1, "update", 16, 1) == pytest.approx(50.0 / 16)
    assert channel_nats(0.1, "update", 16, 32) == pytest.approx(100.0)
    assert channel_nats(0.0, "sample", 16, 1) == math.inf


def test_exact_reading_is_capped() -> None:
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


@pytest.mark.parametrize(("z", "rounds", "energy", "dimension"), [(0.02, 1, 40.0, 12), (0.1, 7, 9.0, 192)])
def test_the_noise_law_s_tail_is_what_a_simulated_channel_does(
    z: float, rounds: int, energy: float, dimension: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, dimension, generator=generator, dtype=torch.float64)
    psnr = -10 * (z**2 * energy / rounds * noise.square().mean(1)).log10()
    for probability in (0.02, 0.5, 0.95):
        reached = noise_law_quantile(probability, z, energy, dimension, rounds)
        assert float((psnr >= reached).double().mean()) == pytest.approx(probability, abs=0.015)
        assert noise_law_tail(reached, z, energy, dimension, rounds) == pytest.approx(probability)


def test_one_pixel_s_tail_is_the_error_function() -> None:
    # |z sqrt(energy) n| <= 10^(-psnr/20)
    expected = math.erf(10 ** (-12 / 20) / (0.3 * math.sqrt(2.0) * math.sqrt(2)))
    assert noise_law_tail(12.0, 0.3, 2.0, 1, 1) == pytest.approx(expected)


def test_luck_is_rarer_the_higher_the_psnr_and_little_in_a_whole_picture() -> None:
    chances = [noise_law_tail(psnr, 0.01, 100.0, 48, 1) for psnr in (0, 18, 20, 22, 40)]
    assert all(later < earlier for earlier, later in itertools.pairwise(chances))
    assert chances[0] == pytest.approx(1.0)
    assert chances[-1] == pytest.approx(0.0, abs=1e-12)
    lucky, unlucky = (noise_law_quantile(p, 0.01, 100.0, 3 * 64**2, 1) for p in (0.01, 0.99))
    law = noise_law_psnr(0.01, torch.tensor([[100.0]]), "sample", 1)
    assert law - 0.15 < unlucky < law < lucky < law + 0.15


def test_without_noise_every_reading_is_exact() -> None:
    assert noise_law_tail(99.0, 0.0, 100.0, 48, 1) == 1.0
    assert noise_law_quantile(0.5, 0.0, 100.0, 48, 1) == 100.0


def test_a_channel_s_capacity_bounds_what_a_gaussian_input_says() -> None:
    # One number sent over n outputs with unit power altogether: I = log(1 + 1/z^2)/2 whatever n.
    for z in (0.05, 0.5, 5.0):
        assert 0.5 * math.log1p(1 / z**2) <= channel_nats(z, "sample", 1, 1)
    assert 0.5 * math.log1p(1 / 50.0**2) == pytest.approx(channel_nats(50.0, "sample", 1, 1), rel=1e-3)


@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_luck_of_picture_and_noise_is_what_a_simulated_channel_does(granularity: str) -> None:
    generator = torch.Generator().manual_seed(0)
    energies, z, rounds, dimension = torch.tensor([[4.0, 9.0], [40.0, 80.0]]), 0.05, 3, 48
    shared = energies if granularity == "sample" else energies.sum(-1, keepdim=True).expand(2, 2)
    noise = torch.randn(20_000, 4, dimension, generator=generator, dtype=torch.float64).square().mean(-1)
    psnr = -10 * (z**2 / rounds * shared.flatten() * noise).log10()
    for probability in (0.05, 0.4, 0.9):
        reached = noise_law_batch_quantile(probability, z, energies, granularity, dimension, rounds)  # type: ignore[arg-type]
        assert float((psnr >= reached).double().mean()) == pytest.approx(probability, abs=0.01)


def test_luck_at_the_limits() -> None:
    same = torch.full((1, 3), 9.0)
    assert noise_law_batch_quantile(0.05, 0.1, same, "sample", 192, 1) == noise_law_quantile(0.05, 0.1, 9.0, 192, 1)
    assert noise_law_batch_quantile(0.05, 0.0, same, "sample", 192, 1) == 100.0


def test_unbiased_estimates_by_known_values() -> None:
    # MSE >= 1 / (4 (exp(4 / z^2) - 1))
    assert unbiased_psnr(1.0, 1) == pytest.approx(-10 * math.log10(1 / (4 * math.expm1(4.0))))
    assert unbiased_psnr(1.0, 1) == pytest.approx(23.3, abs=0.05)
    assert unbiased_psnr(0.5, 1) == pytest.approx(75.5, abs=0.05)
    assert unbiased_psnr(4.2, 1) == pytest.approx(0.0, abs=0.1)
    assert unbiased_psnr(2.0, 4) == pytest.approx(unbiased_psnr(1.0, 1))


def test_unbiased_estimates_at_the_limits() -> None:
    for z in (0.0, 1e-6, 0.1):
        assert unbiased_psnr(z, 1) == 100.0
    # z -> infinity: MSE -> z^2 / 16
    assert unbiased_psnr(1e4, 1) == pytest.approx(-10 * math.log10(1e8 / 16), abs=1e-3)
    values = [unbiased_psnr(z, 3) for z in (0.9, 1.0, 2.0, 5.0, 100.0)]
    assert all(later < earlier for earlier, later in itertools.pairwise(values))


def test_one_pixel_s_best_unbiased_estimate_keeps_to_the_bound() -> None:
    # A pixel in [0, 1] sent as 2 x - 1 uses the whole clipping norm; halving the noise's mean gives error z^2 / 4.
    for z in (0.3, 1.0, 3.0):
        assert unbiased_psnr(z, 1) >= -10 * math.log10(z**2 / 4)


def test_black_images_are_not_all_images() -> None:
    def reached(black: int) -> float:
        energies = torch.full((1, 40), 500.0).index_fill(1, torch.arange(black), 0.0)
        return noise_law_batch_quantile(0.05, 0.5, energies, "sample", 192, 1)

    one = reached(1)  # of the 5 %, the black image is 2.5 %, so that 1/39 of the others have to reach it
    assert one == pytest.approx(noise_law_quantile((0.05 - 1 / 40) * 40 / 39, 0.5, 500.0, 192, 1), abs=1e-4)
    assert reached(0) < one < 0
    assert reached(2) == reached(40) == 100.0


def test_the_least_rate_describes_the_strongest_component() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        variances = torch.rand(20, generator=generator, dtype=torch.float64) + 0.1
        number = 3 * torch.rand(20, generator=generator, dtype=torch.float64) + 0.1
        for nats in (0.0, 1e-18, 1e-12):
            assert gaussian_distortion(variances, nats, number) == pytest.approx(float(variances @ number), rel=1e-10)
