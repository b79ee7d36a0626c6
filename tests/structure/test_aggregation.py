# SPDX-License-Identifier: Apache-2.0
"""Every structure reads a sum of clients' updates: all their victims, at the noise and the clip that are announced."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from lightning_recon.attack.protocol import run_protocol
from lightning_recon.client import VictimClient
from lightning_recon.data import ClientBatch
from lightning_recon.exchange import Task
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.structure import CuriousAbandonHonesty, Feedback, RobbingTheFed, SeedPaper, Structure, WaterFilling
from lightning_recon.structure.base import Decoded

MakeTask = Callable[..., Task]
Photographs = Callable[[int], Tensor]
Score = Callable[[Tensor, Tensor], Tensor]
Granularity = Literal["sample", "update"]
SIZE = 16


def client_of(images: Tensor, aggregated: int, privacy: Privacy) -> VictimClient:
    """Clients with four images each."""
    client = VictimClient(
        "convnet", num_classes=16, privacy=privacy, aggregated=aggregated, noise_share="distributed", noise_seed=0
    )
    labels = torch.arange(len(images))
    size = len(images) if aggregated == 1 else 4
    client.bind(
        [
            ClientBatch(part, part, torch.ones_like(part[:, :1], dtype=torch.bool), classes, [""] * size)
            for part, classes in zip(images.split(size), labels.split(size), strict=True)
        ]
    )
    return client


def attack(client: VictimClient, structure: Structure) -> Decoded:
    return run_protocol(client, structure, structure.payload(client.task), 0, 0, None)


@pytest.mark.parametrize(
    ("norm", "granularity", "per_layer"),
    [(1.0, "sample", False), (1.0, "update", False), (1.0, "update", True), (None, "update", False)],
)
def test_without_noise_all_images_of_all_clients_come_back(
    photographs: Photographs, matched_psnr: Score, norm: float | None, granularity: Granularity, per_layer: bool
) -> None:
    images = photographs(SIZE)[:12]
    decoded = attack(client_of(images, 3, Privacy(norm, 0.0, granularity, per_layer)), WaterFilling())
    assert (len(decoded.images), decoded.unresolved) == (12, 0)
    assert float(matched_psnr(decoded.images, images).min()) > 50


@pytest.mark.parametrize(
    "structure",
    [
        WaterFilling(),
        Feedback(),
        SeedPaper(units=256, subjects=False),
        RobbingTheFed(),
        CuriousAbandonHonesty(units=1000),
    ],
    ids=lambda structure: structure.name,
)
def test_each_sample_clipped_alone_a_sum_is_one_large_batch(photographs: Photographs, structure: Structure) -> None:
    images = photographs(SIZE)
    noisy = Privacy(1.0, 1e-3, "sample")
    large, summed = (client_of(images, count, noisy) for count in (1, 4))
    assert structure.payload(summed.task).digest() == structure.payload(large.task).digest()
    quiet = replace(noisy, noise_multiplier=0.0)
    one, other = (attack(client_of(images, count, quiet), structure) for count in (1, 4))
    assert len(one.images) == len(other.images) > 4  # more than any client has
    torch.testing.assert_close(other.images, one.images, rtol=0, atol=1e-3)


def test_full_noise_of_every_client_is_what_the_server_designs_for(task: MakeTask) -> None:
    announced = task(SIZE, 4, 0.01)
    structure, feedback = WaterFilling(), Feedback()
    summed = replace(announced, clients=4, aggregated=4)
    louder = replace(announced, batch_size=16, noise_multiplier=0.02)
    assert structure.payload(summed).digest() == structure.payload(louder).digest()
    shared = replace(summed, noise_share="distributed")
    assert structure.payload(shared).digest() == structure.payload(replace(louder, noise_multiplier=0.01)).digest()
    far = replace(summed, noise_multiplier=0.1, rounds=300)
    assert feedback.rounds(far) == feedback.rounds(replace(far, aggregated=1, noise_multiplier=0.2)) > 1


@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_feedback_gains_on_every_victim_of_a_sum(
    photographs: Photographs, matched_psnr: Score, granularity: Granularity
) -> None:
    images = photographs(SIZE)[:8]
    client = client_of(images, 2, Privacy(1.0, 0.02 if granularity == "sample" else 0.006, granularity, rounds=8))
    averaged, fed_back = (matched_psnr(attack(client, one).images, images) for one in (WaterFilling(), Feedback()))
    assert len(averaged) == len(fed_back) == 8
    assert float(fed_back.mean() - averaged.mean()) > 3
