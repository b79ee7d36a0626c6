# SPDX-License-Identifier: Apache-2.0
"""The decoder against Bayes' rule computed by brute force, and in its limits."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_recon.structure.coding.power_allocation import water_filling
from lightning_recon.structure.detection.wiener import RowPosterior, RowPrior, decode_row

LEVEL = 0.3
COUNT = 300


def prior(log_contrast_std: float = 0.5, scale: float = 1.5, log_scale_std: float = 0.0) -> RowPrior:
    variance = torch.arange(1, COUNT + 1, dtype=torch.float64) ** -2.0
    power = water_filling(variance, 0.01, 1 - LEVEL**2).float()
    return RowPrior(power, LEVEL, log_contrast_std, scale, log_scale_std)


def encoded(prior: RowPrior, contrast: float) -> tuple[Tensor, float]:
    """Inputs of an image of this contrast, and its scale S."""
    inputs = (contrast * prior.power).sqrt() * torch.randn(len(prior.power))
    # Scaled to its expected energy, so that scale and contrast belong together exactly.
    budget = contrast * (1 - prior.pilot_level**2)
    inputs = inputs * (budget / inputs.square().sum()).sqrt()
    return inputs, prior.scale * math.sqrt(budget + prior.pilot_level**2)


def decoded(prior: RowPrior, inputs: Tensor, scale: float, noise: float, sign: int = 1) -> RowPosterior:
    row = sign * inputs / scale + noise * torch.randn_like(inputs)
    pilot = sign * prior.pilot_level / scale + noise * float(torch.randn(()))
    return decode_row(row, pilot, noise, prior)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("log_scale_std", [0.0, 0.4])
@pytest.mark.parametrize("contrast", [0.4, 1.0, 2.5])
def test_the_truth_is_approached_as_noise_vanishes(contrast: float, log_scale_std: float, sign: int) -> None:
    expected = prior(log_scale_std=log_scale_std)
    inputs, scale = encoded(expected, contrast)
    scale *= 1.0 if log_scale_std == 0 else 1.3  # neighbours louder than usual
    errors, doubts = [], []
    for noise in (0.1, 1e-2, 1e-3, 1e-4, 0.0):
        found = decoded(expected, inputs, scale, noise, sign)
        errors.append(float((found.inputs - inputs).square().sum() / inputs.square().sum()))
        doubts.append(float(found.variance.sum()))
    assert errors == sorted(errors, reverse=True)
    assert doubts == sorted(doubts, reverse=True)
    # What remains without noise is the step of the grid of scales.
    assert errors[-1] < 1e-5
    assert found.contrast == pytest.approx(contrast, rel=0.15 if log_scale_std else 0.02)


def test_a_turned_sign_changes_nothing() -> None:
    expected = prior()
    row, pilot = 0.1 * torch.randn(COUNT), 0.21
    for log_scale_std in (0.0, 0.4):
        one = decode_row(row, pilot, 0.03, replace(expected, log_scale_std=log_scale_std))
        other = decode_row(-row, -pilot, 0.03, replace(expected, log_scale_std=log_scale_std))
        torch.testing.assert_close(one.inputs, other.inputs, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(one.variance, other.variance, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("log_scale_std", [0.0, 0.4])
def test_hopeless_noise_leaves_the_mean_image_and_the_prior(log_scale_std: float) -> None:
    expected = prior(log_scale_std=log_scale_std)
    inputs, scale = encoded(expected, 1.0)
    found = decoded(expected, inputs, scale, 100.0)
    assert float(found.inputs.square().sum()) < 1e-4
    # The mean of a log-normal contrast is 1, whatever its spread.
    assert found.contrast == pytest.approx(1.0 if log_scale_std == 0 else 1.5, rel=0.5)
    torch.testing.assert_close(found.variance, found.contrast * expected.power, rtol=0.02, atol=1e-9)


@pytest.mark.parametrize("pilot", [0.0, 0.05, 0.2, -0.2])
def test_with_a_known_scale_it_is_wieners_filter_times_the_confidence_in_the_sign(pilot: float) -> None:
    known, noise = prior(log_contrast_std=0.0, scale=1.5), 0.1
    row = 0.1 * torch.randn(COUNT)
    found = decode_row(row, pilot, noise, known)
    gain = known.power / (known.power + (1.5 * noise) ** 2)
    confidence = math.tanh(pilot * LEVEL / 1.5 / noise**2)
    expected = confidence * gain * 1.5 * row
    torch.testing.assert_close(found.inputs, expected, rtol=1e-3, atol=1e-6)
    variance = known.power * (1 - gain) + (gain * 1.5 * row) ** 2 - expected**2
    torch.testing.assert_close(found.variance, variance, rtol=2e-3, atol=1e-7)
    assert found.contrast == pytest.approx(1.0, rel=1e-3)


def test_it_is_the_posterior_of_bayes_rule() -> None:
    """Importance sampling over sign, contrast and inputs: slow and simple."""
    small = RowPrior(torch.tensor([0.6, 0.25, 0.06]), LEVEL, 0.5, 1.2, 0.0)
    draws, noise = 2_000_000, 0.25
    for row, pilot in (([0.7, -0.2, 0.1], 0.25), ([-0.3, 0.5, 0.0], 0.1), ([0.2, 0.1, -0.4], -0.5)):
        contrast = (0.5 * torch.randn(draws, 1) - 0.125).exp()
        inputs = (contrast * small.power).sqrt() * torch.randn(draws, 3)
        sign = torch.randint(2, (draws, 1)) * 2.0 - 1
        scale = sign * 1.2 * (contrast * (1 - LEVEL**2) + LEVEL**2).sqrt()
        sent = torch.cat([inputs, torch.full((draws, 1), LEVEL)], dim=1) / scale
        misfit = (sent - torch.tensor([*row, pilot])).square().sum(dim=1) / (2 * noise**2)
        weight = (misfit.min() - misfit).exp().double()
        weight = weight / weight.sum()
        mean = weight @ inputs.double()
        variance = weight @ (inputs.double() - mean).square()
        found = decode_row(torch.tensor(row), pilot, noise, small)
        torch.testing.assert_close(found.inputs.double(), mean, rtol=0, atol=0.01)
        torch.testing.assert_close(found.variance.double(), variance, rtol=0.03, atol=1e-3)
        assert found.contrast == pytest.approx(float(weight @ contrast[:, 0].double()), rel=0.02)


@pytest.mark.parametrize("log_scale_std", [0.0, 0.4])
@pytest.mark.parametrize("noise", [0.003, 0.01, 0.03])
def test_the_promised_variance_is_the_error_made(noise: float, log_scale_std: float) -> None:
    expected = prior(log_scale_std=log_scale_std)
    error, promise = 0.0, 0.0
    for _ in range(40):
        contrast = math.exp(0.5 * float(torch.randn(())) - 0.125)
        inputs, scale = encoded(expected, contrast)
        scale *= math.exp(log_scale_std * float(torch.randn(())))
        found = decoded(expected, inputs, scale, noise, 1)
        error += float((found.inputs - inputs).square().sum())
        promise += float(found.variance.sum())
    assert error == pytest.approx(promise, rel=0.25)


def test_blind_decoding_comes_near_an_oracle_that_knows_scale_and_contrast() -> None:
    blind, oracle = 0.0, 0.0
    for log_scale_std in (0.0, 0.4):
        expected = prior(log_scale_std=log_scale_std)
        for _ in range(40):
            contrast = math.exp(0.5 * float(torch.randn(())) - 0.125)
            inputs, scale = encoded(expected, contrast)
            row, pilot = inputs / scale + 0.01 * torch.randn(COUNT), LEVEL / scale + 0.01 * float(torch.randn(()))
            blind += float((decode_row(row, pilot, 0.01, expected).inputs - inputs).square().sum())
            gain = contrast * expected.power / (contrast * expected.power + (0.01 * scale) ** 2)
            oracle += float((gain * scale * row - inputs).square().sum())
    # A scale wrong by 3 % is an error of 0.1 % of the energy, some tenths of a decibel here.
    assert 10 * math.log10(blind / oracle) < 0.4


@pytest.mark.parametrize("share", [0.6, 0.1, 0.01])
def test_a_structure_with_a_part_of_the_budget_is_decoded_as_well(share: float) -> None:
    """The network takes the rest of the budget: images lose what the louder noise costs, and no more."""
    expected = prior(scale=1.0)
    inputs, scale = encoded(expected, 1.0)
    for noise in (0.0, 1e-5, 1e-3):
        whole = decoded(expected, inputs, scale, noise)
        part = decoded(expected, inputs, scale / share, noise * share)
        errors = [float((found.inputs - inputs).square().sum()) for found in (whole, part)]
        assert errors[1] < 2 * errors[0] + 1e-5 * float(inputs.square().sum())


def test_noise_does_not_pass_for_a_part_of_the_budget() -> None:
    expected = prior()
    for _ in range(20):
        inputs, scale = encoded(expected, 1.0)
        row, pilot = inputs / scale + 0.1 * torch.randn(COUNT), LEVEL / scale + 0.1 * float(torch.randn(()))
        free = decode_row(row, pilot, 0.1, replace(expected, log_scale_std=2.0))
        tied = decode_row(row, pilot, 0.1, expected)
        # Knowing the budget is worth something: the contrast is not stretched to where the noise could put it.
        assert abs(math.log(tied.contrast)) < 2
        assert float(tied.inputs.square().sum()) < float(free.inputs.square().sum()) + 3


def test_a_row_of_zeros_is_a_mean_image() -> None:
    found = decode_row(torch.zeros(COUNT), 0.0, 0.05, prior())
    assert not bool(found.inputs.any())
    assert bool(found.variance.isfinite().all())
