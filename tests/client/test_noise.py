# SPDX-License-Identifier: Apache-2.0
"""The noise that clients add: its distribution, its independence and its reproducibility."""

import math

import pytest
import torch

from lightning_recon.client import noise as noise_module
from lightning_recon.client.noise import add_noise, noise_generator


def gradients() -> dict[str, torch.Tensor]:
    return {"a": torch.full((2, 2), 3.0), "b": torch.full((4,), 4.0)}


def test_noise_has_the_promised_distribution() -> None:
    n, std = 400_000, 0.02
    noise = add_noise({"a": torch.zeros(n)}, std, noise_generator(0, 0, 0, 0))["a"] / std
    assert abs(noise.mean()) < 5 / math.sqrt(n)
    assert abs(noise.square().mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs(noise.pow(4).mean() - 3) < 5 * math.sqrt(96 / n)


def test_noise_streams_are_reproducible_and_independent() -> None:
    n = 100_000
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 11, 0, 0), (0, 1, 1, 0)]
    noises = torch.stack([add_noise({"a": torch.zeros(n)}, 1.0, noise_generator(*key))["a"] for key in keys])
    again = add_noise({"a": torch.zeros(n)}, 1.0, noise_generator(*keys[3]))["a"]
    assert torch.equal(noises[3], again)
    correlation = torch.corrcoef(noises) - torch.eye(len(keys))
    assert correlation.abs().max() < 5 / math.sqrt(n)


def test_noise_does_not_depend_on_chunks_order_or_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(names: tuple[str, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
        sizes = {"a": (37, 11), "b": (5,), "c": (1000,)}
        return add_noise({n: torch.zeros(sizes[n], dtype=dtype) for n in names}, 2.0, noise_generator(3, 1, 4, 1))

    whole = draw(("a", "b", "c"), torch.float32)
    monkeypatch.setattr(noise_module, "CHUNK", 64)
    small = draw(("c", "a", "b"), torch.float64)
    for name, tensor in whole.items():
        assert torch.equal(tensor, small[name].float())


def test_noise_is_added_in_place_and_zero_noise_changes_nothing() -> None:
    before = gradients()
    after = add_noise(before, 1.0, noise_generator(0, 0, 0, 0))
    assert after["a"] is before["a"]
    same = add_noise(gradients(), 0.0, noise_generator(0, 0, 0, 0))
    assert all(torch.equal(same[name], tensor) for name, tensor in gradients().items())
