# SPDX-License-Identifier: Apache-2.0
"""The transform against scipy's, and as an isometry with an inverse."""

import pytest
import torch
from scipy.fft import dctn
from torch import Tensor

from lightning_recon.priors.dct import CosineTransform, analyse, cosine, cosine_matrix, inverse_cosine, synthesise

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}
SHAPES = [(16, 16), (12, 20), (1, 7)]


def colour_axes(dtype: torch.dtype) -> Tensor:
    """Any orthonormal axes, exact in this type."""
    return torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q.to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_cosine_is_scipys_orthonormal_dct(height: int, width: int, dtype: torch.dtype) -> None:
    images = torch.randn(2, 3, height, width, dtype=dtype)
    expected = torch.from_numpy(dctn(images.double().numpy(), axes=(-2, -1), norm="ortho")).to(dtype)
    torch.testing.assert_close(cosine(images), expected, rtol=0, atol=10 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_analyse_is_an_isometry_and_synthesise_inverts_it(height: int, width: int, dtype: torch.dtype) -> None:
    images, mean = torch.rand(4, 3, height, width, dtype=dtype), torch.rand(3, height, width, dtype=dtype)
    colour = colour_axes(dtype)
    coefficients = analyse(images, mean, colour)
    assert coefficients.dtype == dtype
    energy = (images - mean).square().sum(dim=(1, 2, 3))
    torch.testing.assert_close(coefficients.square().sum(dim=(1, 2, 3)), energy, rtol=2 * TOLERANCE[dtype], atol=0)
    torch.testing.assert_close(synthesise(coefficients, mean, colour), images, rtol=0, atol=2 * TOLERANCE[dtype])


@pytest.mark.parametrize("size", [1, 2, 33, 64])
def test_the_cosine_matrix_is_orthonormal(size: int) -> None:
    matrix = cosine_matrix(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-13)


def test_an_even_grey_has_only_its_first_coefficient() -> None:
    coefficients = cosine(torch.full((1, 8, 8), 0.25))
    assert coefficients[0, 0, 0] == pytest.approx(0.25 * 8)
    assert coefficients.flatten()[1:].abs().max() < 1e-6


def test_a_single_coefficient_becomes_its_cosine() -> None:
    coefficients = torch.zeros(8, 8)
    coefficients[2, 0] = 1.0
    place = (torch.arange(8) + 0.5) / 8
    expected = (torch.cos(2 * torch.pi * place) * (2 / 8) ** 0.5 / 8**0.5)[:, None].expand(8, 8)
    torch.testing.assert_close(inverse_cosine(coefficients), expected)


def test_leading_dimensions_do_not_matter() -> None:
    images, mean, colour = torch.rand(2, 5, 3, 8, 8), torch.rand(3, 8, 8), colour_axes(torch.float32)
    together = analyse(images, mean, colour)
    torch.testing.assert_close(together[1, 3], analyse(images[1, 3], mean, colour))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matrices_made_before_change_nothing(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    mean, images = torch.rand(2, 3, 6, 10, generator=generator, dtype=torch.float64).to(dtype)
    colour = torch.linalg.qr(torch.rand(3, 3, generator=generator)).Q
    for every_time in (CosineTransform(mean, colour), CosineTransform(mean.float(), colour)):
        once = every_time.to(torch.device("cpu"))
        assert torch.equal(once.analyse(images), every_time.analyse(images))
        assert torch.equal(once.synthesise(images), every_time.synthesise(images))
