# SPDX-License-Identifier: Apache-2.0
"""Lossless JPEG XL: the payload names it, files are shorter than WebP, and who lacks the extra is told."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, Task
from lightning_recon.image_format import format_of
from lightning_recon.structure import Digital
from lightning_recon.structure.coding import jpeg_xl
from lightning_recon.structure.coding.image_codec import OVERHEAD, codec_of, framed, lossless, unframed
from lightning_recon.structure.layer_spec import LayerSpec

Photographs = Callable[[int], Tensor]


@pytest.fixture
def installed() -> None:
    pytest.importorskip("imagecodecs")


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg_xl, "_installed", lambda: False)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("channels", [1, 3])
def test_files_come_back(photographs: Photographs, channels: int) -> None:
    for image in (photographs(64)[:4, :channels] * 255).round().to(torch.uint8):
        data = lossless(image, jpeg_xl=True)
        content = unframed(framed(data, True, 8 * (len(data) + OVERHEAD) + 5), format_of(image, 8), jpeg_xl=True)
        assert content is not None
        assert content[1]
        assert torch.equal(content[0], image)


@pytest.mark.usefixtures("installed")
def test_photographs_take_fewer_bytes_than_as_webp(photographs: Photographs) -> None:
    images = (photographs(64)[:4] * 255).round().to(torch.uint8)
    jxl, webp = (sum(len(lossless(image, jpeg_xl=which)) for image in images) for which in (True, False))
    assert jxl < 0.97 * webp


@pytest.mark.usefixtures("installed")
def test_the_payload_names_the_codec_of_its_files(
    photographs: Photographs, task: Callable[..., Task], release: Callable[..., ClientUpdate]
) -> None:
    images, announced, structure = (photographs(32)[:2] * 255).round() / 255, task(32, 2, 5e-4, "update"), Digital()
    payload = structure.payload(announced)
    plan = LayerSpec.of(payload).digital
    assert plan is not None
    assert plan.jpeg_xl
    decoded = structure.decode(payload, announced, release(payload, announced, images))
    assert [file and file.codec for file in decoded.files or ()] == ["jxl", "jxl"]
    assert (decoded.images[:, None] == images).flatten(2).all(dim=2).sum(dim=0).tolist() == [1, 1]
    # Which codec it is depends on the payload alone, not on what the decoder would choose.
    again = Digital(jpeg_xl=False).decode(payload, announced, release(payload, announced, images))
    assert [file and file.codec for file in again.files or ()] == ["jxl", "jxl"]


@pytest.mark.usefixtures("missing")
def test_without_the_extra_files_are_webp(task: Callable[..., Task]) -> None:
    plan = LayerSpec.of(Digital().payload(task(32, 1, 5e-4))).digital
    assert plan is not None
    assert not plan.jpeg_xl
    assert codec_of(True, task(32, 1, 5e-4).image_format, plan.jpeg_xl) == "webp"


@pytest.mark.usefixtures("missing")
def test_who_lacks_the_extra_is_told_to_install_it(photographs: Photographs, task: Callable[..., Task]) -> None:
    with pytest.raises(UserError, match=r"lacks imagecodecs: install 'lightning_recon\[jxl\]'"):
        Digital(jpeg_xl=True).payload(task(32, 1, 5e-4))
    image = (photographs(48)[5] * 255).round().to(torch.uint8)
    with pytest.raises(UserError, match="lacks imagecodecs"):
        lossless(image, jpeg_xl=True)
    data = lossless(image)
    with pytest.raises(UserError, match="lacks imagecodecs"):
        unframed(framed(data, True, 8 * (len(data) + OVERHEAD)), format_of(image, 8), jpeg_xl=True)


def test_images_that_jpeg_xl_is_not_used_for_have_no_such_setting(task: Callable[..., Task]) -> None:
    payload = Digital(source_code="tensor").payload(task(32, 1, 5e-4))
    assert "digital_jpeg_xl" not in payload.settings
