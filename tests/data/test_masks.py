# SPDX-License-Identifier: Apache-2.0
"""GrabCut finds subjects reproducibly, and fingerprints tell settings apart."""

import pytest
import torch
from torch import Tensor

from lightning_recon.data.masks import GrabCutMasks, NoMasks
from lightning_recon.data.sam_masks import SamMasks
from lightning_recon.data.sources import open_source
from lightning_recon.errors import UserError
from lightning_recon.image_format import rgb


@pytest.fixture(scope="module")
def disc() -> tuple[Tensor, Tensor]:
    """A reddish disc on a bluish ground, both a little noisy, and where it is."""
    axis = torch.arange(64) - 31.5
    inside = axis[:, None] ** 2 + axis**2 < 18**2
    noise = torch.randint(0, 30, (3, 64, 64), generator=torch.Generator().manual_seed(0))
    colours = torch.tensor([[200, 40, 40], [20, 60, 200]])
    return (torch.where(inside, colours[0, :, None, None], colours[1, :, None, None]) + noise).byte(), inside[None]


def test_no_masks_take_everything(disc: tuple[Tensor, Tensor]) -> None:
    masks = list(NoMasks()([disc[0], disc[0][:, :32]]))
    assert [tuple(mask.shape) for mask in masks] == [(1, 64, 64), (1, 32, 64)]
    assert all(mask.all() and mask.dtype == torch.bool for mask in masks)


@pytest.mark.parametrize("work_size", [0, 128])
def test_grabcut_finds_the_disc(disc: tuple[Tensor, Tensor], work_size: int) -> None:
    image, inside = disc
    (mask,) = GrabCutMasks(work_size=work_size)([image])
    assert mask.shape == (1, 64, 64)
    assert mask.dtype == torch.bool
    assert (mask & inside).sum() / (mask | inside).sum() > 0.95


def test_grabcut_does_not_depend_on_what_came_before() -> None:
    source = open_source("samples", None)
    images = [source.read(index, rgb(48))[0] for index in range(4)]
    forwards = list(GrabCutMasks()(images))
    backwards = list(GrabCutMasks()(reversed(images)))[::-1]
    assert torch.equal(torch.stack(forwards), torch.stack(backwards))
    assert 0 < torch.stack(forwards).float().mean() < 1


def test_grabcut_takes_the_whole_image_where_it_finds_too_little(disc: tuple[Tensor, Tensor]) -> None:
    image, _ = disc
    (mask,) = GrabCutMasks(min_fraction=0.9)([image])
    assert mask.all()
    (flat,) = GrabCutMasks()([torch.full((3, 16, 16), 80, dtype=torch.uint8)])
    assert flat.all()


def test_grabcut_leaves_a_margin(disc: tuple[Tensor, Tensor]) -> None:
    (mask,) = GrabCutMasks(inset=0.2)([disc[0]])
    margin = round(0.2 * 64)
    assert not mask[:, :margin].any()
    assert not mask[..., 64 - margin :].any()


@pytest.mark.parametrize("wrong", [{"inset": 0.5}, {"inset": 0.0}, {"iterations": 0}, {"min_fraction": 2.0}])
def test_grabcut_refuses_wrong_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(wrong))} is"):
        GrabCutMasks(**wrong)  # type: ignore[arg-type]


def test_fingerprints_tell_settings_apart() -> None:
    makers = [
        NoMasks(),
        GrabCutMasks(),
        GrabCutMasks(inset=0.1),
        GrabCutMasks(iterations=6),
        GrabCutMasks(seed=1),
        GrabCutMasks(min_fraction=0.1),
        GrabCutMasks(work_size=100),
        SamMasks(),
        SamMasks(model_type="vit_b"),
        SamMasks(checksum="0" * 64),
    ]
    assert len({maker.fingerprint for maker in makers}) == len(makers)
    assert SamMasks(checkpoint="a", batch_size=1).fingerprint == SamMasks(checkpoint="b", batch_size=2).fingerprint
