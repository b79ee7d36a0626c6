# SPDX-License-Identifier: Apache-2.0
"""The noise that clients add: its distribution, its independence and its reproducibility."""

import math

import pytest
import torch
from scipy import stats

from lightning_recon.client.noise import CHUNK, add_noise
from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.privacy.gaussian import Gaussian

SOURCE = NoiseSource(0)


def noise(count: int, *place: int, name: str = "a", source: NoiseSource = SOURCE) -> torch.Tensor:
    return add_noise({name: torch.zeros(count)}, 1.0, source.generators(*(place or (0, 0, 0))))[name]


def test_noise_has_the_promised_distribution() -> None:
    n, std = 400_001, 0.02
    drawn = add_noise({"a": torch.zeros(n)}, std, SOURCE.generators(0, 0, 0))["a"].double() / std
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs(drawn.pow(power).mean() - moment) < 5 * math.sqrt(spread / n)
    assert stats.kstest(drawn.numpy(), stats.norm.cdf).pvalue > 0.01
    tail = int((drawn.abs() > 4).sum())
    assert abs(tail - n * 6.334e-5) < 5 * math.sqrt(n * 6.334e-5)


def test_the_extreme_bits_of_a_generator_give_finite_numbers() -> None:
    class Extreme:
        bit_generator = None

        def __init__(self, bits: int) -> None:
            self.bit_generator, self.bits = self, bits

        def random_raw(self, count: int) -> object:
            import numpy as np

            return np.full(count, self.bits, np.uint64)

    for bits, most in ((0, 6.7), (2**64 - 1, 1e-3), (2**63, 6.7), (0x7FFFFFFF7FFFFFFF, 1e-3)):
        drawn = Gaussian().sample(5, Extreme(bits))  # type: ignore[arg-type]
        assert drawn.shape == (5,)
        assert bool(drawn.isfinite().all())
        assert drawn.abs().max() <= most


def test_streams_of_clients_draws_rounds_tensors_and_keys_are_uncorrelated() -> None:
    n = 100_000
    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (11, 0, 0), (1, 1, 0), (0, 0, 2**40)]
    drawn = [noise(n, *place) for place in places]
    drawn += [noise(n, name="b"), noise(n, name="a.b"), noise(n, source=NoiseSource(1)), noise(n, source=NoiseSource())]
    drawn += [noise(n + 1)[1:]]  # the first stream, shifted
    correlation = torch.corrcoef(torch.stack(drawn)) - torch.eye(len(drawn))
    assert correlation.abs().max() < 5 / math.sqrt(n)
    spectrum = torch.fft.rfft(drawn[0].double())  # of a stream itself, at all lags and periods
    assert spectrum.abs().square().max() / n < 25
    assert torch.equal(noise(n, *places[3]), drawn[3])


def test_secret_noise_is_drawn_anew_and_equal_for_equal_places_of_one_run() -> None:
    one, other = NoiseSource(), NoiseSource()
    assert torch.equal(noise(9, source=one), noise(9, source=one))
    assert not torch.equal(noise(9, source=one), noise(9, source=other))


def test_noise_does_not_depend_on_the_order_of_tensors_their_dtype_or_other_tensors() -> None:
    sizes = {"a": (37, 11), "b": (5,), "c": (CHUNK, 3)}

    def draw(names: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return add_noise({n: torch.zeros(sizes[n], dtype=dtype) for n in names}, 2.0, SOURCE.generators(1, 4, 1))

    whole, single = draw("abc", torch.float32), draw("c", torch.float32) | draw("ba", torch.float64)
    for name, tensor in whole.items():
        assert torch.equal(tensor, single[name].float())
    assert len(whole["c"].unique()) > 0.9 * whole["c"].numel()  # no chunk repeats another


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_noise_is_added_in_place_and_zero_noise_changes_nothing(scale: float) -> None:
    before = {"a": torch.full((2, 2), 3.0), "b": torch.full((4,), 4.0)}
    after = add_noise(before, scale, SOURCE.generators(0, 0, 0))
    assert after["a"] is before["a"]
    assert bool((after["a"] == 3).all()) == (scale == 0)
