# SPDX-License-Identifier: Apache-2.0
"""Sparse bins return the picture in them; cumulative ones the pictures between them, and pay for it under one clip."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from lightning_recon.attack.protocol import run_protocol
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.client.gradients import mean_gradient
from lightning_recon.data import ClientBatch
from lightning_recon.exchange import ClientUpdate, Task
from lightning_recon.networks.construction import ConvNet
from lightning_recon.priors.image_statistics import public_statistics, synthetic_images
from lightning_recon.structure import InferenceStructure, RobbingTheFed, Structure, TamperedNetwork
from lightning_recon.structure.layer import structure_bytes
from lightning_recon.structure.robbing_the_fed import FOOTPRINT, lowest_row_std
from tests.local_sgd import local_sgd

MakeTask = Callable[..., Task]
Release = Callable[..., ClientUpdate]
Photographs = Callable[[int], Tensor]
Score = Callable[[Tensor, Tensor], Tensor]
RowSelection = Literal["upstream", "noise_aware"]
Variant = Literal["sparse", "cumulative"]
SIZE, UNITS, DRAWS = 32, 128, 4


def excited(images: Tensor, attack: RobbingTheFed, task: Task) -> Tensor:
    """Which units hear which pictures, with the truth at hand: shape (B, K)."""
    structure = InferenceStructure(attack.payload(task))
    measured: Tensor = structure.encode(images) @ structure.weight.detach().T
    return (measured > structure.lower) & (measured < structure.upper)


def isolated(images: Tensor, attack: RobbingTheFed, task: Task) -> Tensor:
    """Those pictures that are alone in their bin."""
    places = excited(images, attack, task).long() * torch.arange(1, attack.units + 1)
    bins = places.max(dim=1).values  # the highest unit that hears a picture, in either variant
    return images[[i for i, own in enumerate(bins) if int((bins == own).sum()) == 1]]


def photographs_only(
    units: int = UNITS, row_selection: RowSelection = "noise_aware", variant: Variant = "cumulative"
) -> RobbingTheFed:
    as_published = row_selection == "upstream"
    return RobbingTheFed(units, row_selection, subjects=False, variant=variant, fallback=not as_published)


def signs(task: Task, count: int) -> Tensor:
    """δ of an undecided network's victims, as the imagined client releases them."""
    code = InferenceStructure(photographs_only(2).payload(task)).code
    return code.mean() - code[torch.arange(count) % task.num_classes]


@pytest.mark.parametrize(
    ("row_selection", "variant"),
    [("upstream", "cumulative"), ("noise_aware", "cumulative"), ("upstream", "sparse"), ("noise_aware", "sparse")],
)
def test_without_noise_isolated_pictures_come_back(
    task: MakeTask, photographs: Photographs, matched_psnr: Score, row_selection: RowSelection, variant: Variant
) -> None:
    attack = photographs_only(row_selection=row_selection, variant=variant)
    images = isolated(photographs(SIZE), attack, task(SIZE, 16, 0.0))
    assert len(images) >= 8
    announced = task(SIZE, len(images), 0.0)
    payload = attack.payload(announced)
    # float32 gradients of a real network, as any client computes them.
    model = TamperedNetwork(ConvNet(10), InferenceStructure(payload))
    gradient, _ = mean_gradient(model, F.cross_entropy, images, torch.arange(len(images)) % 10)
    decoded = attack.decode(payload, announced, ClientUpdate(0, 0, 0, gradient))
    assert len(decoded.images) == len(images)
    assert float(matched_psnr(decoded.images, images).min()) > 50


def test_sparse_bins_without_noise_in_double_precision(
    task: MakeTask, photographs: Photographs, matched_psnr: Score
) -> None:
    attack = photographs_only(variant="sparse")
    images = isolated(photographs(SIZE), attack, task(SIZE, 16, 0.0))
    announced = task(SIZE, len(images), 0.0)
    payload = attack.payload(announced)
    model = TamperedNetwork(ConvNet(10).double(), InferenceStructure(payload).double())
    gradient, _ = mean_gradient(model, F.cross_entropy, images.double(), torch.arange(len(images)) % 10)
    weight = gradient["structure.weight"]
    # Exactly one row for each victim, and nothing at all in the others.
    assert int((weight != 0).any(dim=1).sum()) == len(images)
    decoded = attack.decode(payload, announced, ClientUpdate(0, 0, 0, gradient))
    assert float(matched_psnr(decoded.images, images.double()).min()) > 200


