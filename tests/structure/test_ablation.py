# SPDX-License-Identifier: Apache-2.0
"""Our structure with one part taken away at a time: each does what is message of it, and nothing false is reported."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, Task
from lightning_recon.structure import Feedback, InferenceStructure, WaterFilling

MakeTask = Callable[..., Task]
Release = Callable[..., ClientUpdate]
Photographs = Callable[[int], Tensor]
Score = Callable[[Tensor, Tensor], Tensor]
CLIPS = ["sample", "update"]
CASES = [("sample", 1), ("sample", 8), ("update", 8)]
SIZE = 16


@pytest.mark.parametrize(("granularity", "batch"), CASES)
def test_without_copies_the_output_moves_a_little_and_the_images_stay(
    task: MakeTask,
    release: Release,
    photographs: Photographs,
    matched_psnr: Score,
    granularity: str,
    batch: int,
) -> None:
    images, announced = photographs(SIZE)[:batch], task(SIZE, batch, 1e-4, granularity)
    found = []
    for structure in (WaterFilling(), WaterFilling(cancel=False)):
        payload = structure.payload(announced)
        footprint = float(InferenceStructure(payload)(images).detach().abs().max())
        assert (footprint == 0) == structure.cancel
        assert footprint <= 0.01 * len(payload.tensors["directions"])
        torch.manual_seed(0)
        decoded = structure.decode(payload, announced, release(payload, announced, images))
        assert (len(decoded.images), decoded.unresolved) == (batch, 0)
        found.append(float(matched_psnr(decoded.images, images).mean()))
    assert abs(found[0] - found[1]) < 0.1


@pytest.mark.parametrize("granularity", CLIPS)
@pytest.mark.parametrize("noise", [1e-4, 10.0])
def test_without_gating_all_victims_collide(
    task: MakeTask, release: Release, photographs: Photographs, granularity: str, noise: float
) -> None:
    structure, announced = WaterFilling(units=1, directions=1), task(SIZE, 16, noise, granularity)
    payload = structure.payload(announced)
    decoded = structure.decode(payload, announced, release(payload, announced, photographs(SIZE)))
    assert len(decoded.images) == 0
    # Where noise hides even sixteen victims, nothing is seen at all.
    assert decoded.unresolved == (noise < 1)


@pytest.mark.parametrize("granularity", CLIPS)
def test_flat_power_loses_against_water_filling(
    task: MakeTask, release: Release, photographs: Photographs, matched_psnr: Score, granularity: str
) -> None:
    images, announced = photographs(SIZE)[:1], task(SIZE, 1, 1e-2, granularity)
    found = []
    for structure in (WaterFilling(power_allocation="flat"), WaterFilling()):
        payload = structure.payload(announced)
        power = (
            payload.tensors["gain"] ** 2 * structure.statistics(announced).variance.flatten()[payload.tensors["index"]]
        )
        assert float(power.sum()) == pytest.approx(0.92, rel=1e-4)
        assert (float(power.max()) < 1.001 * float(power.min())) == (structure.power_allocation == "flat")
        decoded = structure.decode(payload, announced, release(payload, announced, images))
        found.append(float(matched_psnr(decoded.images, images).mean()))
    assert found[0] + 3 < found[1]


@pytest.mark.parametrize(("granularity", "batch"), CASES)
def test_without_a_pilot_images_shrink_to_the_mean_image(
    task: MakeTask, release: Release, photographs: Photographs, granularity: str, batch: int
) -> None:
    structure, announced = WaterFilling(pilot_power=0.0), task(SIZE, batch, 1e-3, granularity)
    payload = structure.payload(announced)
    decoded = structure.decode(payload, announced, release(payload, announced, photographs(SIZE)[:batch]))
    # Victims are still found by what their rows have in common; only the sign of each stays open.
    assert (len(decoded.images), decoded.unresolved, decoded.evident) == (batch, 0, False)
    mean = structure.statistics(announced).mean
    assert float((decoded.images - mean).abs().max()) < 1e-3


def test_feedback_needs_a_pilot() -> None:
    with pytest.raises(UserError, match="pilot_power"):
        Feedback(WaterFilling(pilot_power=0.0))


@pytest.mark.parametrize(("granularity", "batch"), CASES)
def test_without_nulls_the_announced_noise_is_believed(
    task: MakeTask, release: Release, photographs: Photographs, granularity: str, batch: int
) -> None:
    images, announced = photographs(SIZE)[:batch], task(SIZE, batch, 1e-3, granularity)
    whole, bare = WaterFilling(), WaterFilling(nulls=0)
    payload, bare_payload = whole.payload(announced), bare.payload(announced)
    update = release(payload, announced, images)
    bare_update = replace(update, gradient={name: part[:, : -whole.nulls] for name, part in update.gradient.items()})
    decoded = whole.decode(payload, announced, update)
    assert (len(decoded.images), decoded.unresolved) == (batch, 0)
    assert torch.equal(bare.decode(bare_payload, announced, bare_update).images, decoded.images)
    # With nulls, a wrong announcement is found out.
    wrong = replace(announced, noise_multiplier=1e-2)
    torch.testing.assert_close(whole.decode(payload, wrong, update).images, decoded.images, rtol=0, atol=0.01)
    misled = bare.decode(bare_payload, wrong, bare_update).images
    assert len(misled) < batch or float((misled - decoded.images).abs().max()) > 0.03


@pytest.mark.parametrize(("granularity", "batch", "factor"), [("sample", 1, 4.0), ("update", 16, 0.25)])
def test_a_wrong_idea_of_the_noise_costs_little(
    task: MakeTask,
    release: Release,
    photographs: Photographs,
    matched_psnr: Score,
    granularity: str,
    batch: int,
    factor: float,
) -> None:
    noise = 1e-3
    images, true = photographs(SIZE)[:batch], task(SIZE, batch, noise, granularity)
    cases = [
        (WaterFilling(), true),
        (WaterFilling(assumed_noise=factor * noise), true),
        (WaterFilling(), replace(true, noise_multiplier=factor * noise)),
    ]
    found = []
    for structure, announced in cases:
        payload = structure.payload(announced)
        torch.manual_seed(0)
        decoded = structure.decode(payload, announced, release(payload, true, images))
        assert (len(decoded.images), decoded.unresolved) == (batch, 0)
        found.append(float(matched_psnr(decoded.images, images).mean()))
    assert found[0] - 3 < found[1] < found[0] + 0.5
    assert found[2] == pytest.approx(found[1], abs=0.1)


def test_an_image_without_evidence_is_said_to_be_one(
    task: MakeTask, release: Release, photographs: Photographs
) -> None:
    image, structure, alarms = photographs(SIZE)[:1], WaterFilling(), 0
    for noise, silent in ((1e-2, False), (10.0, True)):
        announced = task(SIZE, 1, noise)
        payload = structure.payload(announced)
        for _ in range(20 if silent else 3):
            decoded = structure.decode(payload, announced, release(payload, announced, image))
            assert len(decoded.images) == 1
            assert decoded.evident or silent
            alarms += decoded.evident and silent
    assert alarms <= 2
