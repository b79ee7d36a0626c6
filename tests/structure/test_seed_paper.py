# SPDX-License-Identifier: Apache-2.0
"""The seed paper's structure obeys its noise law, its thresholds and its filter."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from lightning_recon.client.gradients import mean_gradient
from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, Task
from lightning_recon.networks.construction import ConvNet
from lightning_recon.structure import InferenceStructure, SeedPaper, Structure, TamperedNetwork
from lightning_recon.structure.coding.leaked_moments import moments
from lightning_recon.structure.refinement import LeakedMoments
from lightning_recon.structure.seed_paper import half_normal_std, interval_filtered

MakeTask = Callable[..., Task]
Release = Callable[..., ClientUpdate]
Photographs = Callable[[int], Tensor]
SIZE, UNITS = 32, 256


def isolated(images: Tensor, structure: SeedPaper, task: Task) -> Tensor:
    """Those pictures that are alone in their brightness interval, found with the truth at hand."""
    tensors = structure.payload(task).tensors
    measured = images.flatten(1) @ tensors["directions"][0, : images[0].numel()]
    unit = torch.bucketize(measured, tensors["lower"], right=True)
    return images[[i for i, u in enumerate(unit) if int((unit == u).sum()) == 1]]


def nearest(pictures: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error against the nearest truth, shape (M,), and which truth that is."""
    errors = torch.stack([(truth - image).square().mean(dim=(1, 2, 3)) for image in pictures])
    return errors.min(dim=1).values, errors.argmin(dim=1)


@pytest.mark.parametrize("granularity", ["sample", "update"])
@pytest.mark.parametrize("noise", [1e-4, 1e-3, 3e-3])
def test_raw_decoding_obeys_the_noise_law(
    task: MakeTask, release: Release, photographs: Photographs, noise: float, granularity: str
) -> None:
    structure = SeedPaper(UNITS, interval_filter=False, fallback=False)
    images = isolated(photographs(SIZE), structure, task(SIZE, 16, noise))
    announced = task(SIZE, len(images), noise, granularity)
    payload = structure.payload(announced)
    guess = structure.decode(payload, announced, release(payload, announced, images))
    errors, match = nearest(guess.images, images)
    assert sorted(match.tolist()) == list(range(len(images)))
    energy = images.square().sum(dim=(1, 2, 3)) + 100  # the copies of δ take their share of the budget
    std = noise * (energy if granularity == "sample" else energy.sum().expand_as(energy)).sqrt()
    # Values are cut off at black and white, which forgives some of the noise: the law of the clamped decoding.
    expected = torch.stack(
        [(image + s * torch.randn_like(image)).clamp(0, 1) - image for image, s in zip(images, std, strict=True)]
    )
    law = expected.square().mean(dim=(1, 2, 3))
    assert 10 * (errors / law[match]).log10().abs().max() < 1
    assert 10 * abs(math.log10(float(errors.mean() / law.mean()))) < 0.3


@pytest.mark.parametrize("pooling", [2, 4])
def test_without_noise_pooled_pictures_come_back_interpolated(
    task: MakeTask, photographs: Photographs, pooling: int
) -> None:
    structure, images = SeedPaper(UNITS, pooling=pooling), photographs(SIZE)
    pooled = F.avg_pool2d(images.double(), pooling)
    images = isolated(images, SeedPaper(UNITS), task(SIZE, 16, 0.0))  # averages are as bright as what they average
    announced = task(SIZE, len(images), 0.0)
    payload = structure.payload(announced)
    model = TamperedNetwork(ConvNet(10).double(), InferenceStructure(payload).double())
    gradient, _ = mean_gradient(model, F.cross_entropy, images.double(), torch.arange(len(images)) % 10)
    guess = structure.decode(payload, announced, ClientUpdate(0, 0, 0, gradient))
    assert guess.images.shape == images.shape
    errors, _ = nearest(guess.images, F.interpolate(pooled, scale_factor=pooling, mode="bilinear"))
    assert float(errors.max()) < 1e-20


def test_a_pooled_gradient_exceeds_the_clipping_norm_as_the_whole_one_does(
    task: MakeTask, photographs: Photographs
) -> None:
    norms = []
    for pooling in (1, 4):
        structure = InferenceStructure(SeedPaper(UNITS, pooling=pooling).payload(task(SIZE, 4, 0.0)))
        gradient, _ = mean_gradient(
            TamperedNetwork(ConvNet(10), structure), F.cross_entropy, photographs(SIZE)[:4], torch.arange(4)
        )
        norms.append(float(gradient["structure.weight"].norm()))
    assert norms[1] == pytest.approx(norms[0], rel=0.2)


