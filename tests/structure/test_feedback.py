# SPDX-License-Identifier: Apache-2.0
"""Feedback over rounds: what it gains over averaging, on a real client, and what it must never do."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from lightning_recon.attack.protocol import run_protocol
from lightning_recon.client import LocalOptions, VictimClient
from lightning_recon.data import ClientBatch
from lightning_recon.evaluation.assignment import match
from lightning_recon.evaluation.metrics import psnr_per_image
from lightning_recon.exchange import ServerPayload, Task
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.structure import Feedback, InferenceStructure, WaterFilling
from lightning_recon.structure.base import Decoded, Structure
from lightning_recon.structure.head_weights import class_code

Photographs = Callable[[int], Tensor]


def client_of(
    images: Tensor,
    noise: float,
    rounds: int,
    granularity: str = "sample",
    per_layer: bool = False,
    local: LocalOptions = LocalOptions(),  # noqa: B008 - frozen
) -> VictimClient:
    privacy = Privacy(
        max_grad_norm=1.0,
        noise_multiplier=noise,
        rounds=rounds,
        granularity="sample" if granularity == "sample" else "update",
        per_layer=per_layer,
    )
    client = VictimClient("convnet", num_classes=10, privacy=privacy, noise_seed=0, local=local)
    masks = torch.ones_like(images[:, :1], dtype=torch.bool)
    labels = torch.arange(len(images)) % 10
    client.bind([ClientBatch(images, images, masks, labels, [str(i) for i in range(len(images))])])
    return client


def attack(client: VictimClient, structure: Structure) -> Decoded:
    return run_protocol(client, structure, structure.payload(client.task), 0, 0, None)


def scores(decoded: Decoded, images: Tensor) -> Tensor:
    owner = match(images, decoded.images)
    assert bool((owner >= 0).all())
    return psnr_per_image(decoded.images[owner], images)


def test_feedback_tells_more_than_averaging(photographs: Photographs) -> None:
    gains = []
    for image in photographs(32)[:2]:
        client = client_of(image[None], noise=0.1, rounds=24)
        averaged, fed_back = attack(client, WaterFilling()), attack(client, Feedback())
        gains.append(float(scores(fed_back, image[None]) - scores(averaged, image[None])))
    assert min(gains) > 0
    assert sum(gains) / len(gains) > 1.5


@pytest.mark.parametrize(("granularity", "noise"), [("sample", 0.02), ("update", 0.004)])
def test_every_victim_of_a_batch_gains(photographs: Photographs, granularity: str, noise: float) -> None:
    images = photographs(32)[:6]
    client = client_of(images, noise, rounds=12, granularity=granularity)
    averaged, fed_back = attack(client, WaterFilling()), attack(client, Feedback())
    assert float(scores(fed_back, images).mean() - scores(averaged, images).mean()) > 3


@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_every_tensor_clipped_by_itself_leaves_feedback_its_gain(photographs: Photographs, granularity: str) -> None:
    images = photographs(32)[:3]
    client = client_of(images, noise=0.006, rounds=8, granularity=granularity, per_layer=True)
    averaged, fed_back = attack(client, WaterFilling()), attack(client, Feedback())
    assert float(scores(fed_back, images).mean() - scores(averaged, images).mean()) > 3


@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_nothing_overflows_once_everything_is_known(photographs: Photographs, noise: float) -> None:
    images = photographs(16)[:2]
    decoded = attack(client_of(images, noise, rounds=12), Feedback())
    assert bool(decoded.images.isfinite().all())
    assert float(scores(decoded, images).min()) > 60


def test_a_single_round_is_the_opening(photographs: Photographs) -> None:
    images = photographs(32)[:1]
    client = client_of(images, noise=0.05, rounds=1)
    opening = WaterFilling(pilot_power=0.2)
    assert torch.equal(attack(client, Feedback()).images, attack(client, opening).images)


def test_noise_that_hides_the_sign_takes_a_longer_opening(photographs: Photographs) -> None:
    task = client_of(photographs(32)[:1], noise=0.1, rounds=300).task
    rounds = [Feedback().rounds(replace(task, noise_multiplier=z)) for z in (0.01, 0.1, 0.6, 10.0)]
    assert rounds == [1, 1, 29, 300]


def test_signs_are_averaged_over_all_rounds_without_feedback(photographs: Photographs) -> None:
    """The rows of a structure of signs hold no coefficients, so that nothing could be fed back."""
    local = LocalOptions(optimizer=partial(torch.optim.Adam, lr=1e-3))
    client = client_of(photographs(16)[:2], 1e-4, rounds=3, granularity="update", local=local)
    assert Feedback().payload(client.task).settings["signs"]
    assert Feedback().rounds(client.task) == 3
    scores(attack(client, Feedback()), photographs(16)[:2])


def shipped_residual(size: int, units: int) -> ServerPayload:
    torch.manual_seed(1)
    task = Task((3, size, size), 10, 1, 1, "none", "sample", False, 1.0, 0.01, 1, 1)
    payload = WaterFilling(units=units, directions=1).payload(task)
    inputs = payload.tensors["index"].numel()
    return ServerPayload(payload.settings, payload.tensors | {"offset": torch.randn(units, inputs)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_offset_leaves_no_footprint_and_is_taken_off_the_gradient(
    photographs: Photographs, dtype: torch.dtype
) -> None:
    payload = shipped_residual(16, units=4)
    structure, images = InferenceStructure(payload).to(dtype), photographs(16)[:5].to(dtype)
    output = structure(images)
    assert not bool(output.any())
    # A loss whose gradient at the logits is the code: δ = strength · ‖code‖² for every image.
    output.mul(class_code(10).to(dtype)).sum().backward()
    inputs = structure.encode(images)
    measured = inputs @ structure.weight.detach().T
    excited = ((structure.lower <= measured) & (measured < structure.upper)).to(dtype)
    assert structure.offset is not None
    expected = (excited[..., None] * (inputs[:, None] - structure.offset)).sum(dim=0) * structure.spec.strength * 10
    torch.testing.assert_close(structure.weight.grad, expected, rtol=1e-4, atol=1e-2)


def test_an_opening_of_more_rounds_than_planned_contradicts_nothing(photographs: Photographs) -> None:
    # Images collide in few rows, so that the opening takes all rounds; the client is honest.
    opening = WaterFilling(pilot_power=0.2, units=8)
    decoded = attack(client_of(photographs(16)[:6], noise=0.01, rounds=8), Feedback(opening))
    assert decoded.mismatch.noise_multiplier is None
