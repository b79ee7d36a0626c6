# SPDX-License-Identifier: Apache-2.0
"""The public statistics: the power law at any size, and synthetic pictures that obey it."""

import math

import pytest
import torch

from lightning_recon.structure.statistics import public_statistics, synthetic_pictures
from lightning_recon.structure.transform import analyse


def test_known_values_at_the_size_they_were_fitted_at() -> None:
    statistics = public_statistics(64, 64, subjects=False)
    assert statistics.variance[:, 0, 0].tolist() == pytest.approx([205, 31, 6.7])
    assert float(statistics.variance[0, 0, 10]) == pytest.approx(math.exp(5.3) * 10**-2.6)
    assert float(statistics.variance[1, 12, 5]) == pytest.approx(math.exp(2.9) * 13**-2.6)
    assert float(statistics.variance[2, 30, 40]) == pytest.approx(math.exp(1.2) * 50**-2.6)
    assert statistics.mean[:, 5, 5].tolist() == pytest.approx([0.49, 0.46, 0.41])


@pytest.mark.parametrize("size", [16, 32, 128, 224])
def test_finer_pictures_have_the_same_spectrum_at_a_larger_scale(size: int) -> None:
    fine, coarse = (public_statistics(n, n, subjects=False).variance for n in (size, 64))
    shared = min(size, 64)
    expected = coarse[:, :shared, :shared] * (size / 64) ** 2
    torch.testing.assert_close(fine[:, :shared, :shared], expected, rtol=1e-5, atol=0)


def test_colour_axes_are_orthonormal_with_luminance_first() -> None:
    colour = public_statistics(8, 8, subjects=False).colour
    torch.testing.assert_close(colour @ colour.T, torch.eye(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(colour[0], torch.full((3,), 3**-0.5))


def test_upright_pictures_are_lying_pictures_turned() -> None:
    upright, lying = (public_statistics(*shape, subjects=False).variance for shape in ((48, 32), (32, 48)))
    torch.testing.assert_close(upright, lying.transpose(1, 2))


def test_synthetic_pictures_reproduce_mean_and_variance() -> None:
    statistics = public_statistics(32, 32, subjects=False)
    pictures = synthetic_pictures(statistics, 2000, 32)
    assert (float(pictures.min()), float(pictures.max())) == (0.0, 1.0)
    torch.testing.assert_close(pictures.mean(dim=(0, 2, 3)), statistics.mean[:, 0, 0], rtol=0, atol=0.02)
    found = analyse(pictures, statistics.mean, statistics.colour).square().mean(dim=0)
    # Cutting values off at black and white costs some energy, and spreads a little of it over high frequencies.
    ratio = found / statistics.variance
    for channel in range(3):
        assert 0.6 < float(ratio[channel, 0, 0]) < 1.1
        assert 0.7 < float(ratio[channel, 1:6, 1:6].mean()) < 1.1
    total = found.sum(dim=(1, 2)) / statistics.variance.sum(dim=(1, 2))
    assert bool(((total > 0.75) & (total < 1.1)).all())


def test_contrast_differs_from_picture_to_picture_as_announced() -> None:
    statistics = public_statistics(32, 32, subjects=False)
    coefficients = analyse(synthetic_pictures(statistics, 2000, 32), statistics.mean, statistics.colour)
    # Luminance detail away from the lowest frequencies is dense enough to measure a single picture's energy.
    energy = (coefficients**2 / statistics.variance)[:, 0, 4:, 4:].mean(dim=(1, 2))
    assert float(energy.log().std()) == pytest.approx(statistics.log_contrast_std, abs=0.1)


def test_synthetic_pictures_are_the_same_on_every_call_and_leave_the_random_state_alone() -> None:
    statistics, state = public_statistics(16, 16, subjects=True), torch.get_rng_state()
    assert torch.equal(synthetic_pictures(statistics, 5, 16), synthetic_pictures(statistics, 5, 16))
    assert torch.equal(torch.get_rng_state(), state)


def test_subjects_are_cut_out_on_black() -> None:
    statistics = public_statistics(32, 32, subjects=True)
    pictures = synthetic_pictures(statistics, 1000, 32)
    share = (pictures.amax(dim=1) > 0).float().mean(dim=(1, 2))
    # Areas are 0.08 + 0.82 u^1.5, on average 0.408; large ellipses lose a little at the border.
    assert float(share.mean()) == pytest.approx(0.39, abs=0.03)
    assert 0.04 < float(share.min()) < 0.12
    assert 0.7 < float(share.max()) <= 0.92
    assert bool((pictures[:, :, 16, 16].amax(dim=1) > 0).float().mean() > 0.95)


def test_the_mean_subject_is_the_mean_of_synthetic_subjects() -> None:
    statistics = public_statistics(32, 32, subjects=True)
    pictures = synthetic_pictures(statistics, 2000, 32)
    torch.testing.assert_close(statistics.mean, pictures.mean(dim=0), rtol=0, atol=0.06)
    assert (float(statistics.mean[0, 0, 0]), float(statistics.mean[0, 16, 16])) == pytest.approx((0, 0.49), abs=0.04)
    plain = public_statistics(32, 32, subjects=False)
    assert torch.equal(statistics.variance, plain.variance)
    assert (statistics.subjects, plain.subjects, statistics.name != plain.name) == (True, False, True)
