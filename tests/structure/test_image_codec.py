# SPDX-License-Identifier: Apache-2.0
"""Files without containers come back as they were, and damaged ones are noticed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_recon.image_format import rgb
from lightning_recon.structure.coding import image_codec
from lightning_recon.structure.coding.image_codec import OVERHEAD, framed, lossless, lossy, unframed


def original(photographs: Callable[[int], Tensor], place: int = 3, size: int = 48) -> Tensor:
    return (photographs(size)[place] * 255).round().to(torch.uint8)


@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_lossless_file_is_the_image(photographs: Callable[[int], Tensor], place: int) -> None:
    image = original(photographs, place)
    data = lossless(image)
    content = unframed(framed(data, True, 8 * (len(data) + OVERHEAD) + 5), rgb(48))
    assert content is not None
    assert content[1]
    assert torch.equal(content[0], image)


def test_more_bytes_make_a_better_lossy_file(photographs: Callable[[int], Tensor]) -> None:
    image, errors = original(photographs), []
    for most in (150, 400, 1000):
        data = lossy(image, most)
        assert 0 < len(data) <= most
        content = unframed(framed(data, False, 8 * (most + OVERHEAD)), rgb(48))
        assert content is not None
        assert not content[1]
        errors.append(float((content[0].double() - image.double()).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 4
    assert lossy(image, 3) == b""


def test_a_file_is_written_once(photographs: Callable[[int], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    image = original(photographs)
    first = lossless(image), lossy(image, 300)
    written: list[object] = []
    monkeypatch.setattr(image_codec, "_saved", lambda *about, **options: written.append(about) or bytes(10))
    assert (lossless(image.clone()), lossy(image.clone(), 300)) == first
    assert not written
    assert lossless(image ^ 1) != first[0]
    assert written


def test_a_wrong_bit_fails_the_checksum(photographs: Callable[[int], Tensor]) -> None:
    data = lossy(original(photographs), 300)
    bits = framed(data, False, 8 * (300 + OVERHEAD))
    for place in (0, 30, 8 * len(data)):
        wrong = bits.clone()
        wrong[place] ^= 1
        assert unframed(wrong, rgb(48)) is None
    assert unframed(framed(b"", False, 400), rgb(48)) is None
    assert unframed(torch.zeros(16, dtype=torch.int64), rgb(48)) is None


def test_bits_are_balanced_however_short_the_file() -> None:
    assert framed(b"", False, 4000).double().mean() == pytest.approx(0.5, abs=0.05)