def test_a_sparse_bin_hears_a_picture_of_any_brightness_alone(task: MakeTask, photographs: Photographs) -> None:
    extremes = torch.stack([torch.zeros(3, SIZE, SIZE), torch.ones(3, SIZE, SIZE)])
    images = torch.cat([photographs(SIZE), extremes])
    assert excited(images, photographs_only(variant="sparse"), task(SIZE, 4, 0.0)).sum(dim=1).tolist() == [1] * 18


def test_sparse_bins_work_over_several_local_steps_and_cumulative_ones_do_not(
    task: MakeTask, photographs: Photographs
) -> None:
    worst = {}
    variants: list[Variant] = ["sparse", "cumulative"]
    for variant in variants:
        attack = photographs_only(variant=variant)
        images = isolated(photographs(SIZE), attack, task(SIZE, 16, 0.0))[:8]
        client = VictimClient(
            "convnet", 10, privacy=Privacy(max_grad_norm=10.0, noise_multiplier=0.0), local=local_sgd(4, 0.01)
        )
        masks = torch.ones(8, 1, SIZE, SIZE, dtype=torch.bool)
        client.bind([ClientBatch(images, images, masks, torch.arange(8), [""] * 8)])
        pictures = run_protocol(client, attack, attack.payload(client.task), 0, 0, None).images
        errors = torch.stack([(pictures - image).square().mean(dim=(1, 2, 3)).min() for image in images])
        worst[variant] = float(-10 * errors.max().log10())
    assert worst["sparse"] > 50
    assert worst["cumulative"] < 20


@pytest.mark.parametrize("granularity", ["sample", "update"])
@pytest.mark.parametrize("noise", [1e-4, 1e-3])
def test_the_error_of_a_sparse_bin_is_the_noise_of_its_row_and_bias(
    task: MakeTask, release: Release, photographs: Photographs, noise: float, granularity: str
) -> None:
    attack = photographs_only(variant="sparse")
    images = isolated(photographs(SIZE), attack, task(SIZE, 16, noise))
    announced = task(SIZE, len(images), noise, granularity)
    payload = attack.payload(announced)
    energy = images.square().sum(dim=(1, 2, 3)) + 1
    norm = energy.sqrt() if granularity == "sample" else energy.sum().sqrt()
    law = (noise * norm) ** 2 * (1 + images.square().mean(dim=(1, 2, 3)))
    ratios = []
    for _ in range(DRAWS):
        pictures = attack.decode(payload, announced, release(payload, announced, images)).images
        errors = torch.stack([(pictures - image).square().mean(dim=(1, 2, 3)).min() for image in images])
        ratios.append(errors / law)
    assert 10 * abs(math.log10(float(torch.stack(ratios).mean()))) < 0.7


@pytest.mark.parametrize("granularity", ["sample", "update"])
@pytest.mark.parametrize("noise", [1e-6, 1e-5])
def test_the_error_is_the_noise_of_two_rows_and_two_biases_over_delta(
    task: MakeTask, release: Release, photographs: Photographs, noise: float, granularity: str
) -> None:
    attack = photographs_only()
    images = isolated(photographs(SIZE), attack, task(SIZE, 16, noise))
    announced = task(SIZE, len(images), noise, granularity)
    payload = attack.payload(announced)
    delta, detected = signs(announced, len(images)), excited(images, attack, announced).float()
    inputs = F.pad(images.flatten(1), (0, 1), value=1.0)
    if granularity == "sample":
        norm = detected.sum(dim=1).sqrt() * inputs.norm(dim=1)
    else:
        norm = torch.einsum("b,bk,bm->km", delta, detected, inputs).norm() / delta.abs()
    # (δ x + n) / (δ + m) is off by (n − m x)/δ, and n and m come from two rows each, but for the last bin's.
    rows = torch.where(detected[:, -1] > 0, 1.0, 2.0)
    law = rows * (noise * norm) ** 2 * (1 + images.square().mean(dim=(1, 2, 3)))
    ratios = []
    for _ in range(DRAWS):
        pictures = attack.decode(payload, announced, release(payload, announced, images)).images
        assert len(pictures) == len(images)
        errors = torch.stack([(pictures - image).square().mean(dim=(1, 2, 3)).min() for image in images])
        ratios.append(errors / law)
    # The bias's noise m moves a whole image, so single errors scatter; their mean does not.
    assert 10 * abs(math.log10(float(torch.stack(ratios).mean()))) < 0.5


