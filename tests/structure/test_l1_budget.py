# SPDX-License-Identifier: Apache-2.0
"""Power allocation under an L1 clip, against brute force and against its own constraints."""

import math

import pytest
import torch

from lightning_recon.image_format import ImageFormat, rgb
from lightning_recon.structure.coding.channel_code import LADDER, decode_batch, encode, message_bits, needed_snr
from lightning_recon.structure.coding.code_plan import HEADER, NEIGHBOURS_DB, least_bits
from lightning_recon.structure.coding.l1_budget import (
    SKETCH_SHARE,
    l1_plan,
    l1_power,
    l1_water_filling,
    norm_ratio,
)
from lightning_recon.structure.coding.laplace_channel import laplace_capacity, laplace_needed_snr

SPECTRUM = 100.0 / torch.arange(1, 401, dtype=torch.float64) ** 1.5


def error(amplitudes: torch.Tensor) -> float:
    return float((SPECTRUM / (1 + amplitudes.square())).sum())


@pytest.mark.parametrize("budget", [0.5, 3.0, 20.0, 500.0])
def test_allocation_keeps_the_budget_and_nothing_near_is_better(budget: float) -> None:
    found = l1_water_filling(SPECTRUM, budget)
    assert float(found.sum()) == pytest.approx(budget)
    generator = torch.Generator().manual_seed(0)
    for scale in (0.01, 0.1, 0.5):
        for _ in range(20):
            factors = 1 + scale * torch.randn(len(found), generator=generator, dtype=torch.float64)
            other = (found * factors).clamp(1e-12)
            assert error(found) <= error(other * budget / other.sum()) * (1 + 1e-3)
    if budget > 1:
        # Against every prefix with equal amplitudes, and against the allocation that a Euclidean clip would have.
        for count in range(1, 400, 7):
            equal = torch.where(torch.arange(400) < count, budget / count, 0.0).double()
            assert error(found) <= error(equal) * (1 + 1e-9)
        assert float(found[found > 0].min()) >= 1 - 1e-6 or int((found > 0).sum()) == 1


@pytest.mark.parametrize(("budget", "sent"), [(1.5, 1), (7.0, 7), (50.0, 50), (400.0, 100)])
def test_of_equal_coefficients_as_many_are_sent_as_the_budget_allows(budget: float, sent: int) -> None:
    found = l1_water_filling(torch.ones(100), budget)
    assert int((found > 0).sum()) == sent
    assert float(found.max()) == pytest.approx(budget / sent)
    assert float(found.sum()) == pytest.approx(budget)


def test_no_noise_sends_everything() -> None:
    power = l1_power(SPECTRUM.float(), 0.0, 0.08)
    assert bool((power > 0).all())
    assert float(power.sum()) == pytest.approx(0.92, rel=1e-5)


def test_ratio_of_norms_is_that_of_random_rows() -> None:
    power = l1_power(SPECTRUM, 0.01, 0.08)
    rows = power.sqrt() * torch.randn(20_000, len(power), generator=torch.Generator().manual_seed(0)).double()
    rows = torch.cat([rows, torch.full((len(rows), 1), math.sqrt(0.08)).double()], 1)
    assert norm_ratio(power, 0.08) == pytest.approx(float(rows.abs().sum(1).mean()), rel=0.01)


@pytest.mark.parametrize("shared", [False, True])
def test_plan_spends_the_l1_budget(shared: bool) -> None:
    noise = 2e-5
    found = l1_plan(noise, rgb(64), 1_000_000, shared, 0.2, False, sketch_ratio=10.0)
    assert found is not None
    plan, ratio = found
    amplitude = plan.amplitudes[0]
    assert HEADER * plan.header**2 + plan.inputs * amplitude**2 + plan.sketch == pytest.approx(1)
    assert HEADER * plan.header + plan.inputs * amplitude + math.sqrt(plan.sketch) * 10.0 == pytest.approx(ratio)
    assert math.sqrt(plan.sketch) * 10.0 == pytest.approx(SKETCH_SHARE * ratio)
    # In units of the noise: the amplitude that the chosen rate needs.
    spare = 10 ** ((0.2 + NEIGHBOURS_DB * shared) / 20)
    amplitude /= ratio * noise * spare
    assert amplitude**2 == pytest.approx(needed_snr(plan.fair, plan.inputs), rel=1e-3)
    # No other rate would carry more bits.
    for rung in range(len(LADDER)):
        other = int(plan.inputs * amplitude / math.sqrt(needed_snr(rung, plan.inputs)))
        assert message_bits(rung, other) <= 1.01 * message_bits(plan.fair, plan.inputs)


