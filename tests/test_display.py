# SPDX-License-Identifier: Apache-2.0
"""What is drawn of images that are not 8-bit RGB, and how they are written."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_recon.audit.images import _shown
from lightning_recon.data.image_files import open_image
from lightning_recon.display import as_rgb, visible, window_of, windowed
from lightning_recon.files.image_writer import WINDOW, write_image


def test_grey_first_three_or_first_channels_are_drawn() -> None:
    for channels, drawn in ((1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])):
        image = torch.arange(float(channels))[:, None, None].expand(-1, 4, 4)
        assert as_rgb(image)[:, 0, 0].tolist() == drawn


def test_deep_images_are_drawn_within_a_window() -> None:
    dark = torch.linspace(0.1, 0.2, 10000).view(1, 100, 100)
    assert window_of(dark, 8) is None
    low, high = window_of(dark, 16) or (0.0, 0.0)
    assert (low, high) == pytest.approx((0.1005, 0.1995), abs=1e-4)
    assert windowed(dark, (low, high)).quantile(0.5) == pytest.approx(0.5, abs=1e-3)
    assert window_of(torch.full((1, 8, 8), 0.5), 16) is None
    shown = visible((dark * 65535).int())
    assert shown.shape == (3, 100, 100)
    assert (shown.min(), shown.max()) == (0, 255)
    assert torch.equal(visible(torch.arange(192, dtype=torch.uint8).view(3, 8, 8))[1, 0], torch.arange(64, 72).byte())


@pytest.mark.parametrize(("channels", "bits"), [(1, 8), (1, 16), (1, 12), (3, 8), (3, 16)])
def test_png_holds_all_bits_and_the_window(channels: int, bits: int, tmp_path: Path) -> None:
    largest = (1 << bits) - 1
    values = torch.randint(0, largest + 1, (channels, 8, 9), generator=torch.Generator().manual_seed(0))
    write_image(tmp_path / "a.png", values / largest, bits, (0.25, 0.75) if bits > 8 else None)
    image = open_image(tmp_path / "a.png")
    if channels == 1:
        stored = np.asarray(image).astype(int)
        scale = largest if bits == 8 else 65535
        assert (np.rint(stored / scale * largest) == values[0].numpy()).all()
    assert image.size == (9, 8)
    assert (WINDOW in image.info) == (bits > 8)
    shown = np.asarray(_shown(image)).transpose(2, 0, 1) / 255
    expected = windowed(as_rgb(values / largest), (0.25, 0.75) if bits > 8 else None)
    assert np.abs(shown - expected.numpy()).max() < 0.01


def test_what_png_cannot_hold_is_an_array_beside_it(tmp_path: Path) -> None:
    values = torch.randint(0, 4096, (6, 8, 8), generator=torch.Generator().manual_seed(0))
    write_image(tmp_path / "a.png", values / 4095, 12, (0.0, 1.0))
    kept = np.load(tmp_path / "a.npy")
    assert kept.dtype == np.uint16
    assert (kept == values.numpy()).all()
    with Image.open(tmp_path / "a.png") as shown:
        assert shown.mode == "RGB"
