# SPDX-License-Identifier: Apache-2.0
"""Pictures as people have them: every row of the table in docs/howto/other-images.md."""

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms
from torch import Tensor

from lightning_recon.data.sources import ImageSource, open_folder
from lightning_recon.image_format import ImageFormat, rgb

RED, GREEN, BLUE = (200, 30, 40), (20, 180, 60), (10, 20, 220)


def quarters(side: int = 16) -> Image.Image:
    """Red, green, blue and white, from the upper left, row by row."""
    half = side // 2
    image = Image.new("RGB", (side, side), "white")
    for place, colour in (((0, 0), RED), ((half, 0), GREEN), ((0, half), BLUE)):
        image.paste(colour, (*place, place[0] + half, place[1] + half))
    return image


def corners(image: Tensor) -> list[list[int]]:
    """Colours of the upper left, upper right, lower left and lower right corner."""
    return [image[:, row, column].tolist() for row in (0, -1) for column in (0, -1)]


def read(folder: Path, picture: ImageFormat | None = None, **options: object) -> Tensor:
    source = open_folder(folder, **options)  # type: ignore[arg-type]
    return source.read(0, picture or rgb(16))[0]


def png_of(width: int, height: int) -> bytes:
    """A PNG file that claims a size."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b""))
    parts = [struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def reason(source: ImageSource) -> str:
    with pytest.raises(ValueError, match=r".") as raised:
        source.read(0, rgb(16))
    return str(raised.value)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "avif"])
def test_all_orientations_are_upright(orientation: int, kind: str, tmp_path: Path) -> None:
    upright = quarters()
    # The transpose that the orientation undoes.
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    quality = {"png": {}, "webp": {"lossless": True}}.get(kind, {"quality": 100, "subsampling": "4:4:4"})
    stored.save(tmp_path / f"a.{kind}", exif=exif, **quality)
    found = corners(read(tmp_path))
    assert np.abs(np.array(found) - np.array([RED, GREEN, BLUE, (255, 255, 255)])).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_more_bits_or_channels_turn_a_photograph_once(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    quarters().save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling="4:4:4")
    eight = read(tmp_path)
    assert (read(tmp_path, ImageFormat(3, 16, 16, 16), deep=True) == eight.int() * 257).all()
    exif_of_xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="{orientation}"/></x:xmpmeta>'
    quarters().save(tmp_path / "a.jpg", xmp=exif_of_xmp.encode(), quality=100, subsampling="4:4:4")
    assert (read(tmp_path, ImageFormat(3, 16, 16, 16), deep=True) == eight.int() * 257).all()


def test_deep_colours_are_upright_and_keep_all_bits(tmp_path: Path) -> None:
    values = np.arange(16 * 16 * 3, dtype=np.uint16).reshape(16, 16, 3) * 83
    cv2.imwrite(str(tmp_path / "a.png"), values[..., ::-1])
    deep = ImageFormat(3, 16, 16, 16)
    assert (read(tmp_path, deep, deep=True).permute(1, 2, 0).numpy() == values).all()
    exif = struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x0112, 3, 1, 3, 0, 0)  # orientation 3: half a turn
    content = (tmp_path / "a.png").read_bytes()
    chunk = b"eXIf" + exif
    chunk = struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])
    assert (read(tmp_path, deep, deep=True).permute(1, 2, 0).numpy() == values[::-1, ::-1]).all()


def test_cmyk_and_palettes_keep_their_colours(tmp_path: Path) -> None:
    quarters().convert("CMYK").save(tmp_path / "a.tif")
    quarters().quantize(4).save(tmp_path / "b.png")
    source = open_folder(tmp_path)
    for index in (0, 1):
        assert np.abs(np.array(corners(source.read(index, rgb(16))[0])) - [RED, GREEN, BLUE, (255,) * 3]).max() <= 2


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = Image.fromarray((np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)).convert("1")
    bits.save(tmp_path / "a.png")
    assert set(read(tmp_path).unique().tolist()) == {0, 255}
    assert set(read(tmp_path, ImageFormat(1, 16, 16, 16)).unique().tolist()) == {0, 65535}


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_of_animations_the_first_frame_is_read(kind: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("white", "black", "red")]
    frames[0].save(tmp_path / f"a.{kind}", format=kind, save_all=True, append_images=frames[1:])
    assert read(tmp_path).unique().tolist() == [255]


def test_colours_are_those_of_the_file_whatever_its_profile_says(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    quarters().save(tmp_path / "a.png", icc_profile=profile)
    assert corners(read(tmp_path))[0] == list(RED)


def test_avif_is_read_and_heic_is_named(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.avif", quality=100, subsampling="4:4:4")
    (tmp_path / "b.heic").write_bytes(b"\0\0\0\x18ftypheic")
    source = open_folder(tmp_path)
    assert (source.names, source.ignored) == (["a.avif"], ["b.heic"])
    assert source.read(0, rgb(16))[0].shape == (3, 16, 16)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif", "avif"])
def test_truncated_files_are_refused_with_a_reason(kind: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a.{kind}")
    content = (tmp_path / f"a.{kind}").read_bytes()
    (tmp_path / f"a.{kind}").write_bytes(content[: len(content) // 2])
    assert reason(open_folder(tmp_path))


def test_giant_and_empty_files_are_refused_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_of(100_000, 100_000))
    assert "too large" in reason(open_folder(tmp_path))
    for damaged in (b"", bytes(100)):
        (tmp_path / "a.png").write_bytes(damaged)
        assert "cannot identify" in reason(open_folder(tmp_path))
    (tmp_path / "a.png").write_bytes(png_of(0, 5))
    assert reason(open_folder(tmp_path))


def test_the_content_decides_not_the_extension(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.jpg", format="PNG")
    assert corners(read(tmp_path))[:2] == [list(RED), list(GREEN)]


def test_names_folders_and_links(tmp_path: Path) -> None:
    for name in ("Ärzte/日本 🩻.png", "Ärzte/deep/deeper/b.png", "Ärzte/.hidden.png", ".cache/c.png", "zoo/d.png"):
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        quarters().save(path)
    os.symlink(tmp_path / "root", tmp_path / "root" / "zoo" / "loop")
    os.symlink(tmp_path / "root" / "zoo" / "d.png", tmp_path / "root" / "zoo" / "again.png")
    source = open_folder(tmp_path / "root")
    assert source.names == ["zoo/d.png", "Ärzte/deep/deeper/b.png", "Ärzte/日本 🩻.png"]
    assert [source.read(index, rgb(16))[1] for index in range(3)] == [0, 1, 1]
    assert any("loop" in name for name in source.ignored)
    assert any("again" in name for name in source.ignored)
    assert any(".hidden.png" in name for name in source.ignored)
