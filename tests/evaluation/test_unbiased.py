# SPDX-License-Identifier: Apache-2.0
"""The bound on unbiased readings against closed forms."""

import itertools
import math

import pytest

from lightning_recon.evaluation.unbiased import unbiased_psnr


def test_any_unbiased_reading_by_known_values() -> None:
    # MSE >= 1 / (4 (exp(4 / z^2) - 1))
    assert unbiased_psnr(1.0, 1) == pytest.approx(-10 * math.log10(1 / (4 * math.expm1(4.0))))
    assert unbiased_psnr(1.0, 1) == pytest.approx(23.3, abs=0.05)
    assert unbiased_psnr(0.5, 1) == pytest.approx(75.5, abs=0.05)
    assert unbiased_psnr(4.2, 1) == pytest.approx(0.0, abs=0.1)
    assert unbiased_psnr(2.0, 4) == pytest.approx(unbiased_psnr(1.0, 1))


def test_any_unbiased_reading_at_the_limits() -> None:
    for z in (0.0, 1e-6, 0.1):
        assert unbiased_psnr(z, 1) == 100.0
    # z -> infinity: MSE -> z^2 / 16
    assert unbiased_psnr(1e4, 1) == pytest.approx(-10 * math.log10(1e8 / 16), abs=1e-3)
    values = [unbiased_psnr(z, 3) for z in (0.9, 1.0, 2.0, 5.0, 100.0)]
    assert all(later < earlier for earlier, later in itertools.pairwise(values))


def test_one_pixel_s_best_unbiased_reading_keeps_to_the_bound() -> None:
    # A pixel in [0, 1] sent as 2 x - 1 uses the whole clipping norm; halving the noise's mean gives error z^2 / 4.
    for z in (0.3, 1.0, 3.0):
        assert unbiased_psnr(z, 1) >= -10 * math.log10(z**2 / 4)
