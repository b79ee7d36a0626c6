# SPDX-License-Identifier: Apache-2.0
"""A peer's row is given up for the public mean image where its noise leaves nothing better, without a look at truth."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_recon.data import ClientBatch
from lightning_recon.evaluation.scoring import score
from lightning_recon.exchange import ClientUpdate, Task
from lightning_recon.priors.image_statistics import public_statistics
from lightning_recon.reconstruction import Reconstruction
from lightning_recon.structure import CuriousAbandonHonesty, RobbingTheFed, SeedPaper
from lightning_recon.structure.mean_image_fallback import beats_mean_image
from lightning_recon.structure.robbing_the_fed import worth_showing

MakeTask = Callable[..., Task]
Release = Callable[..., ClientUpdate]
Photographs = Callable[[int], Tensor]
SIZE = 32


@pytest.mark.parametrize("subjects", [False, True])
def test_the_choice_is_right_on_photographs_that_it_never_saw(photographs: Photographs, subjects: bool) -> None:
    statistics, images = public_statistics(SIZE, SIZE, subjects), photographs(SIZE)
    if subjects:
        rows, columns = torch.meshgrid(*[torch.linspace(-1, 1, SIZE)] * 2, indexing="ij")
        images = images * (rows**2 + columns**2 < 0.45)
    limit = float((statistics.mean - images).square().mean())
    levels = torch.tensor([0.0, 0.05, 0.15, 0.6, 1.0, 3.0])
    chosen = worth_showing(statistics, levels)
    for level, shown in zip(levels.tolist(), chosen.tolist(), strict=True):
        row = (images + level * torch.randn_like(images)) / (1 + level * torch.randn(16, 1, 1, 1))
        assert (float((row.clamp(0, 1) - images).square().mean()) < limit) == shown
    assert chosen.tolist() == sorted(chosen.tolist(), reverse=True)


def test_the_choice_is_the_same_each_time_and_leaves_random_numbers_alone() -> None:
    statistics, state = public_statistics(SIZE, SIZE, True), torch.get_rng_state()
    first, again = (worth_showing(statistics, torch.linspace(0.1, 0.6, 20)) for _ in range(2))
    assert torch.equal(first, again)
    assert 0 < int(first.sum()) < 20
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_that_hold_several_victims_are_worth_less_noise(photographs: Photographs) -> None:
    statistics, images, levels = public_statistics(SIZE, SIZE, False), photographs(SIZE), torch.linspace(0.05, 0.6, 23)
    limits = [int(worth_showing(statistics, levels, mixed=victims).sum()) for victims in (1, 2, 4)]
    assert limits == sorted(limits, reverse=True)
    assert limits[0] > limits[2] > 0
    # The same on photographs that the choice never saw, to one step of the noise.
    half, mean_image = (images + images.roll(1, dims=0)) / 2, float((statistics.mean - images).square().mean())
    level = levels[: limits[1] - 2][-1]
    noisy = (half + level * torch.randn_like(half)) / (1 + level * torch.randn(16, 1, 1, 1))
    assert float((noisy.clamp(0, 1) - images).square().mean()) < mean_image


def test_an_image_of_other_proportions_and_no_row_at_all() -> None:
    statistics = public_statistics(24, 50, False)
    assert beats_mean_image(statistics, torch.tensor([1e-3]), torch.zeros(1), lambda noisy, _: noisy).tolist() == [True]
    assert beats_mean_image(statistics, torch.zeros(0), torch.zeros(0), lambda noisy, _: noisy).tolist() == []


@pytest.mark.parametrize("pooling", [1, 2])
@pytest.mark.parametrize("moments", [False, True])
def test_a_seed_papers_victim_in_too_much_noise_scores_with_exactly_the_mean_image(
    task: MakeTask, release: Release, photographs: Photographs, pooling: int, moments: bool
) -> None:
    announced, images = task(SIZE, 4, 0.05), photographs(SIZE)[:4]
    structure = SeedPaper(256, subjects=False, pooling=pooling, moments=moments)
    published = SeedPaper(256, subjects=False, pooling=pooling, moments=moments, fallback=False)
    payload = structure.payload(announced)
    update = release(payload, announced, images)
    assert len(published.decode(payload, announced, update).images) > 0
    decoded = structure.decode(payload, announced, update)
    assert decoded.images.shape == (0, 3, SIZE, SIZE)
    mean = structure.statistics(announced).mean
    kept = torch.ones(4, 1, SIZE, SIZE, dtype=torch.bool)
    found = score(
        ClientBatch(images, images, kept, torch.arange(4), [""] * 4),
        Reconstruction(0, 0, decoded.images, decoded.images, 0),
        mean,
    )
    assert torch.equal(found.images, mean.expand_as(images))
    assert not any(victim.detected for victim in found.victims)


@pytest.mark.parametrize("attack", [RobbingTheFed, CuriousAbandonHonesty])
def test_a_row_above_the_noise_may_still_be_worse_than_the_mean_image(
    task: MakeTask, photographs: Photographs, attack: type[RobbingTheFed] | type[CuriousAbandonHonesty]
) -> None:
    """With a subject on black and a threshold that lets nearly every alarm pass."""
    announced, kept = task(SIZE, 1, 1.0), {}
    image = photographs(SIZE)[0].clone()
    image[:, : SIZE // 2] = 0
    row = torch.cat([image.flatten(), torch.ones(1)])
    for fallback in (False, True):
        structure = attack(64, false_alarm=0.9, fallback=fallback)
        payload = structure.payload(announced)
        for level in (0.02, 0.38):
            torch.manual_seed(1)
            weight = level * torch.randn(64, len(row))
            weight[:, -1] *= 0.1  # so that only the row of the victim is above the threshold, by little
            weight[5] += row
            update = ClientUpdate(0, 0, 0, {"structure.weight": weight})
            kept[fallback, level] = len(structure.decode(payload, announced, update).images)
    assert kept == {(False, 0.02): 1, (True, 0.02): 1, (False, 0.38): 1, (True, 0.38): 0}


def test_without_noise_nothing_changes(task: MakeTask, release: Release, photographs: Photographs) -> None:
    announced, images = task(SIZE, 8, 0.0), photographs(SIZE)[:8]
    structure = RobbingTheFed(subjects=False)
    payload = structure.payload(announced)
    update = release(payload, announced, images)
    plain = RobbingTheFed(subjects=False, fallback=False)
    kept, all_rows = (one.decode(payload, announced, update).images for one in (structure, plain))
    assert torch.equal(kept, all_rows)
    assert len(kept) > 4
