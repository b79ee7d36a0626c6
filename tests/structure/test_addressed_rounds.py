# SPDX-License-Identifier: Apache-2.0
"""Feedback where batches change from round to round: images are recognised, and each has one estimate."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_recon.attack.protocol import record_payload, run_protocol
from lightning_recon.client import VictimClient
from lightning_recon.data import ClientBatch
from lightning_recon.data.sources import DataProtocol
from lightning_recon.errors import UserError
from lightning_recon.evaluation.assignment import match
from lightning_recon.evaluation.metrics import psnr_per_image
from lightning_recon.exchange import Compression, LocalTraining, RecordedClient, Sampling, task_of_one_round
from lightning_recon.privacy.adaptive_clipping import AdaptiveClip
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.structure import Feedback, InferenceStructure, WaterFilling
from lightning_recon.structure.base import Decoded, Structure

Photographs = Callable[[int], Tensor]


def sampling_client(
    images: Tensor, batch: int, rounds: int, noise: float, sampling: Sampling = "shuffle", granularity: str = "sample"
) -> VictimClient:
    privacy = Privacy(
        max_grad_norm=1.0,
        noise_multiplier=noise,
        rounds=rounds,
        granularity="sample" if granularity == "sample" else "update",
    )
    client = VictimClient("convnet", num_classes=10, privacy=privacy, noise_seed=0, sampling=sampling)
    client.bind([batch_of(images)], DataProtocol(batch, subjects=False, local_images=len(images)))
    return client


def batch_of(images: Tensor) -> ClientBatch:
    masks, labels = torch.ones_like(images[:, :1], dtype=torch.bool), torch.arange(len(images)) % 10
    return ClientBatch(images, images, masks, labels, [str(i) for i in range(len(images))])


def attack(client: VictimClient, structure: Structure, folder: Path | None = None) -> Decoded:
    return run_protocol(client, structure, structure.payload(client.task), 0, 0, folder)


def scores(decoded: Decoded, images: Tensor) -> Tensor:
    owner = match(images, decoded.images)
    assert bool((owner >= 0).all())
    return psnr_per_image(decoded.images[owner], images)


@pytest.mark.parametrize("sampling", ["shuffle", "poisson"])
def test_all_images_of_a_client_are_found(photographs: Photographs, sampling: Sampling) -> None:
    images = photographs(16)[:8]
    found = attack(sampling_client(images, 3, 12, 0.02, sampling), Feedback())
    owner = match(images, found.images)
    assert len(found.images) == len(images)
    assert bool((owner >= 0).all())
    # Every image is nearer to its own reconstruction than to any other, and better than the mean image.
    errors = (found.images[:, None] - images).square().mean(dim=(2, 3, 4))
    assert torch.equal(errors.argmin(dim=0), owner)
    assert float(psnr_per_image(found.images[owner], images).mean()) > 22


@pytest.mark.slow
def test_as_many_looks_tell_as_much_as_of_a_fixed_batch(photographs: Photographs) -> None:
    images = photographs(16)[:12]
    changing = attack(sampling_client(images, 4, 18, 0.03), Feedback())
    fixed = []
    for first in (0, 4, 8):
        part = images[first : first + 4]
        fixed.append(scores(attack(sampling_client(part, 4, 6, 0.03, "all"), Feedback()), part))
    assert float(scores(changing, images).mean()) > float(torch.cat(fixed).mean()) - 1


def test_images_that_share_a_clip_are_found_too(photographs: Photographs) -> None:
    images = photographs(16)[:8]
    found = attack(sampling_client(images, 4, 12, 0.005, granularity="update"), Feedback())
    assert float(scores(found, images).mean()) > 25


def test_absence_leaves_feedback_above_averaging(photographs: Photographs) -> None:
    images = photographs(16)[:4]
    privacy = Privacy(max_grad_norm=1.0, noise_multiplier=0.05, rounds=12, granularity="sample")
    client = VictimClient("convnet", num_classes=10, privacy=privacy, noise_seed=0, participation=0.7)
    client.bind([batch_of(image[None]) for image in images])
    averaged, fed_back = attack(client, WaterFilling()), attack(client, Feedback())
    assert float(scores(fed_back, images[:1])) > float(scores(averaged, images[:1])) + 3


def test_clients_that_drop_out_of_sums_are_found(photographs: Photographs) -> None:
    images = photographs(16)[:4]
    privacy = Privacy(max_grad_norm=1.0, noise_multiplier=0.02, rounds=10, granularity="sample")
    client = VictimClient("convnet", num_classes=10, privacy=privacy, noise_seed=0, aggregated=4, client_dropout=0.4)
    client.bind([batch_of(image[None]) for image in images])
    assert float(scores(attack(client, Feedback()), images).mean()) > 22


def test_a_round_by_itself_has_the_noise_of_a_late_round(photographs: Photographs) -> None:
    task = sampling_client(photographs(16)[:4], 2, 8, 0.1).task
    assert task_of_one_round(task) == replace(task, rounds=1)
    late = task_of_one_round(replace(task, noise_bands=3))
    assert late.update_noise == pytest.approx(0.1 * math.hypot(1, 1 / 2, 1 / 8))


def test_a_recording_repeats_the_same_images(photographs: Photographs, tmp_path: Path) -> None:
    client, code = sampling_client(photographs(16)[:6], 2, 6, 0.02), Feedback()
    record_payload(code.payload(client.task), code, client.task, tmp_path)
    first = attack(client, code, tmp_path)
    again = run_protocol(RecordedClient(tmp_path), Feedback(), RecordedClient(tmp_path).payload(0), 0, 0, None)
    assert torch.equal(first.images, again.images)


def test_a_client_is_attacked_alike_on_any_rank_and_after_an_interruption(photographs: Photographs) -> None:
    images = photographs(16)[:4]
    privacy = Privacy(1.0, 0.02, "sample", rounds=4, noise_bands=2, adaptive_clip=AdaptiveClip())

    def attacked(*order: int) -> Tensor:
        client = VictimClient("convnet", num_classes=10, privacy=privacy, noise_seed=0, sampling="poisson")
        client.bind([batch_of(images[:2]), batch_of(images[2:])], DataProtocol(1, subjects=False, local_images=2))
        structure = Feedback()
        payload = structure.payload(client.task)
        return [run_protocol(client, structure, payload, index, 0, None).images for index in order][-1]

    alone = attacked(1)
    assert len(alone)
    assert torch.equal(attacked(0, 1), alone)
    assert torch.equal(attacked(1, 1), alone)


def test_noise_alone_shows_no_image(photographs: Photographs) -> None:
    client = sampling_client(photographs(16)[:6], 2, 4, 100.0)
    assert not attack(client, Feedback()).evident


def test_addresses_leave_no_footprint_and_send_residuals(photographs: Photographs) -> None:
    images, code = photographs(16)[:4], Feedback()
    task = sampling_client(images, 4, 8, 0.01).task
    payload = code.payload(task)
    client = sampling_client(images, 4, 8, 0.01)
    update = client.share(payload, 0, 0, 0)
    rounds = code.feedback_code(task)
    assert rounds is not None
    book = rounds.begin(payload, task, update, code.decode(payload, replace(task, rounds=1), update))
    assert len(book) == 4
    structure = InferenceStructure(rounds.next_payload(task, book))
    output = structure(images)
    assert not bool(output.any())
    output[:, 0].sum().backward()
    rows = structure.weight.grad
    # Each image excites the unit of its own address, and none of the opening.
    assert rows is not None
    assert bool(rows[:4].any(dim=1).all())
    assert not bool(rows[4:].any())
    # A new image excites units of the opening.
    structure.weight.grad = None
    structure(photographs(16)[9:10])[:, 0].sum().backward()
    assert not bool(structure.weight.grad[:4].any())
    assert bool(structure.weight.grad[4:].any())


def test_a_code_without_addresses_refuses_changing_batches(photographs: Photographs) -> None:
    client = sampling_client(photographs(16)[:4], 2, 4, 0.01)
    with pytest.raises(UserError, match=r"needs an opening whose outputs cancel: set opening\.cancel true"):
        Feedback(WaterFilling(pilot_power=0.2, cancel=False)).payload(client.task)


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"compression": Compression("top_k")}, "compression by top-k 10 % after the noise"),
        ({"local": LocalTraining(optimizer="torch.optim.adam.Adam", learning_rates=(1e-3,))}, "the optimizer Adam"),
    ],
)
def test_a_client_that_sends_little_but_signs_is_refused_with_the_reason(
    photographs: Photographs, changes: dict[str, Any], culprit: str
) -> None:
    announced = sampling_client(photographs(16)[:4], 2, 4, 0.01).task
    announced = replace(announced, granularity="update", **changes)
    with pytest.raises(UserError, match=f"no images through {culprit}, which leaves little but signs"):
        Feedback().payload(announced)
