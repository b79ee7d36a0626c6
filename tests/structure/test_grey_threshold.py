# SPDX-License-Identifier: Apache-2.0
"""Images without the codec of tensor operations get a digital code where it is no worse than the linear one."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_recon.exchange import ClientUpdate, Task
from lightning_recon.image_format import ImageFormat, rgb
from lightning_recon.structure import Digital, Structure, WaterFilling
from lightning_recon.structure.coding.channel_code import message_bits
from lightning_recon.structure.coding.code_plan import worthwhile_bits
from lightning_recon.structure.coding.sign_channel import SignChannel
from lightning_recon.structure.coding.sign_plan import sign_layout
from lightning_recon.structure.layer_spec import LayerSpec

Photographs = Callable[[int], Tensor]
# Noise in units of the clip, and whether the digital code is sent at it.
CASES = [
    (8, 32, 0.0431, False),
    (8, 32, 0.024, True),
    (8, 64, 0.03, False),
    (8, 64, 0.021, True),
    (16, 64, 0.03, False),
    (16, 64, 0.0175, True),
]


@pytest.mark.parametrize(("bit_depth", "size", "noise", "digital"), CASES)
def test_the_digital_structure_is_no_worse_than_the_linear_one(
    photographs: Photographs,
    task: Callable[..., Task],
    release: Callable[..., ClientUpdate],
    bit_depth: int,
    size: int,
    noise: float,
    digital: bool,
) -> None:
    image_format = ImageFormat(1, size, size, bit_depth)
    announced = replace(task(size, 1, noise), image_shape=image_format.shape, bit_depth=bit_depth)
    images = image_format.values(image_format.integers(photographs(size)[::4].mean(dim=1, keepdim=True)))

    def psnr(structure: Structure) -> float:
        payload = structure.payload(announced)
        if isinstance(structure, Digital):
            assert (LayerSpec.of(payload).digital is not None) == digital
        scores = []
        for seed, image in enumerate(images):
            torch.manual_seed(seed)
            found = structure.decode(payload, announced, release(payload, announced, image[None])).images
            scores.append(-10 * (found - image).square().mean().log10())
        return float(torch.stack(scores).mean())

    assert psnr(Digital()) >= psnr(WaterFilling())


@pytest.mark.parametrize("image_format", [rgb(32), ImageFormat(1, 32, 32), ImageFormat(1, 32, 32, 16)])
def test_codes_of_signs_have_the_same_threshold(image_format: ImageFormat) -> None:
    noises = (0.01, 0.015, 0.02, 0.025, 0.03, 0.04)
    layouts = [sign_layout(SignChannel(noise), 1, image_format, 300_000, 320, 0.2) for noise in noises]
    bits = [message_bits(one.plan.fair, one.plan.inputs) for one in layouts if one is not None and one.plan is not None]
    assert 0 < len(bits) < len(noises)
    assert min(bits) >= worthwhile_bits(image_format)


def test_tiny_images_are_worth_a_message_as_long_as_they_are() -> None:
    """Layouts have no longer ones."""
    layout = sign_layout(SignChannel(1e-3), 1, ImageFormat(1, 8, 8, 16), 300_000, 320, 0.2)
    assert layout is not None
    assert layout.plan is not None


def test_the_threshold_of_8_bit_rgb_images_is_a_number_of_bits_a_pixel() -> None:
    assert worthwhile_bits(rgb(64)) == pytest.approx(0.16 * 64 * 64)
    assert worthwhile_bits(ImageFormat(1, 64, 64)) > 8 * 56
    assert worthwhile_bits(ImageFormat(3, 64, 64, 12)) > worthwhile_bits(ImageFormat(1, 64, 64, 12))
