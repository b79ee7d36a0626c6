# SPDX-License-Identifier: Apache-2.0
"""The assignment ignores order and minimises the total error."""

import pytest
import torch

from lightning_recon.evaluation.assignment import arrange, match


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def test_a_shuffled_noisy_batch_finds_its_owners() -> None:
    truth = images(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    noisy = truth[order] + 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
    owner = match(truth, noisy)
    assert order[owner].tolist() == list(range(9))


def test_scores_do_not_depend_on_the_attacker_s_order() -> None:
    truth, found = images(7), images(5, seed=3)
    mean = torch.full((3, 6, 6), 0.5)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(4))
    straight = arrange(found, match(truth, found), mean)
    shuffled = arrange(found[order], match(truth, found[order]), mean)
    assert torch.equal(straight, shuffled)


def test_victims_without_a_picture_get_the_fallback() -> None:
    truth = images(4)
    owner = match(truth, truth[[2, 0]])
    assert owner.tolist() == [1, -1, 0, -1]
    mean = torch.full((3, 6, 6), 0.25)
    placed = arrange(truth[[2, 0]], owner, mean)
    assert torch.equal(placed[[0, 2]], truth[[0, 2]])
    assert torch.equal(placed[1], mean)
    assert match(truth, truth[:0]).tolist() == [-1] * 4


def test_the_whole_assignment_counts_not_the_greedy_one() -> None:
    # Picture 0 is nearest to victim 0, but picture 1 has nowhere else to go.
    truth = torch.tensor([0.0, 0.5]).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    found = torch.tensor([0.1, 0.0]).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    assert match(truth, found).tolist() == [1, 0]


def test_of_more_images_than_victims_the_worst_stays_without_one() -> None:
    truth = images(2)
    assert match(truth, torch.cat([1 - truth[:1], truth.flip(0)])).tolist() == [2, 1]


def test_what_cannot_be_matched_is_refused() -> None:
    truth = images(2)
    with pytest.raises(ValueError, match="same shape"):
        match(truth, images(2)[..., :5])
    with pytest.raises(ValueError, match="NaN"):
        match(truth, truth * torch.nan)
