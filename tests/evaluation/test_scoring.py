# SPDX-License-Identifier: Apache-2.0
"""Every victim is scored, whatever the attacker hands over."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lightning_recon.evaluation.scoring import Attacked, score

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


def attacked(pictures: Tensor, initial: Tensor | None = None) -> Attacked:
    flags = torch.ones(len(pictures), dtype=torch.bool)
    return Attacked(3, 1, pictures, pictures if initial is None else initial, flags, ~flags)


def test_a_perfect_attack() -> None:
    truth = batch()
    scored = score(truth, attacked(truth.images.flip(0), truth.images.flip(0) + 0.1), MEAN)
    assert torch.equal(scored.pictures, truth.images)
    assert [v.index for v in scored.victims] == [0, 1, 2, 3]
    assert all((v.client, v.draw, v.psnr, v.bit_exact, v.detected) == (3, 1, 100.0, True, True) for v in scored.victims)
    assert [v.psnr_initial for v in scored.victims] == pytest.approx([20.0] * 4, rel=1e-5)
    assert all(v.psnr_photograph < 20 for v in scored.victims)
    assert scored.false_detections == 0


def test_a_victim_without_a_picture_scores_with_the_mean_image() -> None:
    truth = batch()
    scored = score(truth, attacked(truth.images[[3, 1]]), MEAN)
    guess = score(truth, attacked(truth.images[:0]), MEAN)
    assert [v.detected for v in scored.victims] == [False, True, False, True]
    assert scored.victims[0].psnr == guess.victims[0].psnr < 20
    assert torch.equal(scored.pictures[2], MEAN)


def test_flags_follow_their_pictures() -> None:
    truth = batch(3)
    mixed = Attacked(
        0, 0, truth.images[[2, 0]], truth.images[[2, 0]], torch.tensor([False, True]), torch.tensor([True, False])
    )
    victims = score(truth, mixed, MEAN).victims
    assert [v.collision for v in victims] == [False, False, True]
    assert [v.detected for v in victims] == [True, False, False]


def test_a_claim_no_better_than_the_mean_image_is_false() -> None:
    truth = batch(2)
    pictures = torch.stack([truth.images[1], torch.ones(3, 16, 16)])
    assert score(truth, attacked(pictures), MEAN).false_detections == 1
