# SPDX-License-Identifier: Apache-2.0
"""Updates that contradict the announcement: other numbers of images, other preprocessing, other noise."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data import ClientDataModule, GrabCutMasks, NoMasks
from lightning_recon.data.sources import ClientBatch, DataProtocol
from lightning_recon.evaluation.assignment import match
from lightning_recon.evaluation.metrics import psnr_per_image
from lightning_recon.exchange import ClientUpdate, Task
from lightning_recon.structure import Decoded, WaterFilling

SIZE = 48


def clients_batch(count: int, cut_out: bool = False) -> ClientBatch:
    """Bundled photographs of one client."""
    masks = GrabCutMasks(work_size=96) if cut_out else NoMasks()
    data = ClientDataModule(image_size=SIZE, batch_size=count, masks=masks)
    data.prepare_data()
    data.setup()
    return data.client_batches[0]


def decoded(
    batch: ClientBatch,
    announced: int,
    z: float,
    subjects: bool = False,
    actual_z: float | None = None,
    granularity: Literal["sample", "update"] = "sample",
) -> Decoded:
    """What the linear code decodes of a client that was announced with so many images under noise z."""
    told, actual = (
        VictimClient("convnet", 16, privacy=Privacy(1.0, noise, granularity=granularity), noise_seed=1)
        for noise in (z, z if actual_z is None else actual_z)
    )
    protocol = DataProtocol(announced, subjects)
    for client in (told, actual):
        client.bind([batch], protocol)
    structure = WaterFilling()
    payload = structure.payload(told.task)
    return structure.decode(payload, told.task, actual.share(payload, 0, 0, 0))


def psnr(batch: ClientBatch, found: Decoded) -> Tensor:
    """PSNR of every victim; of those without an image 0."""
    owner = match(batch.images, found.images)
    scores = psnr_per_image(found.images[owner.clamp(min=0)], batch.images)
    return torch.where(owner < 0, 0.0, scores)


@pytest.mark.parametrize(("announced", "actual"), [(4, 8), (4, 2)])
def test_no_victim_of_a_batch_of_another_size_is_lost(announced: int, actual: int) -> None:
    batch = clients_batch(actual)
    found, usual = decoded(batch, announced, 1e-3), decoded(batch, actual, 1e-3)
    assert len(found.images) == len(usual.images) == actual
    assert float(psnr(batch, found).min()) > 25
    assert float(psnr(batch, found).mean()) > float(psnr(batch, usual).mean()) - 2
    assert found.mismatch.images == actual
    assert usual.mismatch.images is None


@pytest.mark.parametrize(("announced", "actual"), [(4, 12), (4, 5), (4, 4)])
def test_one_clip_over_more_images_than_announced_hides_none(announced: int, actual: int) -> None:
    batch = clients_batch(actual)
    found = decoded(batch, announced, 5e-4, granularity="update")
    usual = decoded(batch, actual, 5e-4, granularity="update")
    assert len(found.images) == actual
    assert float(psnr(batch, found).mean()) > float(psnr(batch, usual).mean()) - 3
    assert found.mismatch.images == (None if actual == announced else actual)


def test_much_noise_shows_no_images_that_were_not_announced() -> None:
    batch = clients_batch(4)
    assert len(decoded(batch, 4, 0.3).images) <= 4


@pytest.mark.parametrize("cut_out", [True, False])
def test_the_update_shows_whether_subjects_are_cut_out(cut_out: bool) -> None:
    batch = clients_batch(8, cut_out)
    assert decoded(batch, 8, 1e-3, subjects=not cut_out).mismatch.subjects is cut_out
    assert decoded(batch, 8, 1e-3, subjects=cut_out).mismatch.subjects is None


def test_noise_other_than_announced_is_measured() -> None:
    batch = clients_batch(4)
    found = decoded(batch, 4, 1e-3, actual_z=2e-3).mismatch.noise_multiplier
    assert found == pytest.approx(2e-3, rel=0.1)
    assert decoded(batch, 4, 1e-3).mismatch.noise_multiplier is None


def test_what_subtracted_images_leave_is_no_further_image(
    photographs: Callable[[int], Tensor], task: Callable[..., Task], release: Callable[..., ClientUpdate]
) -> None:
    """At the highest noise at which rows have several directions, residuals of collisions look alike."""
    announced, structure = task(24, 8, 0.05), WaterFilling()
    payload = structure.payload(announced)
    assert len(payload.tensors["directions"]) > 1
    for seed in (1, 2, 7):
        torch.manual_seed(seed)
        batch = photographs(24)[torch.randperm(16)[:8]]
        found = structure.decode(payload, announced, release(payload, announced, batch))
        assert len(found.images) == 8
        assert found.mismatch.images is None