def test_pooling_gains_under_noise(task: MakeTask, release: Release, photographs: Photographs) -> None:
    images = isolated(photographs(SIZE), SeedPaper(UNITS), task(SIZE, 16, 0.0))
    psnr = []
    for pooling in (1, 2):
        structure, announced = SeedPaper(UNITS, pooling=pooling, subjects=False), task(SIZE, len(images), 5e-3)
        payload = structure.payload(announced)
        guess = structure.decode(payload, announced, release(payload, announced, images))
        psnr.append(float(-10 * nearest(guess.images, images)[0].mean().log10()))
    assert psnr[1] > psnr[0] + 2


def test_pooling_that_does_not_fit_is_refused(task: MakeTask) -> None:
    with pytest.raises(UserError, match="pooling is 3, which does not divide the image size of 32 x 32"):
        SeedPaper(pooling=3).payload(task(SIZE, 4, 0.0))


@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_without_noise_isolated_pictures_come_back(
    task: MakeTask, release: Release, photographs: Photographs, granularity: str
) -> None:
    structure = SeedPaper(UNITS)
    images = isolated(photographs(SIZE), structure, task(SIZE, 16, 0.0))
    announced = task(SIZE, len(images), 0.0, granularity)
    payload = structure.payload(announced)
    guess = structure.decode(payload, announced, release(payload, announced, images))
    errors, match = nearest(guess.images, images)
    assert sorted(match.tolist()) == list(range(len(images)))
    assert float(errors.max()) < 1e-5


def test_clipping_by_layer_leaves_the_usual_brightness(
    task: MakeTask, release: Release, photographs: Photographs
) -> None:
    structure = SeedPaper(UNITS, subjects=False)
    images = isolated(photographs(SIZE), structure, task(SIZE, 16, 0.0))
    announced = task(SIZE, len(images), 0.0, "update", per_layer=True)
    payload = structure.payload(announced)
    # What comes back is the image times a factor that the batch has in common: near 1, since photographs are alike.
    pictures = structure.decode(payload, announced, release(payload, announced, images)).images
    _, match = nearest(pictures, images)
    factors = pictures.flatten(1).norm(dim=1) / images[match].flatten(1).norm(dim=1)
    assert float(factors.min()) > 0.75
    assert float(factors.max()) < 1.3


def test_only_excited_rows_are_read(task: MakeTask, release: Release, photographs: Photographs) -> None:
    structure, announced = SeedPaper(UNITS), task(SIZE, 16, 1e-4)
    payload = structure.payload(announced)
    guess = structure.decode(payload, announced, release(payload, announced, photographs(SIZE)))
    measured = photographs(SIZE).flatten(1) @ payload.tensors["directions"][0]
    excited = (torch.bucketize(measured, payload.tensors["lower"], right=True) - 1).unique()
    rows = guess.rows["structure.weight"]
    assert rows is not None
    assert set(rows.tolist()) <= set(excited.tolist())
    assert len(rows) == len(guess.images)


def test_empty_rows_show_a_victim_no_more_often_than_allowed(task: MakeTask) -> None:
    structure, announced = SeedPaper(64, false_alarm=0.05, fallback=False), task(8, 4, 1.0)
    payload = structure.payload(announced)
    trials, alarms = 400, 0
    for _ in range(trials):
        gradient = {"structure.weight": torch.zeros(64, 2 * 192), "structure.bias": torch.randn(64, 500)}
        alarms += len(structure.decode(payload, announced, ClientUpdate(0, 0, 0, gradient)).images) > 0
    assert stats.binom.ppf(1e-3, trials, 0.05) <= alarms <= stats.binom.isf(1e-3, trials, 0.05)


def test_thresholds_are_a_hundred_times_the_quantiles(task: MakeTask) -> None:
    tensors = SeedPaper(3).payload(task(SIZE, 4, 0.0)).tensors
    # Quantiles 1/4, 1/2 and 3/4 of Laplace's distribution lie ln 2 times its scale from its centre.
    distance = 0.003 / math.sqrt(2) * math.log(2)
    assert tensors["lower"].tolist() == pytest.approx([100 * (0.003 - distance), 0.3, 100 * (0.003 + distance)])
    assert torch.equal(tensors["upper"][:-1], tensors["lower"][1:])
    assert tensors["upper"][-1] == torch.inf