def test_one_clip_over_cumulative_rows_costs_what_theory_says(task: MakeTask, photographs: Photographs) -> None:
    attack, images = photographs_only(1024), photographs(SIZE)
    detected = excited(images, attack, task(SIZE, 16, 0.0)).float()
    rows = detected.T @ images.flatten(1)
    cost = 10 * math.log10(float(rows.square().sum() / images.square().sum()))
    # With n_k of B victims above threshold k, all of one sign: Σ n_k² pairs of pictures, against B private rows.
    directions = F.normalize(images.flatten(1), dim=1)
    alike = float((directions @ directions.T).mean())
    expected = 10 * math.log10(1024 * 16 / 3 * alike)
    assert cost == pytest.approx(expected, abs=1.5)
    # Differencing costs another 3 dB: together about 40 at 64 x 64, a figure that is known from simulation.
    assert 35 < cost + 3 < 43


def test_upstream_takes_the_emptiest_rows_for_pictures_under_any_noise(
    task: MakeTask, release: Release, photographs: Photographs
) -> None:
    attack = photographs_only()
    images = isolated(photographs(SIZE), attack, task(SIZE, 16, 0.0))
    announced = task(SIZE, len(images), 1e-7)
    payload = attack.payload(announced)
    update = release(payload, announced, images)
    psnr = {}
    choices: list[RowSelection] = ["upstream", "noise_aware"]
    for row_selection in choices:
        pictures = photographs_only(row_selection=row_selection).decode(payload, announced, update).images
        errors = torch.stack([(pictures - image).square().mean(dim=(1, 2, 3)).min() for image in images])
        psnr[row_selection] = -10 * errors.log10()
    assert float(psnr["upstream"].max()) < 15
    assert float(psnr["noise_aware"].min()) > 50


@pytest.mark.parametrize("variant", ["sparse", "cumulative"])
def test_empty_rows_show_a_victim_no_more_often_than_allowed(task: MakeTask, variant: Variant) -> None:
    attack, announced = RobbingTheFed(64, false_alarm=0.05, variant=variant, fallback=False), task(8, 4, 1.0)
    payload = attack.payload(announced)
    trials, alarms = 400, 0
    for _ in range(trials):
        update = ClientUpdate(0, 0, 0, {"structure.weight": torch.randn(64, 193)})
        alarms += len(attack.decode(payload, announced, update).images) > 0
    # Differences of neighbours share a row, and the estimate of the noise scatters: no more than half as many again.
    assert stats.binom.ppf(1e-3, trials, 0.025) <= alarms <= stats.binom.isf(1e-3, trials, 0.075)


@pytest.mark.parametrize(("units", "std"), [(64, 1e-4), (512, 3.0)])
def test_the_quietest_row_tells_the_noise(units: int, std: float) -> None:
    noise = std * torch.randn(units, 1000)
    noise[: units // 4] += 10 * std
    assert lowest_row_std(noise) == pytest.approx(std, rel=0.03)


def test_thresholds_are_quantiles_of_public_brightness(task: MakeTask) -> None:
    attack = RobbingTheFed(8, subjects=False, variant="cumulative")
    tensors = attack.payload(task(SIZE, 4, 0.0)).tensors
    pictures = synthetic_images(public_statistics(SIZE, SIZE, False), 2000, SIZE)
    extremes = torch.stack([torch.zeros(3, SIZE, SIZE), torch.ones(3, SIZE, SIZE)])
    measured = torch.cat([pictures, extremes]).flatten(1) @ tensors["directions"][0]
    detected = (measured[:, None] > tensors["lower"]).sum(dim=1)
    # Nobody is too dark for the first bin; a white image excites all.
    assert detected[-2:].tolist() == [1, 8]
    assert int(detected.min()) == 1
    assert detected[:-2].bincount(minlength=9)[1:] / 2000 == pytest.approx([0.125] * 8, abs=0.05)


def test_the_logits_hardly_move_but_the_network_hardly_counts(task: MakeTask, photographs: Photographs) -> None:
    images = photographs(SIZE)[:4]
    target = ConvNet(10)
    model = TamperedNetwork(target, InferenceStructure(RobbingTheFed().payload(task(SIZE, 4, 0.0))))
    moved = (model(images) - target(images)).detach().abs()
    # Thresholds reach one unit of brightness below black.
    assert 0 < float(moved.max()) < 2 * FOOTPRINT
    gradient, _ = mean_gradient(model, F.cross_entropy, images, torch.arange(4))
    share = gradient["structure.weight"].square().sum() / sum(tensor.square().sum() for tensor in gradient.values())
    assert float(share) > 0.999


def test_it_is_a_structure_that_fits_full_size_pictures(task: MakeTask) -> None:
    announced = replace(task(SIZE, 2, 0.0), num_classes=2)
    assert isinstance(RobbingTheFed(), Structure)
    assert RobbingTheFed(subjects=True).statistics(announced).mean[0, 0, 0] < 0.1
    assert structure_bytes(RobbingTheFed().payload(task(224, 16, 0.0))) == 4 * 128 * (3 * 224**2 + 1)
