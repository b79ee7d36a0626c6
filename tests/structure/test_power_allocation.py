# SPDX-License-Identifier: Apache-2.0
"""Water-filling against a numerical optimiser, the conditions of optimality, and its limits."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from lightning_recon.structure.coding.power_allocation import water_filling

NOISES = [0.0, 1e-6, 0.003, 0.1, 0.5, 3.0, 100.0]


def spectrum(count: int = 200) -> Tensor:
    return torch.arange(1, count + 1, dtype=torch.float64) ** -2.6 * 50


def squared_error(variance: Tensor, power: Tensor, noise: float) -> Tensor:
    """Mean squared error left by Wiener's filter in each coefficient."""
    return variance * noise**2 / (power + noise**2)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("power", [1.0, 0.92, 0.05])
def test_power_is_spent_to_the_last_bit_and_never_negative(noise: float, power: float) -> None:
    found = water_filling(spectrum(), noise, power)
    assert float(found.sum()) == pytest.approx(power, rel=1e-9)
    assert float(found.min()) >= 0


@pytest.mark.parametrize("noise", NOISES[1:])
def test_no_coefficient_wants_another_ones_power(noise: float) -> None:
    variance = spectrum()
    power = water_filling(variance, noise, 0.92)
    # Marginal gain of power: the same wherever some is spent, no more where none is (Karush, Kuhn, Tucker).
    gain = variance * noise**2 / (power + noise**2) ** 2
    spent = power > 0
    torch.testing.assert_close(gain[spent], gain[spent][:1].expand(int(spent.sum())), rtol=1e-6, atol=0)
    assert bool((gain[~spent] <= gain[spent][0] * (1 + 1e-9)).all())


@pytest.mark.parametrize("noise", [0.05, 0.5, 3.0])
def test_it_is_what_a_numerical_optimiser_finds(noise: float) -> None:
    variance = spectrum(8)
    found = water_filling(variance, noise, 1.0)
    search = minimize(
        lambda power: float(squared_error(variance, torch.from_numpy(power), noise).sum()),
        np.full(8, 1 / 8),
        jac=lambda power: (-variance * noise**2 / (torch.from_numpy(power) + noise**2) ** 2).numpy(),
        bounds=[(0, 1)] * 8,
        constraints={"type": "eq", "fun": lambda power: power.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    assert search.success
    np.testing.assert_allclose(found.numpy(), search.x, atol=2e-5)
    assert float(squared_error(variance, found, noise).sum()) <= search.fun * (1 + 1e-9)


def test_without_noise_power_follows_the_standard_deviation() -> None:
    root = spectrum().sqrt()
    torch.testing.assert_close(water_filling(spectrum(), 0.0, 0.9), 0.9 * root / root.sum())
    torch.testing.assert_close(water_filling(spectrum(), 1e-9, 0.9), 0.9 * root / root.sum(), rtol=1e-6, atol=0)


def test_the_more_noise_the_fewer_coefficients_are_sent() -> None:
    sent = [int((water_filling(spectrum(), noise, 1.0) > 0).sum()) for noise in NOISES]
    assert sent == sorted(sent, reverse=True)
    assert (sent[0], sent[-1]) == (200, 1)


def test_weak_coefficients_get_exactly_nothing() -> None:
    power = water_filling(torch.tensor([1.0, 1e-8, 0.5]), 0.1, 1.0)
    assert power[1] == 0
    assert bool((power[[0, 2]] > 0).all())


def test_order_shape_and_type_do_not_matter() -> None:
    variance = spectrum(60)[torch.randperm(60)].float().view(3, 4, 5)
    found = water_filling(variance, 0.1, 1.0)
    assert (found.shape, found.dtype) == (variance.shape, torch.float32)
    flat = water_filling(variance.flatten().sort().values, 0.1, 1.0)
    torch.testing.assert_close(found.flatten().sort().values, flat)


@pytest.mark.parametrize("noise", [1e3, 1e5, 1e8, 1e12, 1e300])
@pytest.mark.parametrize("power", [1.0, 1e-3])
def test_the_power_is_kept_at_any_noise(noise: float, power: float) -> None:
    for variances in (torch.tensor([3.0, 2.0, 0.5]), torch.tensor([2.0, 2.0, 1.0]), spectrum()):
        shares = water_filling(variances.double(), noise, power)
        assert float(shares.sum()) == pytest.approx(power, rel=1e-6)
        assert float(shares.min()) >= 0


def test_high_noise_continues_what_less_noise_gives() -> None:
    variances = 1 + torch.linspace(0, 1e-8, 50, dtype=torch.float64)  # so near to each other that many are active
    below, above = (water_filling(variances, noise, 1.0) for noise in (1e4, 1.000001e4))
    assert 1 < int((above > 0).sum()) < 50
    assert torch.allclose(below, above, atol=1e-4)
