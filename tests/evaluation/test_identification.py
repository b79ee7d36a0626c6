# SPDX-License-Identifier: Apache-2.0
"""Identification: certain for the originals themselves, chance for noise, and blind to duplicates and silhouettes."""

import pytest
import torch
from torch import Tensor

from lightning_recon.data import ClientBatch
from lightning_recon.evaluation import identification
from lightning_recon.evaluation.identification import Gallery, guess_success, identified
from lightning_recon.evaluation.scoring import score
from lightning_recon.reconstruction import Reconstruction

SIZE = 32


def photographs(count: int, seed: int = 0) -> Tensor:
    """8-bit images with details on all scales, uint8."""
    generator = torch.Generator().manual_seed(seed)
    scales = [torch.rand(count, 3, side, side, generator=generator) for side in (2, 8, SIZE)]
    return (sum(torch.nn.functional.interpolate(one, SIZE) for one in scales) / 3 * 255).round().to(torch.uint8)


def batch(images: Tensor, masks: Tensor | None = None) -> ClientBatch:
    masks = torch.ones(len(images), 1, SIZE, SIZE, dtype=torch.bool) if masks is None else masks
    found = images / 255
    return ClientBatch(found * masks, found, masks, torch.zeros(len(images)), [""] * len(images))


def test_originals_and_slightly_damaged_images_are_identified() -> None:
    truth, others = batch(photographs(8)), photographs(40, 1)
    gallery = Gallery.of([truth], others)
    assert len(gallery) == 48
    assert gallery.identifies(truth.images, truth.images) == [True] * 8
    noise = 0.1 * torch.randn(truth.images.shape, generator=torch.Generator().manual_seed(2))
    assert gallery.identifies(truth.images + noise, truth.images) == [True] * 8
    assert gallery.identifies(0.3 * truth.images + 0.2, truth.images) == [True] * 8  # mean and contrast do not count
    assert gallery.identifies(truth.images.roll(1, 0), truth.images) == [False] * 8


def test_noise_is_identified_by_chance() -> None:
    truth = batch(photographs(100))
    gallery = Gallery.of([truth], photographs(100, 1))
    noise = torch.rand(truth.images.shape, generator=torch.Generator().manual_seed(3))
    assert sum(gallery.identifies(noise, truth.images)) <= 5  # 0.5 on average


def test_duplicates_of_an_original_are_the_original() -> None:
    images = photographs(4)
    truth = batch(torch.cat([images, images[:1]]))
    gallery = Gallery.of([truth], torch.cat([images[1:2], photographs(3, 1)]))
    assert len(gallery) == 7
    assert gallery.identifies(truth.images, truth.images) == [True] * 5


def test_one_constant_image_identifies_nobody() -> None:
    truth = batch(photographs(4))
    grey = torch.full_like(truth.images, 0.5)
    assert Gallery.of([truth], photographs(4, 1)).identifies(grey, truth.images) == [False] * 4


def test_silhouettes_alone_identify_nobody() -> None:
    masks = torch.zeros(2, 1, SIZE, SIZE, dtype=torch.bool)
    masks[0, :, 4:16, 4:16] = masks[1, :, 10:30, 8:20] = True
    truth = batch(photographs(2), masks)
    gallery = Gallery.of([truth], photographs(60, 1))
    silhouettes = 0.5 * masks.expand(2, 3, SIZE, SIZE).float()
    assert sum(gallery.identifies(silhouettes, truth.images)) < 2
    assert gallery.identifies(truth.images, truth.images) == [True, True]


def test_the_gallery_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identification, "MOST_IMAGES", 6)
    assert len(Gallery.of([batch(photographs(4))], photographs(40, 1))) == 6
    assert len(Gallery.of([batch(photographs(8))], photographs(40, 1))) == 8  # every original is there


def test_scores_say_who_is_identified() -> None:
    truth = batch(photographs(3))
    found = Reconstruction(0, 0, truth.images[[2, 0]], truth.images[[2, 0]], 0)
    scored = score(truth, found, torch.full((3, SIZE, SIZE), 0.5))
    (one,) = identified([scored], [truth], Gallery.of([truth], photographs(20, 1)))
    assert [victim.identified for victim in one.victims] == [True, False, True]


@pytest.mark.parametrize("returned", [2, 4, 16])
def test_an_attack_that_returns_more_images_has_as_many_guesses(returned: int) -> None:
    """Images drawn from the gallery without seeing the updates."""
    truth, others, identifications = batch(photographs(4)), photographs(36, 1), 0
    gallery, images = Gallery.of([truth], others), torch.cat([truth.images, others / 255])
    draws = 60
    for seed in range(draws):
        guess = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:returned]]
        found = Reconstruction(0, 0, guess, guess, 0)
        scored = score(truth, found, torch.full((3, SIZE, SIZE), 0.5))
        (one,) = identified([scored], [truth], gallery)
        identifications += sum(bool(victim.identified) for victim in one.victims)
    chance = guess_success([found], [truth], gallery)
    assert chance == max(4, returned) / 40
    share = identifications / (4 * draws)
    assert 0.6 * returned / 40 < share < chance + 0.06