def test_no_plan_where_the_noise_is_high() -> None:
    assert l1_plan(1e-3, rgb(64), 1_000_000, False, 0.2, False, 10.0) is None
    assert l1_plan(1e-3, rgb(64), 1_000_000, False, 0.2, True, 10.0) is not None
    assert l1_plan(1e-2, rgb(64), 1_000_000, False, 0.2, True, 10.0) is None  # too short for a code


@pytest.mark.parametrize("always_digital", [False, True])
def test_no_plan_whose_messages_hold_no_image(always_digital: bool) -> None:
    """Of small 16-bit images 2.5 bits for every three values are too few for any JPEG 2000."""
    image_format, bits = ImageFormat(1, 16, 16, 16), []
    for exponent in torch.linspace(-5, -2.5, 26).tolist():
        found = l1_plan(10**exponent, image_format, 1_000_000, False, 0.2, always_digital, 10.0)
        bits += [] if found is None else [message_bits(found[0].fair, found[0].inputs)]
    assert 0 < len(bits) < 26
    assert min(bits) >= least_bits(image_format, always_digital)


@pytest.mark.parametrize(
    ("image_format", "least"),
    [
        (rgb(64), 115 * 64),
        (ImageFormat(1, 32, 32), 90 * 32),
        (ImageFormat(1, 32, 32, 16), 4 * 32 * 32),
        (ImageFormat(3, 32, 32, 16), 13 * 32 * 32),
    ],
)
def test_messages_are_as_long_as_makes_an_image_better_than_the_linear_code_s(
    image_format: ImageFormat, least: int
) -> None:
    bits = []
    for exponent in torch.linspace(-5, -3.5, 31).tolist():
        found = l1_plan(10**exponent, image_format, 1_000_000, False, 0.1, False, 10.0, True)
        bits += [] if found is None else [message_bits(found[0].fair, found[0].inputs)]
    assert least <= min(bits) < 1.2 * least


@pytest.mark.parametrize("rung", [3, 10, 17])
def test_codewords_come_through_laplace_noise_at_the_ratio_that_is_named(rung: int) -> None:
    inputs, count = 5000, 16
    snr = laplace_needed_snr(rung, inputs)
    amplitude, scale = math.sqrt(snr), math.sqrt(0.5)
    bits = torch.randint(0, 2, (count, message_bits(rung, inputs)), generator=torch.Generator().manual_seed(rung))
    sent = torch.stack([1.0 - 2.0 * encode(message, rung, inputs) for message in bits])
    torch.manual_seed(rung)
    noise = torch.distributions.Laplace(0.0, scale)

    def lost(level: float) -> int:
        received = level * sent + noise.sample(sent.shape)
        beliefs = ((received + level).abs() - (received - level).abs()) / scale
        found = decode_batch(beliefs, rung)
        return sum(one is None or not torch.equal(one, message) for one, message in zip(found, bits, strict=True))

    assert lost(amplitude) <= 1
    assert lost(amplitude * 10 ** (-2 / 20)) >= count - 2


@pytest.mark.parametrize("snr", [0.01, 0.3, 2.0, 8.0])
def test_capacity_in_laplace_noise_is_the_mean_information_of_samples(snr: float) -> None:
    scale = math.sqrt(0.5)
    noise = torch.distributions.Laplace(torch.zeros((), dtype=torch.float64), scale).sample((400_000,))
    likelihood = ((noise + 2 * math.sqrt(snr)).abs() - noise.abs()) / scale
    information = 1 - torch.nn.functional.softplus(-likelihood) / math.log(2)
    error = float(information.std()) / math.sqrt(len(noise))
    assert laplace_capacity(snr) == pytest.approx(float(information.mean()), abs=5 * error)
