# SPDX-License-Identifier: Apache-2.0
"""A mask is found once, and comes back the same."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_recon.data.mask_cache import cache_folder, fill_cache, read_mask
from lightning_recon.data.masks import NoMasks, SubjectMasks
from lightning_recon.errors import UserError


class Bright(SubjectMasks):
    """Every bright pixel; counts its images."""

    def __init__(self, threshold: int = 128) -> None:
        self.threshold, self.seen = threshold, 0

    @property
    def fingerprint(self) -> str:
        return f"bright {self.threshold}"

    def __call__(self, images: Iterable[Tensor]) -> Iterator[Tensor]:
        batch = list(images)  # reads ahead, as SAM does
        for image in batch:
            self.seen += 1
            yield (image[:1] >= self.threshold).bool()


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (4, 3, 9, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_masks_are_found_once_and_come_back_the_same(images: Tensor, tmp_path: Path) -> None:
    maker, folder = Bright(), tmp_path / "new" / "cache"
    assert fill_cache(images[:3], 3, maker, folder) == 3
    assert fill_cache(images, 4, maker, folder) == 1
    assert fill_cache(torch.cat([images, images]), 8, maker, folder) == 0
    assert maker.seen == 4
    for image in images:
        assert torch.equal(read_mask(image, Bright(), folder), image[:1] >= 128)
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]


def test_the_same_image_twice_is_found_once(images: Tensor, tmp_path: Path) -> None:
    assert fill_cache(images[[0, 0, 1, 0]], 4, Bright(), tmp_path) == 2


def test_other_settings_are_other_masks(images: Tensor, tmp_path: Path) -> None:
    fill_cache(images, 4, Bright(), tmp_path)
    assert fill_cache(images, 4, Bright(200), tmp_path) == 4
    assert torch.equal(read_mask(images[0], Bright(200), tmp_path), images[0, :1] >= 200)
    with pytest.raises(UserError, match="prepare_data"):
        read_mask(images[0], Bright(50), tmp_path)


def test_images_of_equal_bytes_and_other_shape_are_told_apart(images: Tensor, tmp_path: Path) -> None:
    fill_cache([images[0], images[0].reshape(3, 12, 9)], 2, Bright(), tmp_path)
    assert read_mask(images[0], Bright(), tmp_path).shape == (1, 9, 12)
    assert read_mask(images[0].reshape(3, 12, 9), Bright(), tmp_path).shape == (1, 12, 9)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_damaged_mask_is_found_again(images: Tensor, tmp_path: Path, content: bytes) -> None:
    fill_cache(images[:1], 1, Bright(), tmp_path)
    (stored,) = tmp_path.rglob("*.png")
    stored.write_bytes(content)
    assert fill_cache(images[:1], 1, Bright(), tmp_path) == 1
    assert torch.equal(read_mask(images[0], Bright(), tmp_path), images[0, :1] >= 128)


def test_no_masks_need_no_cache(images: Tensor, tmp_path: Path) -> None:
    assert fill_cache(images, 4, NoMasks(), tmp_path / "never") == 0
    assert read_mask(images[0], NoMasks(), tmp_path / "never").all()
    assert not (tmp_path / "never").exists()


def test_a_cache_that_cannot_be_written_is_refused(images: Tensor, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"mask cache .*mask_cache") as raised:
        fill_cache(images, 4, Bright(), tmp_path / "file")
    assert "--data.mask_cache" in raised.value.for_command_line


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LIGHTNING_RECON_CACHE", raising=False)
    assert cache_folder(None) == Path.home() / ".cache" / "lightning_recon" / "masks"
    monkeypatch.setenv("LIGHTNING_RECON_CACHE", str(tmp_path))
    assert cache_folder(None) == tmp_path / "masks"
    assert cache_folder("here") == Path("here")
