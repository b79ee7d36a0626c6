# SPDX-License-Identifier: Apache-2.0
"""Our structure end to end: what photographs a server gets from a privatised gradient, and what it cannot get."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.priors.dct import analyse, synthesise
from lightning_recon.structure import InferenceStructure, Structure, WaterFilling
from lightning_recon.structure.coding.gating import layout
from lightning_recon.structure.refinement import Posterior

MakeTask = Callable[..., Task]
Release = Callable[..., ClientUpdate]
Photographs = Callable[[int], Tensor]
Score = Callable[[Tensor, Tensor], Tensor]
SETTINGS = [("sample", False), ("sample", True), ("update", False), ("update", True)]


def mean_image_psnr(structure: WaterFilling, task: Task, images: Tensor) -> Tensor:
    return -10 * (images - structure.statistics(task).mean).square().mean(dim=(1, 2, 3)).log10()


@pytest.mark.parametrize(("granularity", "per_layer"), SETTINGS)
def test_without_noise_every_image_comes_back(
    task: MakeTask,
    release: Release,
    photographs: Photographs,
    matched_psnr: Score,
    granularity: str,
    per_layer: bool,
) -> None:
    images, structure, announced = photographs(32), WaterFilling(), task(32, 16, 0.0, granularity, per_layer)
    payload = structure.payload(announced)
    decoded = structure.decode(payload, announced, release(payload, announced, images))
    assert (len(decoded.images), decoded.unresolved) == (16, 0)
    assert float(matched_psnr(decoded.images, images).min()) > 50


@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_a_single_image_needs_a_single_unit(
    task: MakeTask, release: Release, photographs: Photographs, matched_psnr: Score, granularity: str
) -> None:
    structure, announced = WaterFilling(), task(32, 1, 0.0, granularity)
    payload = structure.payload(announced)
    assert len(payload.tensors["lower"]) == 1
    for image in photographs(32)[:4].split(1):
        decoded = structure.decode(payload, announced, release(payload, announced, image))
        assert float(matched_psnr(decoded.images, image)) > 50


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(("granularity", "per_layer"), SETTINGS)
def test_hopeless_noise_gives_nothing_better_than_the_mean_image(
    task: MakeTask, release: Release, photographs: Photographs, granularity: str, per_layer: bool, batch: int
) -> None:
    images, structure, announced = (
        photographs(32)[:batch],
        WaterFilling(),
        task(32, batch, 10.0, granularity, per_layer),
    )
    payload = structure.payload(announced)
    trivial = mean_image_psnr(structure, announced, images)
    for _ in range(5):
        decoded = structure.decode(payload, announced, release(payload, announced, images))
        for image in decoded.images:
            # Whichever image it is held against.
            psnr = -10 * (images - image).square().mean(dim=(1, 2, 3)).log10()
            assert bool((psnr <= trivial + 0.1).all())


@pytest.mark.parametrize(("batch", "loss"), [(1, 0.4), (16, 1.2)])
@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_blind_decoding_is_near_the_oracle_with_private_rows(
    task: MakeTask,
    release: Release,
    photographs: Photographs,
    matched_psnr: Score,
    granularity: str,
    batch: int,
    loss: float,
) -> None:
    noise = 1e-3
    images, structure, announced = photographs(64)[:batch], WaterFilling(), task(64, batch, noise, granularity)
    payload, statistics = structure.payload(announced), structure.statistics(announced)
    decoded = structure.decode(payload, announced, release(payload, announced, images))
    # The oracle knows every victim's rows, sign and scale; its noise is that of the channel, nothing else.
    truth = analyse(images, statistics.mean, statistics.colour).flatten(1)[:, payload.tensors["index"]]
    gain = payload.tensors["gain"]
    inputs = truth * gain
    energy = inputs.square().sum(dim=1, keepdim=True) + structure.pilot_power
    scale = (energy if granularity == "sample" else energy.sum(dim=0, keepdim=True)).sqrt()
    detected = inputs + noise * scale * torch.randn_like(inputs)
    power = gain**2 * statistics.variance.flatten()[payload.tensors["index"]]
    contrast = inputs.square().sum(dim=1, keepdim=True) / power.sum()
    estimate = detected * contrast * power / (contrast * power + (noise * scale) ** 2)
    known = torch.zeros_like(images).flatten(1)
    known[:, payload.tensors["index"]] = estimate / gain
    pictures = synthesise(known.view_as(images), statistics.mean, statistics.colour).clamp(0, 1)
    oracle = -10 * (images - pictures).square().mean(dim=(1, 2, 3)).log10()
    assert len(decoded.images) == batch
    # Undoing collisions costs some noise, and 16 victims have several.
    assert abs(float(matched_psnr(decoded.images, images).mean() - oracle.mean())) < loss


def test_quiet_victims_are_decoded_too_under_one_clip(
    task: MakeTask, release: Release, photographs: Photographs, matched_psnr: Score
) -> None:
    images, structure, announced = photographs(32)[:8], WaterFilling(), task(32, 8, 2e-4, "update")
    payload = structure.payload(announced)
    gradient_weights = torch.tensor([0.4, 1, 1.4, 1, 0.7, 1, 1, 1.2])
    decoded = structure.decode(payload, announced, release(payload, announced, images, gradient_weights))
    assert len(decoded.images) == 8
    assert float(matched_psnr(decoded.images, images).min()) > 35


def test_less_noise_is_better_pictures(
    task: MakeTask, release: Release, photographs: Photographs, matched_psnr: Score
) -> None:
    images, structure = photographs(32)[:8], WaterFilling()
    means = []
    for noise in (1e-2, 1e-3, 1e-4):
        announced = task(32, 8, noise)
        payload = structure.payload(announced)
        decoded = structure.decode(payload, announced, release(payload, announced, images))
        means.append(float(matched_psnr(decoded.images, images).mean()))
    # A linear code gains nearly 10 dB for a tenth of the noise, less where that opens more coefficients.
    assert means[0] + 10 < means[1] < means[2] - 10


def test_the_posterior_describes_the_error(task: MakeTask, release: Release, photographs: Photographs) -> None:
    images, structure, announced = photographs(32)[:8], WaterFilling(), task(32, 8, 3e-3)
    payload, statistics = structure.payload(announced), structure.statistics(announced)
    decoded = structure.decode(payload, announced, release(payload, announced, images))
    assert isinstance(decoded.refinement, Posterior)
    truth = analyse(images, statistics.mean, statistics.colour)
    match = torch.cdist(decoded.refinement.mean.flatten(1), truth.flatten(1)).argmin(dim=1)
    error = (decoded.refinement.mean - truth[match]).square().sum()
    assert float(error) == pytest.approx(float(decoded.refinement.variance.sum()), rel=0.4)
    assert bool((decoded.refinement.variance > 0).all())
    assert bool((decoded.refinement.variance <= decoded.refinement.prior_variance).all())


def test_the_noise_is_designed_for_as_it_will_be_shared() -> None:
    def gains(granularity: str, batch: int, noise: float, rounds: int, assumed: float | None = None) -> ServerPayload:
        announced = Task((3, 16, 16), 10, batch, 1, "none", granularity, False, 1.0, noise, rounds, 1)  # type: ignore[arg-type]
        return WaterFilling(units=8, directions=1, assumed_noise=assumed).payload(announced)

    alone = gains("sample", 4, 0.1, 1).digest()
    assert gains("sample", 9, 0.1, 1).digest() == alone
    assert gains("update", 4, 0.05, 1).digest() == alone
    assert gains("sample", 4, 0.2, 4).digest() == alone
    assert gains("sample", 4, 0.7, 1, assumed=0.1).digest() == alone
    assert gains("sample", 4, 0.2, 1).digest() != alone


@pytest.mark.parametrize("noise", [0.0, 1e-2, 10.0])
def test_the_average_photograph_meets_the_budget(task: MakeTask, photographs: Photographs, noise: float) -> None:
    structure, announced = WaterFilling(), task(32, 16, noise)
    payload, statistics = structure.payload(announced), structure.statistics(announced)
    power = payload.tensors["gain"] ** 2 * statistics.variance.flatten()[payload.tensors["index"]]
    assert float(power.sum()) == pytest.approx(0.92, rel=1e-5)
    assert float(payload.tensors["constants"].square().sum()) == pytest.approx(0.08, rel=1e-5)
    assert math.isclose(float(payload.tensors["constants"][0]) ** 2, 0.08, rel_tol=1e-5)


def test_units_and_directions_follow_the_batch_unless_told(task: MakeTask) -> None:
    def shape(structure: WaterFilling, batch: int) -> tuple[int, int]:
        tensors = structure.payload(task(16, batch, 1e-3)).tensors
        return len(tensors["unit_direction"]), len(tensors["directions"])

    assert shape(WaterFilling(), 1) == (1, 1)
    assert shape(WaterFilling(), 2) == (64, 3)
    assert shape(WaterFilling(), 16) == (128, 3)
    assert shape(WaterFilling(units=40, directions=2), 16) == (40, 2)


def test_the_payload_survives_the_wire(
    task: MakeTask, release: Release, photographs: Photographs, tmp_path: Path
) -> None:
    images, structure, announced = photographs(16)[:3], WaterFilling(units=12), task(16, 3, 1e-3)
    payload = structure.payload(announced)
    update = release(payload, announced, images)
    payload.save(tmp_path, "payload")
    loaded = ServerPayload.load(tmp_path, "payload")
    here, there = structure.decode(payload, announced, update), structure.decode(loaded, announced, update)
    assert torch.equal(here.images, there.images)


def test_an_unclipped_update_is_decoded_as_well(
    task: MakeTask, release: Release, photographs: Photographs, matched_psnr: Score
) -> None:
    images, structure = photographs(32)[:4], WaterFilling()
    for per_layer in (False, True):
        announced = task(32, 4, 0.0, "update", per_layer)
        payload = structure.payload(announced)
        update = release(payload, announced, images)
        magnitudes = replace(
            update,
            gradient={name: 123 * gradient for name, gradient in update.gradient.items()},
            # Nothing is clipped, so it does not matter how many layers there are.
            omitted={f"network.{index}": {"shape": [1], "sha256": ""} for index in range(300)},
        )
        decoded = structure.decode(payload, replace(announced, max_grad_norm=None), magnitudes)
        assert float(matched_psnr(decoded.images, images).min()) > 50


@pytest.mark.parametrize(("granularity", "noise"), [("sample", 0.1), ("update", 0.0125)])
def test_victims_are_found_at_high_noise_without_an_oracle(
    task: MakeTask, release: Release, photographs: Photographs, granularity: str, noise: float
) -> None:
    images, structure, announced = photographs(64), WaterFilling(), task(64, 16, noise, granularity)
    payload = structure.payload(announced)
    trivial = mean_image_psnr(structure, announced, images)
    found, gains = 0, 0.0
    for _ in range(4):
        decoded = structure.decode(payload, announced, release(payload, announced, images))
        errors = torch.stack([(images - image).square().mean(dim=(1, 2, 3)) for image in decoded.images])
        best = -10 * errors.min(dim=0).values.log10()
        found += len(set(errors.argmin(dim=1).tolist()))
        gains += float((best - trivial).clamp(min=0).mean())
    assert found >= 0.7 * 4 * 16
    assert gains / 4 > 2


@pytest.mark.parametrize("noise", [0.01, 1e-3])
def test_a_pair_is_not_passed_off_as_an_image(
    task: MakeTask, release: Release, photographs: Photographs, noise: float
) -> None:
    images = photographs(32)[:8]
    images = torch.cat([images, images[:1].flip(-1)])
    structure = WaterFilling(units=1 + 8 * 9, directions=3)
    announced = task(32, 9, noise)
    payload = structure.payload(announced)
    # All of two victims' measurements are made equal by measuring only what a mirror does not change.
    even = payload.tensors["index"] % 32 % 2 == 0
    payload.tensors["directions"] = payload.tensors["directions"] * even
    decoded = structure.decode(payload, announced, release(payload, announced, images))
    assert len(decoded.images) <= 7
    assert decoded.unresolved >= 3


@pytest.mark.parametrize(
    "arguments",
    [
        {"nulls": -1},
        {"pilot_power": 1.0},
        {"pilot_power": -0.1},
        {"units": 0},
        {"directions": 0},
        {"units": 2, "directions": 3},
    ],
)
def test_impossible_parameters_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(UserError):
        WaterFilling(**arguments)


def test_an_open_interval_needs_the_copy(task: MakeTask) -> None:
    payload = WaterFilling().payload(task(16, 4, 1e-3))
    with pytest.raises(UserError, match="infinite"):
        InferenceStructure(replace(payload, settings={**payload.settings, "cancel": False}))


def test_high_noise_means_many_short_rows_and_low_noise_few_long_ones() -> None:
    assert layout(1, 100, 12288) == (1, 1)
    assert layout(16, 100, 12288) == (1024, 1)
    assert layout(16, 12288, 12288) == (128, 3)
    assert layout(2, 12288, 12288) == (64, 3)
    # The upload never exceeds that of the full-length rows.
    for inputs in range(1, 12289, 97):
        assert layout(16, inputs, 12288)[0] * inputs <= 128 * 12288


def test_it_is_a_structure() -> None:
    assert isinstance(WaterFilling(), Structure)
    assert WaterFilling().name == "water_filling"
