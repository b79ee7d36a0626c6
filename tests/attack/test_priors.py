# SPDX-License-Identifier: Apache-2.0
"""The priors: known values, gradients, and the local contrast of pictures drawn from the spectral prior."""

import math

import pytest
import torch

from lightning_recon.attack.priors import contrast_energy, local_contrast, total_variation
from lightning_recon.structure.transform import inverse_cosine


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_an_even_picture_has_no_variation_but_the_smoothing(value: float) -> None:
    images = torch.full((2, 3, 9, 7), value)
    assert total_variation(images, smoothing=0.0).tolist() == [0.0, 0.0]
    assert total_variation(images, smoothing=0.5).tolist() == pytest.approx([0.5 * 63] * 2)


def test_an_edge_counts_its_length_times_its_height() -> None:
    images = torch.zeros(2, 3, 8, 8)
    images[0, 0, :, 4:] = 0.5
    images[1, :, 3:, :] = 0.5
    # All channels together: the second edge has the height of its colour difference, 0.5 √3.
    assert total_variation(images, smoothing=0.0).tolist() == pytest.approx([8 * 0.5, 8 * 0.5 * math.sqrt(3)])


def test_turned_pictures_vary_alike() -> None:
    images = torch.zeros(1, 3, 16, 16)
    images[..., 4:9, 5:12] = torch.rand(1, 3, 1, 1)
    turned = total_variation(images.transpose(2, 3), smoothing=1e-3)
    torch.testing.assert_close(turned, total_variation(images, smoothing=1e-3))


def test_gradients_are_those_of_finite_differences() -> None:
    images = torch.rand(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    contrast = torch.rand(2, 1, 5, 4, dtype=torch.float64) + 0.1
    assert torch.autograd.gradcheck(total_variation, (images,))
    assert torch.autograd.gradcheck(lambda c: contrast_energy(c, contrast), (images,))


def test_even_contrast_is_the_plain_spectral_prior() -> None:
    coefficients, variance = torch.randn(3, 3, 8, 8), torch.rand(3, 3, 8, 8) + 0.5
    whitened = inverse_cosine(coefficients / variance.sqrt())
    energy = contrast_energy(whitened, torch.ones(3, 1, 8, 8))
    torch.testing.assert_close(energy, 0.5 * (coefficients**2 / variance).sum(dim=(1, 2, 3)))
    halved = contrast_energy(whitened, torch.full((3, 1, 8, 8), 2.0))
    torch.testing.assert_close(halved, energy / 2)


@pytest.mark.parametrize("window", [1.0, 2.0, 4.0])
def test_pictures_drawn_from_the_prior_have_contrast_one_everywhere(window: float) -> None:
    contrast = local_contrast(torch.randn(40, 3, 32, 32), torch.ones(40, 3, 32, 32), window)
    assert contrast.shape == (40, 1, 32, 32)
    assert float(contrast.mean()) == pytest.approx(1.0, abs=0.02)
    # The window holds 4π w² values of each channel, whose squares scatter by √2.
    scatter = math.sqrt(2 / (3 * 4 * math.pi * window**2))
    inner = contrast[..., 12:20, 12:20]
    assert float(inner.std()) < 1.3 * scatter


def test_the_estimate_of_a_half_known_picture_is_unbiased_too() -> None:
    # A posterior mean has the share of the prior variance that is known.
    certainty = torch.full((40, 3, 32, 32), 0.25)
    contrast = local_contrast(certainty.sqrt() * torch.randn(40, 3, 32, 32), certainty, 2.0)
    assert float(contrast.mean()) == pytest.approx(1.0, abs=0.02)


def test_nothing_known_is_contrast_one() -> None:
    nothing = torch.zeros(2, 3, 16, 16)
    contrast = local_contrast(nothing, nothing, 2.0)
    torch.testing.assert_close(contrast, torch.ones(2, 1, 16, 16))


def test_flat_places_are_found() -> None:
    white = torch.randn(1, 3, 32, 32)
    white[..., :16] = 0  # the whitened picture is silent in its left half
    contrast = local_contrast(white, torch.ones(1, 3, 32, 32), 2.0)
    assert float(contrast[..., :8].max()) < 0.05
    assert 0.8 < float(contrast[..., 24:].mean()) < 1.2
    assert float(contrast.min()) > 0.029
    loud = local_contrast(2 * white, torch.ones(1, 3, 32, 32), 2.0)
    assert 3.2 < float(loud[..., 24:].mean()) < 4.8


@pytest.mark.parametrize("window", [0.5, 2.0, 50.0])
def test_windows_wider_than_the_picture_are_cut(window: float) -> None:
    contrast = local_contrast(torch.ones(2, 3, 8, 8), torch.ones(2, 3, 8, 8), window)
    assert contrast.shape == (2, 1, 8, 8)
    assert bool(contrast.isfinite().all())
