# SPDX-License-Identifier: Apache-2.0
"""Trap weights are those of their paper; images that activate a unit alone are decoded, and mixtures are rejected."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recon.client.gradients import mean_gradient
from lightning_recon.exchange import ClientUpdate, Task
from lightning_recon.networks.construction import ConvNet
from lightning_recon.priors.image_statistics import public_statistics, synthetic_images
from lightning_recon.structure import CuriousAbandonHonesty, InferenceStructure, Structure, TamperedNetwork
from lightning_recon.structure.coding.trap_weights import TrapRecipe, trap_weights
from lightning_recon.structure.curious_abandon_honesty import corners, typical_scaling
from lightning_recon.structure.layer import structure_bytes
from lightning_recon.structure.robbing_the_fed import FOOTPRINT

MakeTask = Callable[..., Task]
Release = Callable[..., ClientUpdate]
Photographs = Callable[[int], Tensor]
Score = Callable[[Tensor, Tensor], Tensor]
SIZE, UNITS, BATCH, DRAWS = 32, 300, 6, 5


def photographs_only() -> CuriousAbandonHonesty:
    return CuriousAbandonHonesty(UNITS, subjects=False)


def excited(images: Tensor, attack: CuriousAbandonHonesty, task: Task) -> Tensor:
    """Which units hear which pictures, with the truth at hand: shape (B, K)."""
    structure = InferenceStructure(attack.payload(task))
    measured: Tensor = structure.encode(images) @ structure.weight.detach().T
    return measured > 0


def alone(images: Tensor, attack: CuriousAbandonHonesty, task: Task) -> Tensor:
    """Which pictures excite some unit alone, shape (B,)."""
    detected = excited(images, attack, task)
    return (detected & (detected.sum(dim=0) == 1)).any(dim=1)


def test_half_of_each_row_is_negative_and_the_other_half_weaker() -> None:
    weights = trap_weights(50, 1001, TrapRecipe(0.9, 2.0, seed=1))
    assert (weights > 0).sum(dim=1).tolist() == [500] * 50
    positive, negative = weights[weights > 0].mean(), -weights[weights < 0].mean()
    # Magnitudes of a normal number of deviation 2 average 2 √(2/π) = 1.596, and 25,000 of them scatter by 0.5 %.
    assert float(negative) == pytest.approx(1.596, rel=0.02)
    assert float(positive / negative) == pytest.approx(0.9, rel=0.03)
    # Places are random: a place is positive in about half of the rows.
    assert float((weights > 0).float().mean(dim=0).std()) == pytest.approx((0.25 / 50) ** 0.5, rel=0.15)


def test_equal_seeds_make_equal_weights() -> None:
    first, again, other = (trap_weights(3, 100, TrapRecipe(0.9, 1.0, seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_only_the_recipe_is_shipped(task: MakeTask) -> None:
    payload = CuriousAbandonHonesty(7, scaling=0.9).payload(task(SIZE, 4, 0.0))
    inputs = 3 * SIZE**2
    assert all(tensor.numel() <= inputs for tensor in payload.tensors.values())
    structure = InferenceStructure(payload)
    deviation = float(payload.settings["trap_deviation"])
    seed = int(payload.settings["trap_seed"])
    assert torch.equal(structure.weight[:, :-1], trap_weights(7, inputs, TrapRecipe(0.9, deviation, seed)))
    assert not bool(structure.weight[:, -1].any())
    assert structure_bytes(payload) == 4 * 7 * (inputs + 1)


@pytest.mark.parametrize("rate", [0.05, 0.25])
@pytest.mark.parametrize("size", [16, 48])
def test_a_typical_image_excites_as_many_units_as_intended(size: int, rate: float) -> None:
    statistics, pixels = public_statistics(size, size, False), 3 * size**2
    weights = trap_weights(500, pixels, TrapRecipe(typical_scaling(statistics, pixels, rate), 1.0, seed=1))
    rates = (synthetic_images(statistics, 200, size).flatten(1) @ weights.T > 0).float().mean(dim=1)
    assert float(rates.median()) == pytest.approx(rate, rel=0.3)


def test_without_noise_pictures_that_are_alone_in_a_unit_come_back(task: MakeTask, photographs: Photographs) -> None:
    attack, announced, images = photographs_only(), task(SIZE, BATCH, 0.0), photographs(SIZE)[:BATCH]
    payload = attack.payload(announced)
    # float32 gradients of a real network, as any client computes them.
    model = TamperedNetwork(ConvNet(10), InferenceStructure(payload))
    gradient, _ = mean_gradient(model, F.cross_entropy, images, torch.arange(BATCH))
    pictures = attack.decode(payload, announced, ClientUpdate(0, 0, 0, gradient)).images
    found = alone(images, attack, announced)
    assert int(found.sum()) >= BATCH - 1
    errors = torch.stack([(pictures - image).square().mean(dim=(1, 2, 3)).min() for image in images])
    assert float(-10 * errors[found].log10().max()) > 50


@pytest.mark.parametrize("granularity", ["sample", "update"])
@pytest.mark.parametrize("noise", [1e-5, 3e-5])
def test_the_error_is_the_noise_of_row_and_bias_over_delta(
    task: MakeTask, release: Release, photographs: Photographs, noise: float, granularity: str
) -> None:
    attack, announced = photographs_only(), task(SIZE, BATCH, noise, granularity)
    images = photographs(SIZE)[:BATCH]
    payload = attack.payload(announced)
    detected, inputs = excited(images, attack, announced).float(), F.pad(images.flatten(1), (0, 1), value=1.0)
    code = payload.tensors["code"]
    delta = code.mean() - code[torch.arange(BATCH)]
    if granularity == "sample":
        norm = detected.sum(dim=1).sqrt() * inputs.norm(dim=1)
    else:
        norm = torch.einsum("b,bk,bm->km", delta, detected, inputs).norm() / delta.abs()
    found = alone(images, attack, announced)
    assert int(found.sum()) >= BATCH - 1
    # (δ x + n) / (δ + m) is off by (n − m x)/δ. Of a picture's rows the brightest is chosen: the most extreme m of
    # many, whose clamped whites are forgiven.
    pixels, whole = (noise * norm) ** 2, (noise * norm) ** 2 * images.square().mean(dim=(1, 2, 3))
    for _ in range(DRAWS):
        pictures = attack.decode(payload, announced, release(payload, announced, images)).images
        errors = torch.stack([(pictures - image).square().mean(dim=(1, 2, 3)).min() for image in images])
        assert bool((errors > 0.5 * pixels)[found].all())
        assert bool((errors < 1.1 * pixels + 4**2 * whole)[found].all())


def test_a_recording_of_the_chosen_rows_decodes_alike(
    task: MakeTask, release: Release, photographs: Photographs
) -> None:
    attack, announced = photographs_only(), task(SIZE, BATCH, 1e-4)
    payload = attack.payload(announced)
    update = release(payload, announced, photographs(SIZE)[:BATCH])
    decoded = attack.decode(payload, announced, update)
    kept = decoded.rows["structure.weight"]
    assert kept is not None
    assert len(kept) == len(decoded.images) + 1
    weight = torch.full_like(update.gradient["structure.weight"], torch.nan)
    weight[kept] = update.gradient["structure.weight"][kept]
    again = attack.decode(payload, announced, replace(update, gradient={"structure.weight": weight}))
    assert torch.equal(again.images, decoded.images)


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_corners_are_neither_mixtures_nor_the_same_image_again(noise: float, photographs: Photographs) -> None:
    a, b, c = photographs(SIZE)[:3].flatten(1)
    rows = torch.stack([(a + b) / 2, a, a, (a + b + c) / 3, b, 3 * a - 2 * b, c, b, 2 * c - b])
    noisy = rows + noise * torch.randn_like(rows)
    found = corners(noisy, torch.full((len(rows),), noise), 8).tolist()
    assert sorted({1: "a", 2: "a", 4: "b", 6: "c", 7: "b"}[row] for row in found) == ["a", "b", "c"]
    assert corners(noisy, torch.full((len(rows),), noise), 2).tolist() == found[:2]


def test_noise_alone_has_no_corners() -> None:
    assert corners(3 * torch.randn(50, 3000), torch.full((50,), 3.0), 8).tolist() == []
    assert corners(torch.zeros(0, 3000), torch.zeros(0), 8).tolist() == []


def test_the_logits_hardly_move_but_the_network_hardly_counts(task: MakeTask, photographs: Photographs) -> None:
    images, target = photographs(SIZE)[:BATCH], ConvNet(10)
    model = TamperedNetwork(target, InferenceStructure(photographs_only().payload(task(SIZE, BATCH, 0.0))))
    moved = (model(images) - target(images)).detach().abs()
    assert 0 < float(moved.max()) < FOOTPRINT
    gradient, _ = mean_gradient(model, F.cross_entropy, images, torch.arange(BATCH))
    share = gradient["structure.weight"].square().sum() / sum(tensor.square().sum() for tensor in gradient.values())
    assert float(share) > 0.999


def test_it_is_a_structure_whose_mean_image_knows_of_subjects(task: MakeTask) -> None:
    announced = task(SIZE, 2, 0.0)
    assert isinstance(CuriousAbandonHonesty(), Structure)
    assert CuriousAbandonHonesty(subjects=True).statistics(announced).mean[0, 0, 0] < 0.1
    assert CuriousAbandonHonesty(subjects=False).statistics(announced).mean[0, 0, 0] > 0.4
