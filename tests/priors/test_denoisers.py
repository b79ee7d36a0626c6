# SPDX-License-Identifier: Apache-2.0
"""Total variation as a denoiser: known minimisers, edges kept, noise removed."""

import pytest
import torch

from lightning_recon.attack import TotalVariation
from lightning_recon.priors.denoisers import _WEIGHT, _divergence, _gradient


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


def variation(images: torch.Tensor) -> torch.Tensor:
    across, down = _gradient(images)
    return (across.square() + down.square()).sum(dim=1).sqrt().sum(dim=(-2, -1))


def test_divergence_is_the_negative_adjoint_of_the_gradient() -> None:
    images, (across, down) = torch.randn(2, 3, 7, 9), _gradient(torch.randn(2, 3, 7, 9))
    right, below = _gradient(images)
    inner = (right * across + below * down).sum()
    torch.testing.assert_close(inner, -(images * _divergence(across, down)).sum(), rtol=1e-5, atol=1e-4)


def test_an_even_picture_stays() -> None:
    images = torch.full((2, 3, 9, 7), 0.4)
    torch.testing.assert_close(TotalVariation()(images, 0.2), images)


def test_both_sides_of_an_edge_move_together_as_theory_says() -> None:
    # A step of height h in one dimension moves inwards by weight · (edge length) / (side's area) on each side.
    images = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    images[:, 0, :, 4:] = 1.0
    sigma = 0.5
    found = TotalVariation(iterations=3000)(images, sigma)
    shift = _WEIGHT * sigma / 4
    expected = images.clone()
    expected[:, 0, :, :4], expected[:, 0, :, 4:] = shift, 1 - shift
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_the_outcome_is_a_minimum() -> None:
    images, sigma = torch.rand(1, 3, 8, 8, dtype=torch.float64), 0.1

    def energy(out: torch.Tensor) -> float:
        return float(0.5 * (out - images).square().sum() + _WEIGHT * sigma * variation(out).sum())

    found = TotalVariation(iterations=500)(images, sigma)
    for _ in range(20):
        assert energy(found) < energy(found + 0.01 * torch.randn_like(found))
    assert energy(found) < energy(images)


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_noise_on_flat_places_goes_and_each_picture_has_its_own_sigma(level: float) -> None:
    clean = torch.zeros(2, 3, 32, 32)
    clean[..., 16:] = 0.8
    noisy = clean + torch.tensor([level, 0.0])[:, None, None, None] * torch.randn_like(clean)
    found = TotalVariation()(noisy, torch.tensor([level, 0.0]))
    assert (found[0] - clean[0]).square().mean() < 0.2 * level**2
    torch.testing.assert_close(found[1], clean[1], rtol=0, atol=1e-4)
