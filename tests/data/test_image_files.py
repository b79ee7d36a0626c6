# SPDX-License-Identifier: Apache-2.0
"""Images of every kind become 8-bit RGB or are refused; files of other formats are not opened."""

import os
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from lightning_recon.data.image_files import open_image, to_rgb

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
RAMP = np.arange(256).reshape(16, 16)


@pytest.mark.parametrize(
    "values",
    [
        (RAMP / 255).astype(np.float32),
        (RAMP * 257).astype(np.uint16),
        RAMP.astype(np.int32),
        (RAMP * 257).astype(np.int32),
        (RAMP * (1 << 23)).astype(np.int32),
    ],
    ids=["float", "16 bit", "8 of 32 bit", "16 of 32 bit", "32 bit"],
)
def test_numbers_become_8_bit_by_their_range(values: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    found = np.asarray(to_rgb(open_image(tmp_path / "a.tif")))
    assert (found == RAMP[..., None]).all()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (RAMP.astype(np.float32), "float values from 0 to 255: give --data.value_range"),
        ((RAMP / 255 - 0.5).astype(np.float32), "float values from -0.5"),
        (np.full((4, 4), np.nan, np.float32), "NaN"),
        (np.full((4, 4), np.inf, np.float32), "infinity"),
        (-RAMP.astype(np.int32), "integer values from -255 to 0: give --data.value_range"),
        ((RAMP * 4096).astype(np.int32), "integer values from 0 to 1044480"),
    ],
)
def test_other_ranges_are_refused(values: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        to_rgb(Image.fromarray(values))


@pytest.mark.parametrize("mode", ["L", "LA", "La", "PA", "RGBA", "RGBa", "CMYK", "LAB", "HSV", "P", "YCbCr"])
def test_modes_keep_their_colour(mode: str) -> None:
    grey = Image.new("RGB", (4, 4), (128, 128, 128))
    if mode == "LAB":
        image = Image.new("LAB", (4, 4), (137, 128, 128))  # L* 53.6, neutral: sRGB 128
    else:
        steps = {"La": ("LA", "La"), "RGBa": ("RGBA", "RGBa"), "PA": ("P", "PA")}.get(mode, (mode,))
        image = grey
        for step in steps:
            image = image.convert(step, palette=Image.Palette.ADAPTIVE)
    assert np.abs(np.asarray(to_rgb(image)).astype(int) - 128).max() <= 3


def test_what_is_no_image_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given: started.append(given))
    (tmp_path / "a.jpg").write_bytes(EPS)
    with pytest.raises(OSError, match="cannot identify"):
        open_image(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(OSError, match="no plain file"):
        open_image(tmp_path / "pipe.png")
    assert not started


def test_a_bomb_is_refused_in_one_line() -> None:
    file = BytesIO()
    Image.new("1", (8, 8)).save(file, "BMP")
    content = bytearray(file.getvalue())
    content[18:26] = struct.pack("<ii", 30_000, 30_000)
    with pytest.raises(ValueError, match="too large: Image size"):
        open_image(BytesIO(bytes(content)))


@pytest.mark.parametrize("entry", [b"\xff\xff\xff\xff\x00\x00\x00\x01", b"\x00\x00\x00\x01\x00\x00\x00\x00"])
def test_odd_exif_costs_no_image(entry: bytes) -> None:
    # Orientation 6, and a resolution (282) that is a signed rational, or one divided by zero.
    tags = struct.pack(">HHHIHH", 2, 0x0112, 3, 1, 6, 0) + struct.pack(">HHII", 282, 10, 1, 38) + bytes(4)
    exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08" + tags + entry
    file = BytesIO()
    Image.new("RGB", (20, 10)).save(file, "JPEG", exif=exif)
    assert to_rgb(open_image(BytesIO(file.getvalue()))).size == (10, 20)
    broken = exif[:30]
    Image.new("RGB", (20, 10)).save(file := BytesIO(), "JPEG", exif=broken)
    assert to_rgb(open_image(BytesIO(file.getvalue()))).size in {(10, 20), (20, 10)}
