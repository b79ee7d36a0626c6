# SPDX-License-Identifier: Apache-2.0
"""The gallery holds photographs of the folder, of the source and the bundled ones, but none that a client holds."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_recon.data import ClientDataModule, NoMasks
from lightning_recon.errors import UserError


def folder(root: Path, count: int, red: int) -> Path:
    root.mkdir()
    for index in range(count):
        Image.new("RGB", (8, 8), (red, index, 7)).save(root / f"{index}.png")
    return root


def test_photographs_come_from_all_sources(tmp_path: Path) -> None:
    own, further = folder(tmp_path / "own", 6, 10), folder(tmp_path / "further", 3, 200)
    data = ClientDataModule(
        str(own), image_size=8, batch_size=2, clients=2, masks=NoMasks(), num_classes=9, gallery=str(further)
    )
    data.prepare_data()
    data.setup()
    found = data.gallery_photographs(1000)
    assert found.dtype == torch.uint8
    assert found.shape == (3 + 2 + 16, 3, 8, 8)
    assert found[:3, 0].unique().tolist() == [200]
    held = {image.numpy().tobytes() for one in data.client_batches for image in (255 * one.images).round().byte()}
    assert len(held) == 4
    assert not held & {image.numpy().tobytes() for image in found}
    assert len(data.gallery_photographs(4)) == 4


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    data = ClientDataModule(image_size=8, batch_size=2, masks=NoMasks(), gallery=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"gallery .*nowhere does not exist .*: set gallery") as raised:
        data.prepare_data()
    assert ": set --data.gallery" in raised.value.for_command_line
