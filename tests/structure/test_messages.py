# SPDX-License-Identifier: Apache-2.0
"""A message holds the image itself where that fits, and else the better of two lossy files."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_recon.image_format import ImageFormat, rgb
from lightning_recon.structure.coding.channel_code import LADDER, message_bits
from lightning_recon.structure.coding.code_plan import Plan
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