@pytest.mark.parametrize("size", [32, 224])
def test_brightness_means_the_same_at_any_size(task: MakeTask, size: int) -> None:
    directions = SeedPaper(2).payload(task(size, 4, 0.0)).tensors["directions"]
    # At the paper's own size the weight is its 1e-5; a grey of 0.2 then measures 0.3 everywhere.
    assert float(directions.sum()) * 0.2 == pytest.approx(0.3, rel=0.01)
    if size == 224:
        assert float(directions[0, 0]) == pytest.approx(1e-5)


def test_every_photograph_excites_one_unit(task: MakeTask, photographs: Photographs) -> None:
    tensors = SeedPaper(UNITS).payload(task(SIZE, 4, 0.0)).tensors
    extremes = torch.stack([torch.zeros(3, SIZE, SIZE), torch.ones(3, SIZE, SIZE)])
    measured = torch.cat([photographs(SIZE), extremes]).flatten(1) @ tensors["directions"].T
    hits = (tensors["lower"] <= measured) & (measured < tensors["upper"])
    assert hits.sum(dim=1).tolist() == [1] * len(measured)


@pytest.mark.parametrize("std", [1e-4, 1.0, 50.0])
def test_the_noise_estimate_is_unbiased(std: float) -> None:
    estimates = torch.tensor([half_normal_std(std * torch.randn(400)) for _ in range(2000)])
    # Two hundred halves of a normal scatter by √(π/2 − 1)/√200 each.
    scatter = std * math.sqrt((math.pi / 2 - 1) / 200 / 2000)
    assert abs(float(estimates.mean()) - std) < 5 * scatter
    assert half_normal_std(torch.zeros(5)) == 0


def test_the_filter_removes_99_per_cent_of_pure_noise_and_nothing_stronger() -> None:
    std = torch.tensor([[0.1], [2.0]])
    noise = std * torch.randn(2, 50_000)
    filtered = interval_filtered(noise, std)
    for kept in (filtered != 0).sum(dim=1).tolist():
        assert stats.binom.ppf(1e-4, 50_000, 0.01) <= kept <= stats.binom.isf(1e-4, 50_000, 0.01)
    assert torch.equal(filtered[filtered != 0], noise[filtered != 0])
    assert float(filtered[0][filtered[0] != 0].abs().min()) > 2.57 * 0.1


def test_the_filter_turns_a_black_background_black(task: MakeTask, release: Release, photographs: Photographs) -> None:
    images = photographs(SIZE)[:1].clone()
    images[..., : SIZE // 2] = 0
    announced = task(SIZE, 1, 3e-3)
    decoded = {}
    for filtering in (False, True):
        structure = SeedPaper(16, interval_filter=filtering, fallback=False)
        payload = structure.payload(announced)
        torch.manual_seed(0)
        decoded[filtering] = structure.decode(payload, announced, release(payload, announced, images)).images
    black = decoded[True][..., : SIZE // 2]
    assert float((black == 0).float().mean()) > 0.985
    assert float((decoded[False][..., : SIZE // 2] == 0).float().mean()) < 0.6


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_leaked_moments_are_those_of_the_pictures(
    task: MakeTask, release: Release, photographs: Photographs, noise: float
) -> None:
    structure = SeedPaper(UNITS, moments=True)
    images = isolated(photographs(SIZE), structure, task(SIZE, 16, noise))
    announced = task(SIZE, len(images), noise)
    payload = structure.payload(announced)
    guess = structure.decode(payload, announced, release(payload, announced, images))
    _, match = nearest(guess.images, images)
    assert isinstance(guess.refinement, LeakedMoments)
    assert sorted(match.tolist()) == list(range(len(images)))
    tolerance = max(1e-5, 6 * noise * float(images.square().sum(dim=(1, 2, 3)).max().sqrt()))
    torch.testing.assert_close(guess.refinement.values, moments(images)[match], rtol=0.01, atol=tolerance)


def test_moments_are_left_out_unless_wanted(task: MakeTask, release: Release, photographs: Photographs) -> None:
    structure, announced = SeedPaper(16), task(SIZE, 2, 0.0)
    payload = structure.payload(announced)
    guess = structure.decode(payload, announced, release(payload, announced, photographs(SIZE)[:2]))
    assert guess.refinement is None


def test_it_is_a_structure_whose_mean_image_knows_of_subjects(task: MakeTask) -> None:
    announced = replace(task(SIZE, 2, 0.0), num_classes=2)
    assert isinstance(SeedPaper(), Structure)
    assert SeedPaper(subjects=True).statistics(announced).mean[0, 0, 0] < 0.1
    assert SeedPaper(subjects=False).statistics(announced).mean[0, 0, 0] > 0.4
