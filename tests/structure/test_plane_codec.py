# SPDX-License-Identifier: Apache-2.0
"""JPEG 2000 of deep and of many-channel images: exact, as good as fits, and smaller than what is plain."""

import zlib

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_recon.image_format import ImageFormat
from lightning_recon.structure.coding.image_codec import OVERHEAD, codec_of, framed, lossless, lossy, unframed


def smooth(image_format: ImageFormat, alike: bool = False) -> Tensor:
    """Images with the spectrum of photographs; with `alike` the channels differ by little noise."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(image_format.shape, generator=generator).cumsum(1).cumsum(2)
    if alike:
        image = image[:1] + 0.01 * image
    low, high = image.amin(), image.amax()
    return image_format.integers((image - low) / (high - low))


@pytest.mark.parametrize(
    "image_format",
    [ImageFormat(1, 24, 31, 16), ImageFormat(1, 9, 40, 12), ImageFormat(3, 24, 24, 16), ImageFormat(4, 24, 24, 8)],
    ids=str,
)
def test_lossless_files_come_back_exactly(image_format: ImageFormat) -> None:
    for image in (
        smooth(image_format),
        torch.randint(0, image_format.largest + 1, image_format.shape).to(image_format.dtype),
    ):
        data = lossless(image, image_format.bit_depth)
        found = unframed(framed(data, True, 8 * (len(data) + OVERHEAD) + 3), image_format)
        assert found is not None
        assert found[1]
        assert found[0].dtype == image.dtype
        assert torch.equal(found[0], image)
    assert codec_of(True, image_format) == "jpeg2000"


def test_lossless_files_are_smaller_than_deflated_values() -> None:
    image_format = ImageFormat(1, 64, 64, 16)
    image = smooth(image_format)
    assert len(lossless(image, 16)) < 0.95 * len(zlib.compress(image.numpy().astype(np.uint16).tobytes(), 9))


def test_channels_that_are_alike_cost_less() -> None:
    image_format = ImageFormat(4, 48, 48, 12)
    apart = sum(len(lossless(plane[None], 12)) for plane in smooth(image_format, alike=True))
    assert len(lossless(smooth(image_format, alike=True), 12)) < 0.8 * apart


@pytest.mark.parametrize("image_format", [ImageFormat(1, 48, 48, 16), ImageFormat(5, 48, 48, 8)], ids=str)
def test_lossy_files_are_better_the_longer(image_format: ImageFormat) -> None:
    image, errors = smooth(image_format), []
    for most in (200 * image_format.channels, 600 * image_format.channels, 1500 * image_format.channels):
        data = lossy(image, most, image_format.bit_depth)
        assert 0 < len(data) <= most
        found = unframed(framed(data, False, 8 * (most + OVERHEAD)), image_format)
        assert found is not None
        assert not found[1]
        errors.append(float((image_format.values(found[0]) - image_format.values(image)).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4
    assert lossy(image, 10, image_format.bit_depth) == b""


@pytest.mark.parametrize("most", [300, 1200])
def test_grey_files_of_8_bits_are_grey(most: int) -> None:
    image_format = ImageFormat(1, 48, 48)
    image = smooth(image_format)
    data = lossy(image, most)
    found = unframed(framed(data, False, 8 * (most + OVERHEAD)), image_format)
    assert found is not None
    assert found[0].shape == image_format.shape
    assert float((image_format.values(found[0]) - image_format.values(image)).square().mean()) < 0.01
    exact = lossless(image)
    again = unframed(framed(exact, True, 8 * (len(exact) + OVERHEAD)), image_format)
    assert again is not None
    assert torch.equal(again[0], image)
