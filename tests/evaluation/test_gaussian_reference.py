# SPDX-License-Identifier: Apache-2.0
"""The Gaussian reference of true images: known answers for sources whose spectrum is known."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lightning_recon.evaluation.bounds import gaussian_distortion
from lightning_recon.evaluation.gaussian_reference import FEWEST_IMAGES, gaussian_reference
from lightning_recon.priors.dct import inverse_cosine

SIZE = 16


@dataclass
class Source:
    """Images of a Gaussian source, half of whose pixels may be cut out."""

    photographs: Tensor
    masks: Tensor

    @property
    def images(self) -> Tensor:
        return self.photographs * self.masks


def white(count: int, std: float, share: float = 1.0, seed: int = 0) -> Source:
    noise = torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    masks = torch.zeros(count, 1, SIZE, SIZE, dtype=torch.bool)
    masks[..., : round(share * SIZE)] = True
    return Source(0.5 + std * noise, masks)


@pytest.mark.parametrize("nats", [1.0, 300.0, 1000.0])
def test_white_noise_has_the_distortion_of_equal_components(nats: float) -> None:
    reference = gaussian_reference([white(400, 0.1)], nats, "sample")
    assert reference is not None
    values = 3 * SIZE * SIZE
    expected = -10 * math.log10(0.01 * math.exp(-2 * nats / values))
    assert reference.psnr == pytest.approx(expected, abs=0.1)
    assert reference.low < reference.psnr < reference.high
    assert reference.high - reference.low < 0.3


def test_a_coloured_source_has_the_distortion_of_reverse_water_filling() -> None:
    frequency = 1 + torch.arange(SIZE, dtype=torch.float32)
    variance = (0.2 / frequency[:, None] / frequency).square().expand(3, SIZE, SIZE) * SIZE**2
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1000, 3, SIZE, SIZE, generator=generator)
    images = inverse_cosine(variance.sqrt() * noise)
    source = Source(images, torch.ones(1000, 1, SIZE, SIZE, dtype=torch.bool))
    for nats in (50.0, 500.0):
        reference = gaussian_reference([source], nats, "sample")
        assert reference is not None
        expected = -10 * math.log10(gaussian_distortion(variance, nats) / variance.numel())
        assert reference.psnr == pytest.approx(expected, abs=0.3)  # bands of half an octave


def test_outside_the_subject_there_is_nothing_to_describe() -> None:
    whole, half = (gaussian_reference([white(400, 0.1, share)], 200.0, "sample") for share in (1.0, 0.5))
    assert whole is not None
    assert half is not None
    values = 3 * SIZE * SIZE
    # Half as many values at twice the rate each, and no error elsewhere.
    expected = -10 * math.log10(0.5 * 0.01 * math.exp(-4 * 200.0 / values))
    assert half.psnr == pytest.approx(expected, abs=0.1)
    assert half.psnr > whole.psnr + 3


def test_a_clipped_update_shares_its_rate_among_its_images() -> None:
    batches = [white(4, 0.1, 1.0 if number % 2 else 0.5, number) for number in range(40)]
    alone, shared = gaussian_reference(batches, 200.0, "sample"), gaussian_reference(batches, 4 * 200.0, "update")
    assert alone is not None
    assert shared is not None
    assert shared.psnr == pytest.approx(alone.psnr, abs=1e-6)  # images of one update are alike here
    mixed = [Source(torch.cat([one.photographs, other.photographs]), torch.cat([one.masks, other.masks]))
             for one, other in zip(batches[::2], batches[1::2], strict=True)]  # fmt: skip
    together = gaussian_reference(mixed, 8 * 200.0, "update")
    assert together is not None
    assert together.psnr > alone.psnr  # the rate goes where it is needed


def test_few_images_and_no_rate() -> None:
    assert gaussian_reference([white(FEWEST_IMAGES - 1, 0.1)], 10.0, "sample") is None
    assert gaussian_reference([], 10.0, "sample") is None
    exact = gaussian_reference([white(8, 0.1)], math.inf, "sample")
    assert exact is not None
    assert exact.psnr == 100.0
