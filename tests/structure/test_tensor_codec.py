# SPDX-License-Identifier: Apache-2.0
"""The codec of tensor operations: round trips, rate control, and an entropy coder that equals the plain loop."""

import hashlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_recon.structure.coding.asymmetric_numeral import NumeralCoder
from lightning_recon.structure.coding.coefficient_symbols import FREQUENCIES
from lightning_recon.structure.coding.tensor_codec import TensorCodec

Photographs = Callable[[int], Tensor]


def psnr(image: Tensor, truth: Tensor) -> float:
    return float(-10 * (image - truth).square().mean().log10())


def pattern(height: int, width: int) -> Tensor:
    """An image that is the same on every machine, shape (1, 3, height, width)."""
    place = torch.arange(3 * height * width).view(1, 3, height, width)
    return ((place * place * 7 + place // 5) % 256).float() / 255


def test_more_bits_make_better_images(photographs: Photographs) -> None:
    images = photographs(32)[:2]
    for image in images:
        quality = []
        for bits in (600, 2_000, 6_000):
            codec = TensorCodec(32, 32, bits)
            message = codec(image[None])[0]
            assert message.shape == (bits,)
            assert set(message.tolist()) == {0, 1}
            found = codec.decode(message)
            assert found is not None
            quality.append(psnr(found.float(), image))
        assert quality[0] > 14
        assert quality[2] > quality[1] + 5 > quality[0] + 8


def test_with_bits_enough_every_pixel_comes_back(photographs: Photographs) -> None:
    images = (photographs(32)[:4] * 255).round() / 255
    codec = TensorCodec(32, 32, 24 * 32 * 32)
    for image, message in zip(images, codec(images), strict=True):
        found = codec.decode(message)
        assert found is not None
        assert torch.equal((found * 255).round(), (image * 255).round().double())


@pytest.mark.parametrize("size", [(20, 28), (8, 8), (30, 16)])
def test_sides_that_are_no_multiple_of_a_block(size: tuple[int, int], photographs: Photographs) -> None:
    image = photographs(32)[:1, :, : size[0], : size[1]]
    codec = TensorCodec(*size, 4_000)
    found = codec.decode(codec(image)[0])
    assert found is not None
    assert found.shape == image.shape[1:]
    assert psnr(found.float(), image[0]) > 20


def test_images_of_any_kind_fit() -> None:
    generator = torch.Generator().manual_seed(1)
    board = (torch.arange(24)[:, None] + torch.arange(24)) % 2
    images = torch.stack(
        [
            torch.zeros(3, 24, 24),
            torch.ones(3, 24, 24),
            torch.rand(3, 24, 24, generator=generator).round(),
            board.expand(3, -1, -1).float(),
        ]
    )
    codec = TensorCodec(24, 24, 1_500)
    for image, message in zip(images, codec(images), strict=True):
        found = codec.decode(message)
        assert found is not None
        assert float((found - image).square().mean()) < 0.26  # the mean grey is wrong by 0.25
    assert torch.equal(codec.decode(codec(images[:1])[0]).float().round(), images[0])  # type: ignore[union-attr]
    # Room to spare is filled differently for different images.
    first, second = TensorCodec(24, 24, 40_000)(images[:2])
    assert 0.45 < float((first != second)[20_000:].float().mean()) < 0.55


def test_a_wrong_bit_is_noticed() -> None:
    codec = TensorCodec(16, 16, 800)
    message = codec(pattern(16, 16))[0]
    assert codec.decode(message) is not None
    for place in (0, 10, 400, 799):
        wrong = message.clone()
        wrong[place] = 1 - wrong[place]
        assert codec.decode(wrong) is None


def test_a_known_message() -> None:
    message = TensorCodec(16, 24, 1_200)(pattern(16, 24))[0]
    assert hashlib.sha256(bytes(message.tolist())).hexdigest()[:16] == "b0c808a884bb9001"


def test_no_precision_of_the_client_changes_a_bit(photographs: Photographs) -> None:
    images = photographs(32)[:2]
    codec = TensorCodec(32, 32, 1_000)
    messages = codec(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codec(images), messages)
    assert torch.equal(TensorCodec(32, 32, 1_000).bfloat16()(images), messages)
    assert torch.equal(codec(images.double()), messages)
    assert torch.equal(torch.cat([codec(images[:1]), codec(images[1:])]), messages)


def test_composed_moves_are_those_of_the_loop() -> None:
    coder = NumeralCoder(FREQUENCIES)
    generator = torch.Generator().manual_seed(2)
    levels = torch.randint(len(FREQUENCIES), (2, 301), generator=generator)
    symbols = torch.stack(
        [torch.tensor([int(torch.randint(len(FREQUENCIES[level]), (), generator=generator)) for level in row])
         for row in levels.tolist()]
    )  # fmt: skip
    states, emitted, counts = coder.encode(coder.first[levels] + symbols)
    for image in range(2):
        state, bits = 0, [""] * 301
        for place in reversed(range(301)):
            row = (int(coder.first[levels[image, place]]) + int(symbols[image, place])) * coder.states
            count = int(coder.emitted[row + state])
            bits[place] = f"{(state + coder.states) % 2**count:0{count}b}" if count else ""
            state = int(coder.moves[row + state])
        assert state == int(states[image])
        assert counts[image].tolist() == list(map(len, bits))
        assert emitted[image].tolist() == [int(word or "0", 2) for word in bits]
        # Decoding reads the symbols in their order, and ends where encoding began.
        for level, symbol, word in zip(levels[image].tolist(), symbols[image].tolist(), bits, strict=True):
            found, count, base = coder.decoding[level][state]
            assert (found, count) == (symbol, len(word))
            state = base + int(word or "0", 2)
        assert state == 0
