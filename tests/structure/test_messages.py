# SPDX-License-Identifier: Apache-2.0
"""A message holds the image itself where that fits, and else the better of two lossy files."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_recon.image_format import ImageFormat, rgb
from lightning_recon.structure.coding.channel_code import LADDER, message_bits
from lightning_recon.structure.coding.code_plan import Plan, digital_plan
from lightning_recon.structure.coding.messages import image_of, message_of

Photographs = Callable[[int], Tensor]


def plan_of(inputs: int, bit_depth: int = 8) -> Plan:
    """A plan with the lowest rate alone."""
    return Plan(inputs, 1.0, (1.0, *[0.0] * (len(LADDER) - 1)), 0, 0.0, False, bit_depth=bit_depth)


def inputs_of(bits: int) -> int:
    return round(bits / LADDER[0].rate)


def original(photographs: Photographs, place: int = 3) -> Tensor:
    return (photographs(48)[place] * 255).round().to(torch.uint8)


@pytest.mark.parametrize(("bits_a_pixel", "codec"), [(20, "webp"), (1, "avif"), (6, "tensor"), (0.1, "tensor")])
def test_the_better_file_is_sent(photographs: Photographs, bits_a_pixel: float, codec: str) -> None:
    image, plan = original(photographs), plan_of(inputs_of(int(bits_a_pixel * 48 * 48)))
    rung, bits = message_of(image, plan)
    assert (rung, len(bits)) == (0, message_bits(0, plan.inputs))
    found = image_of(bits, plan, rgb(48))
    assert found is not None
    assert found[1] == codec
    assert torch.equal(found[0], image) == (codec == "webp")


def test_a_wrong_bit_is_no_image(photographs: Photographs) -> None:
    for bits_a_pixel in (1, 6):
        plan = plan_of(inputs_of(bits_a_pixel * 48 * 48))
        _, bits = message_of(original(photographs), plan)
        bits[40] ^= 1
        assert image_of(bits, plan, rgb(48)) is None


def test_other_formats_have_no_tensor_codec(photographs: Photographs) -> None:
    grey = original(photographs)[:1]
    plan = plan_of(inputs_of(48 * 48))
    found = image_of(message_of(grey, plan)[1], plan, ImageFormat(1, 48, 48))
    assert found is not None
    assert found[1] == "avif"
    # Nothing fits: the message says so.
    small = plan_of(inputs_of(100))
    assert image_of(message_of(grey, small)[1], small, ImageFormat(1, 48, 48)) is None


def noisiest_plan(image_format: ImageFormat, always_digital: bool) -> Plan:
    """The plan at the highest noise for which there is one."""
    low, high, found = math.log(1e-3), math.log(1.0), None
    for _ in range(14):
        middle = (low + high) / 2
        plan = digital_plan(math.exp(middle), image_format, 400_000, False, 0.1, always_digital)
        low, high, found = (low, middle, found) if plan is None else (middle, high, plan)
    assert found is not None
    return found


@pytest.mark.parametrize("always_digital", [False, True])
@pytest.mark.parametrize(("channels", "bit_depth"), [(1, 8), (1, 16), (3, 12), (4, 8)])
@pytest.mark.parametrize("size", [24, 64])
def test_a_plan_is_made_only_where_every_message_holds_an_image(
    photographs: Photographs, size: int, channels: int, bit_depth: int, always_digital: bool
) -> None:
    """At the highest noise, of photographs and of what no file of so few bytes holds: noise."""
    image_format = ImageFormat(channels, size, size, bit_depth)
    plan = noisiest_plan(image_format, always_digital)
    grey = photographs(size).mean(dim=1)
    images = [*grey[[0, 5, 10]][:, None].expand(-1, channels, -1, -1), torch.rand(channels, size, size)]
    for image in images:
        integers = image_format.integers(image)
        rung, bits = message_of(integers, plan)
        found = image_of(bits, plan, image_format)
        assert rung == plan.fair
        assert found is not None
        # Nearer than black.
        assert float((image_format.values(found[0]) - image).square().mean()) < float(image.square().mean())
