# SPDX-License-Identifier: Apache-2.0
"""Every victim is scored, with or without a reconstruction."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from lightning_recon.evaluation.scoring import score
from lightning_recon.reconstruction import ReceivedFile, Reconstruction

MEAN = torch.full((3, 16, 16), 0.5)


@dataclass(frozen=True)
class Batch:
    images: Tensor
    photographs: Tensor
    masks: Tensor


def batch(count: int = 4) -> Batch:
    photographs = (torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    masks = torch.zeros(count, 1, 16, 16, dtype=torch.bool)
    masks[..., 4:12, :] = True
    return Batch(photographs * masks, photographs, masks)


def attacked(pictures: Tensor, initial: Tensor | None = None) -> Reconstruction:
    return Reconstruction(3, 1, pictures, pictures if initial is None else initial, unresolved=0)


def test_a_perfect_attack() -> None:
    truth = batch()
    scored = score(truth, attacked(truth.images.flip(0), truth.images.flip(0) + 0.1), MEAN)
    assert torch.equal(scored.images, truth.images)
    assert [v.index for v in scored.victims] == [0, 1, 2, 3]
    assert all((v.client, v.draw, v.psnr, v.bit_exact, v.detected) == (3, 1, 100.0, True, True) for v in scored.victims)
    assert [v.psnr_initial for v in scored.victims] == pytest.approx([20.0] * 4, rel=1e-5)
    assert all(v.psnr_photograph < 20 for v in scored.victims)
    assert not any(v.false_detection for v in scored.victims)


def test_a_victim_without_a_picture_scores_with_the_mean_image() -> None:
    truth = batch()
    scored = score(truth, attacked(truth.images[[3, 1]]), MEAN)
    guess = score(truth, attacked(truth.images[:0]), MEAN)
    assert [v.detected for v in scored.victims] == [False, True, False, True]
    assert scored.victims[0].psnr == guess.victims[0].psnr < 20
    assert torch.equal(scored.images[2], MEAN)


@pytest.mark.parametrize("unresolved", [0, 2])
def test_a_victim_without_a_picture_collided_if_rows_stayed_unexplained(unresolved: int) -> None:
    truth = batch(3)
    found = truth.images[[2, 0]]
    victims = score(truth, Reconstruction(0, 0, found, found, unresolved), MEAN).victims
    assert [v.detected for v in victims] == [True, False, True]
    assert [v.collision for v in victims] == [False, unresolved > 0, False]


def test_a_file_belongs_to_the_victim_whose_picture_came_with_it() -> None:
    truth, file = batch(3), ReceivedFile("avif", 0.5, 800, 900.0)
    sent = replace(attacked(truth.images[[2, 0]]), files=(file, None))
    victims = score(truth, sent, MEAN).victims
    assert [v.codec for v in victims] == [None, None, "avif"]
    assert (victims[2].code_rate, victims[2].bits_sent, victims[2].capacity_bits) == (0.5, 800, 900.0)
    assert (victims[0].code_rate, victims[0].bits_sent, victims[0].capacity_bits) == (None, None, None)


def test_a_claim_no_better_than_the_mean_image_is_false() -> None:
    truth = batch(2)
    pictures = torch.stack([truth.images[1], torch.ones(3, 16, 16)])
    assert [v.false_detection for v in score(truth, attacked(pictures), MEAN).victims] == [True, False]
    # A victim without a picture is no claim.
    assert not any(v.false_detection for v in score(truth, attacked(pictures[:0]), MEAN).victims)


def test_an_image_that_is_not_evident_counts_but_is_no_detection() -> None:
    truth = batch()
    scored = score(truth, replace(attacked(truth.images), evident=False), MEAN)
    assert not any(v.detected or v.collision or v.false_detection for v in scored.victims)
    assert all(v.psnr == 100 for v in scored.victims)
