# SPDX-License-Identifier: Apache-2.0
"""Sums of integers with a narrow range: the code keeps within it, and lines say where it cannot."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_recon.attack.protocol import run_protocol
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data import ClientBatch
from lightning_recon.exchange import Quantization, Task
from lightning_recon.structure import WaterFilling
from lightning_recon.structure.modelled_mechanism import mechanism_mismatch, sampling_mismatch
from lightning_recon.structure.sum_range import limited, sum_range

EIGHT_BITS = Quantization(clipping_range=0.13, quantization_range=256, modulus_range=256)


def client_of(images: Tensor, quantization: Quantization | None) -> VictimClient:
    privacy = Privacy(1.0, 0.004, "sample")
    client = VictimClient("convnet", 5, privacy=privacy, aggregated=2, noise_seed=0, quantization=quantization)
    masks = torch.ones_like(images[:1, :1], dtype=torch.bool)
    client.bind([ClientBatch(one[None], one[None], masks, torch.tensor([i]), [str(i)]) for i, one in enumerate(images)])
    return client


def quality(client: VictimClient, images: Tensor, designed: Task | None = None) -> float:
    structure = WaterFilling()
    payload = structure.payload(client.task if designed is None else designed)
    decoded = run_protocol(client, structure, payload, 0, 0, None)
    errors = [min(float((image - one).square().mean()) for one in decoded.images) for image in images]
    return -10 * math.log10(sum(errors) / len(errors))


def test_a_code_for_narrow_sums_loses_little(photographs: Callable[[int], Tensor]) -> None:
    images = photographs(32)[:2]
    real, narrow = client_of(images, None), client_of(images, EIGHT_BITS)
    free = quality(real, images)
    designed = quality(narrow, images)
    ignored = quality(narrow, images, replace(narrow.task, quantization=None))
    assert designed > ignored + 5
    assert designed > free - 7
    assert quality(client_of(images, Quantization()), images) == pytest.approx(free, abs=0.2)


def test_limited_powers_keep_their_sum() -> None:
    power = torch.tensor([0.5, 0.3, 0.1, 0.1, 0.0])
    found = limited(power, 0.3)
    assert float(found.sum()) == pytest.approx(1.0)
    assert float(found.max()) <= 0.3 + 1e-6
    assert float(found[-1]) == 0.0
    assert torch.equal(limited(power, 1.0), power)
    assert torch.equal(limited(power, 0.01), torch.tensor([0.01, 0.01, 0.01, 0.01, 0.0]))


def test_what_cannot_be_held_is_said(photographs: Callable[[int], Tensor]) -> None:
    task = client_of(photographs(32)[:2], EIGHT_BITS).task
    payload = WaterFilling().payload(task)
    room = sum_range(task)
    assert room is not None
    assert 0 < room.room < 0.13
    assert sum_range(replace(task, quantization=None)) is None
    assert mechanism_mismatch(payload, task) == mechanism_mismatch(None, task) == []
    loud = replace(task, noise_multiplier=1.0)
    assert "noise alone exceeds" in mechanism_mismatch(payload, loud)[0].reason
    tight = replace(task, quantization=replace(EIGHT_BITS, clipping_range=0.05))
    assert "the code exceeds" in mechanism_mismatch(payload, tight)[0].reason
    correlated = replace(task, quantization=None, noise_bands=2)
    assert "averages whitened rounds" in mechanism_mismatch(payload, correlated, feedback=True)[0].reason
    changing = replace(correlated, client_dropout=0.5, rounds=4)
    assert "takes it for independent" in mechanism_mismatch(payload, changing, feedback=True)[0].reason
    assert mechanism_mismatch(payload, correlated) == []
    found = sampling_mismatch(payload, changing, feedback=False)
    assert found is not None
    assert "averages the rounds as if they did not" in found.reason
    assert sampling_mismatch(payload, changing, feedback=True) is None
    assert sampling_mismatch(payload, replace(changing, rounds=1), feedback=False) is None
    assert sampling_mismatch(None, changing, feedback=False) is None
